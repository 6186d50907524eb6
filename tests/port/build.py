"""Building and running the C port, and the deliberate mistakes in it.

    python tests/port/build.py            build, run and check the port
    python tests/port/build.py 11         the same with mistake 11
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().with_name("port.c")
GOLDEN = SOURCE.parents[2] / "tiled_ref" / "golden" / "reference"
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic"]

# -DBUG=n: the first stage that must fail, and words that its likely cause must contain.
BUGS = {
    1: ("tile", "stride and tile size are exchanged"),
    2: ("tile", "the edge is repeated beyond the image instead of zeros"),
    3: ("untile", "stride and tile size are exchanged"),
    4: ("untile", "rows and columns of the tiles are exchanged"),
    5: ("untile", "the largest value where tiles overlap instead of the mean"),
    6: ("untile", "the sum of the tiles is not divided by their count"),
    7: ("mean_score", "the maximum of the tiles' scores instead of the mean"),
    8: ("seam_mask", "the band is one pixel too wide"),
    9: ("seam_mask", "only the starts of tiles are borders"),
    10: ("padim.map", "the radius of the blur is int(3 sigma + 0.5)"),
    11: ("padim.map", "repeats the edge pixel"),
    12: ("smoothing", "the whole map is blurred"),
    13: ("threshold", "> instead of >="),
    14: ("normalisation", "the minimum is subtracted, not the threshold"),
    15: ("regions", "4-connectivity instead of 8"),
    16: ("auroc", "ties count as lost"),
    17: ("aupro", "the FPR is taken over all pixels"),
    18: ("aupro", "ties are not merged"),
    19: ("aupro", "the area is not divided by the FPR limit"),
    20: ("resize", "align_corners"),
    21: ("resize", "antialias"),
    22: ("normalise", "of red and blue are exchanged (BGR)"),
    23: ("padim.embedding", "bilinear enlargement instead of nearest"),
    24: ("padim.parameters", "biased covariance"),
    25: ("padim.map", "rows and columns of the positions are exchanged"),
    26: ("padim.map", "no square root"),
    27: ("padim.score", "the maximum starts from 0"),
    28: ("resize", "2 is not added before the last shift"),
}


def compiler():
    """The C compiler's command, or None."""
    return shutil.which(os.environ.get("CC", "cc"))


def build(program, bug=0, flags=("-O1",)):
    """Compile the port; raises CalledProcessError, after the compiler's messages on stderr."""
    command = [compiler(), "-std=c99", *flags, f"-DBUG={bug}", "-o", str(program), str(SOURCE)]
    subprocess.run([*command, "-lm"], check=True)
    return program


def stages(program):
    """Names of the stages that the port knows."""
    result = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    return result.stdout.split()


def run(program, bundle, out):
    """Run the port on a bundle; `out` is made, with a folder for every stage."""
    for stage in stages(program):
        (Path(out) / stage).mkdir(parents=True, exist_ok=True)
    subprocess.run([str(program), str(bundle), str(out)], check=True)


def main():
    """Build, run and check."""
    import tempfile

    sys.path.insert(0, str(SOURCE.parents[2]))  # from a source tree that is not installed
    from tiled_ref.golden.__main__ import main as golden

    bug = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder) / "port", bug, ["-O2", *(() if bug else STRICT)])
        run(program, GOLDEN, Path(folder) / "out")
        return golden(["check", f"{folder}/out", "--stage", *stages(program)])


if __name__ == "__main__":
    sys.exit(main())
