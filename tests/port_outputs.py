"""The outputs of a bundle as a port would write them: python tests/port_outputs.py BUNDLE DIR."""

import sys
from pathlib import Path

from tiled_ref.golden import npy
from tiled_ref.golden.bundle import Bundle, output_path


def write(bundle, folder):
    """Write a file for every output, however small, and nothing else; returns the folder."""
    bundle = Bundle(bundle)
    for names, entry in bundle.outputs().items():
        npy.write_bytes(Path(folder) / output_path(*names), npy.encode(bundle.array(entry)))
    return Path(folder)


if __name__ == "__main__":
    write(*sys.argv[1:])
