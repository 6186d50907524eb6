"""Does every test that is meant to catch a mistake catch it?

    python tests/mutants.py                  run all mutants of tests/mutants_table.py
    python tests/mutants.py --only untile    those with the word in their file or test
    python tests/mutants.py --list           say what there is
    python tests/mutants.py --markdown       the same as a table

Each mutant changes one place of one file in a temporary copy of the source tree. A mutated
kernel is rebuilt there. The named test must fail by an assertion or error, not by a failed
build, and must pass before the change. A test that does not end within two minutes has
noticed as well. The working tree is never touched.
"""

import argparse
import importlib.machinery
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutants_table import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("kernels", "tiled_ref", "tests", "setup.py", "pyproject.toml", "MANIFEST.in",
          "README.md", "LICENSE", "run.py", "bench", ".ci")  # fmt: skip
TIMEOUT = 120  # seconds
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


def run(command, folder):
    """(exit status, last lines of the output)."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, text=True, timeout=TIMEOUT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, "timed out"
    return result.returncode, "\n".join(result.stdout.splitlines()[-15:])


def test(folder, *names):
    """pytest's exit status: 0 passed, 1 failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    return run([*command, *names], folder)


def build(folder, kernel):
    """Compile one kernel of the copy in place; its exit status and output."""
    script = (
        "import sys, pathlib, Cython.Build as c; real = c.cythonize\n"
        f"name = 'tiled_ref._{kernel}'\n"
        "c.cythonize = lambda e, **k: real([x for x in e if x.name == name], **k)\n"
        "sys.argv = ['setup.py', 'build_ext', '--inplace']\n"
        "text = pathlib.Path('setup.py').read_text().replace('-O3', '-O1')  # builds sooner\n"
        "exec(compile(text, 'setup.py', 'exec'))\n"
    )
    return run([sys.executable, "-c", script], folder)


def kill(mutant, tree):
    """None if the test fails on the mutant, else what is wrong."""
    file, old, new, name = mutant
    path = tree / file
    source = path.read_text()
    if source.count(old) != 1:
        return f"the old text occurs {source.count(old)} times in {file}"
    path.write_text(source.replace(old, new))
    module, kept = None, None
    try:
        if file.endswith(".pyx"):
            module = tree / "tiled_ref" / f"_{path.stem}{SUFFIX}"
            kept = module.read_bytes()
            status, output = build(tree, path.stem)
            if status:
                return f"the mutant does not build:\n{output}"
        status, output = test(tree, name)
        if status == 0:
            return "SURVIVED"
        # A negative status is a signal: the mutant wrote where it should not, and crashed.
        return None if status == 1 or status < 0 else f"pytest says {status}:\n{output}"
    finally:
        path.write_text(source)
        if kept is not None:
            module.unlink()
            module.write_bytes(kept)


def markdown(mutants):
    """A Markdown table: file, the change, the test that notices it."""

    def code(text):
        return "`` " + " ".join(text.split()).replace("|", "\\|") + " ``" if text.strip() else ""

    lines = ["| file | was | becomes | noticed by |", "|---|---|---|---|"]
    lines += [f"| {file} | {code(old)} | {code(new)} | {name} |" for file, old, new, name in mutants]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORD", help="in the file's or the test's name")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--markdown", action="store_true", help="print a table and stop")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if args.only is None or args.only in m[0] or args.only in m[3]]
    if args.markdown:
        print(markdown(chosen))
        return 0
    if args.list or not chosen:
        for file, old, new, name in chosen:
            print(f"{file}\n  - {old}\n  + {new}\n  {name}")
        print(f"{len(chosen)} mutants")
        return 0 if chosen else 2
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, tree / name)
        status, output = test(tree, *sorted({m[3] for m in chosen}))
        if status:
            print(f"the tests do not pass on the unchanged tree:\n{output}")
            return 2
        for mutant in chosen:
            wrong = kill(mutant, tree)
            alive += wrong is not None
            print(f"{'killed' if wrong is None else wrong}: {mutant[0]}: {mutant[2].strip()[:70]}",
                  flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} killed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
