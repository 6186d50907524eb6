"""Golden files: what every stage computes, for those who port it to another language.

    python -m tiled_ref.golden export DIR        write the bundle
    python -m tiled_ref.golden check PORT_DIR    compare what a port computed with it

A bundle holds, for every stage, cases with the stage's input and output, so that a stage can
be ported and checked on its own and an error does not spread. FORMAT.md, which travels with
the bundle, says how to read it.

    numbers.py         a generator whose numbers are the same on every machine
    npy.py             arrays in files
    compare.py         when two arrays count as equal: the compare classes
    stage.py           what a stage and a case are
    formulas.py        the stages once more, plainly, in float64, with the mistakes as switches
    small_model.py     the backbone of the bundle and the weights of the trained models
    preprocessing.py, padim.py, patchcore.py, fastflow.py, reverse_distillation.py,
    postprocessing.py, ensemble.py
                       the stages and their cases
    genuine.py         the second bundle, with genuine weights
    bundle.py          writing and reading a bundle: the manifest
    checker.py         comparing a port with a bundle, and naming the likely mistake
"""

FORMAT_VERSION = 1  # of the bundle's layout; a reader refuses a newer one
