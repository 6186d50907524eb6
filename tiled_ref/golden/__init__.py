"""Golden files: the input and output of every stage, for ports to other languages.

    python -m tiled_ref.golden export DIR        write the bundle
    python -m tiled_ref.golden check PORT_DIR    compare a port's outputs with it

Each stage has its own cases, so that it can be ported and checked in isolation and errors do not
propagate. FORMAT.md, part of the bundle, explains how to read it; README.md lists the
files of this folder.
"""
