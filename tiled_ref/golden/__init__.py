"""Golden files: the input and output of every stage, for ports to other languages.

    python -m tiled_ref.golden export DIR        write the bundle
    python -m tiled_ref.golden check PORT_DIR    compare a port's outputs with it

Each stage has cases of its own, so that it can be ported and checked alone and an error does not
spread. FORMAT.md, which travels with the bundle, explains how to read it; README.md lists the
files of this folder.
"""
