"""Names the packages and their data and builds the Cython kernels; the rest is in pyproject.toml.

`kernels/` holds sources only; each file becomes a private module of the package
(`kernels/untile.pyx` -> `tiled_ref._untile`). Directives and compiler flags live here
and nowhere else, because a header in a .pyx file would win over them and make the
bounds-checked build (`TILED_REF_DEBUG=1`) impossible.

    python setup.py build_ext --inplace                  # build beside the sources
    TILED_REF_DEBUG=1 python setup.py build_ext --inplace --force
    TILED_REF_SANITIZE=address,undefined python setup.py build_ext --inplace --force
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("TILED_REF_DEBUG", "0") == "1"
SANITIZE = os.environ.get("TILED_REF_SANITIZE", "")

ROOMS = (
    "archive", "data", "golden", "metrics", "models", "models.search", "reporting", "reporting.drawing",
    "reporting.walk", "running", "serving", "support", "verdicts",
)  # fmt: skip
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": not DEBUG,
    "overflowcheck": False,
    "embedsignature": True,
}

# -ffp-contract=off: a fused multiply-add rounds once where the NumPy twin rounds twice.
# No -ffast-math and no -march=native: the bits must not depend on the build machine.
if sys.platform == "win32":
    COMPILE_ARGS = ["/O2", "/fp:precise"]
    LINK_ARGS = []
else:
    COMPILE_ARGS = ["-O1" if DEBUG or SANITIZE else "-O3", "-ffp-contract=off"]
    LINK_ARGS = []
if SANITIZE:
    COMPILE_ARGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g"]
    LINK_ARGS += [f"-fsanitize={SANITIZE}"]


def kernel(name):
    source = f"kernels/{name}.pyx"
    return Extension(
        f"tiled_ref._{name}",
        [source],
        depends=[source],  # keeps the .pyx in the sdist
        extra_compile_args=COMPILE_ARGS,
        extra_link_args=LINK_ARGS,
    )


setup(
    packages=["tiled_ref", *(f"tiled_ref.{room}" for room in ROOMS)],
    package_data={
        "": ["*.md", "assets/*"],  # of every room
        "tiled_ref.golden": ["reference/*", "reference/*/*", "reference/*/*/*"],
        "tiled_ref.reporting": ["*.csv"],
    },
    ext_modules=cythonize(
        [kernel(name) for name in ("untile", "seam_blur", "aupro", "kcenter", "mahalanobis")],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
        force=DEBUG or bool(SANITIZE),
    ),
)
