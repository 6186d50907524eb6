"""Golden files: what every stage computes, for those who port it to another language.

    python -m tiled_ref.golden export DIR        write the bundle
    python -m tiled_ref.golden check PORT_DIR    compare a port's outputs with it

A bundle holds, for every stage, cases with the stage's input and output, so that a stage can
be ported and checked on its own and an error does not spread. FORMAT.md, which travels with
the bundle, says how to read it; README.md lists the files of this folder.
"""
