"""Shorter arithmetic: what it takes is allowed on demand, and a port that uses it is told so."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tiled_ref.golden import npy, tiny
from tiled_ref.golden.__main__ import REFERENCE, main
from tiled_ref.golden.bundle import Bundle, output_path
from tiled_ref.golden.compare import Compare, rounded, rounded_inputs

STAGES = {stage.name: stage for stage in tiny.stages()}
WORDS = {torch.float16: "rounding to 10 bits, as TF32", torch.bfloat16: "rounding to 7 bits, as bf"}


@contextlib.contextmanager
def convolutions_in(dtype, monkeypatch):
    """Convolutions in another arithmetic, as autocast takes them."""

    def short(function):
        def run(*args, **options):
            args = [x.to(dtype) if isinstance(x, torch.Tensor) else x for x in args]
            return function(*args, **options).float()

        return run

    with monkeypatch.context() as patch:
        for name in ("conv2d", "conv_transpose2d"):
            patch.setattr(F, name, short(getattr(F, name)))
        yield


def write(bundle, name, folder, compute):
    """The outputs of a stage as a port computes them."""
    entry = next(stage for stage in bundle.stages if stage["name"] == name)
    for case in entry["cases"]:
        for output, value in compute(bundle.inputs(case)).items():
            path = folder / output_path(name, case["name"], output)
            npy.write_bytes(path, npy.encode(value))


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize(
    "name", ["stem", "backbone", "fastflow.embedding", "reverse_distillation.embedding"]
)
def test_a_network_in_short_arithmetic(name, dtype, monkeypatch, tmp_path, capsys):
    def compute(inputs):
        with convolutions_in(dtype, monkeypatch):
            return STAGES[name].compute(inputs)

    write(Bundle(REFERENCE), name, tmp_path, compute)
    check = ["check", str(tmp_path), "--stage", name]
    assert main(check) == 1
    assert f"LIKELY CAUSE: {WORDS[dtype]}" in capsys.readouterr().out
    assert main([*check, "--arithmetic", str(dtype).removeprefix("torch.")]) == 0
    if dtype == torch.bfloat16 and name in ("backbone", "reverse_distillation.embedding"):
        assert main([*check, "--arithmetic", "tf32"]) == 1  # three bits more


@pytest.mark.parametrize("bits, words", [(10, WORDS[torch.float16]), (7, WORDS[torch.bfloat16])])
@pytest.mark.parametrize("name", ["normalise", "padim.map", "patchcore.embedding", "fastflow.map"])
def test_numbers_that_are_rounded(name, bits, words, tmp_path, capsys):
    """Inputs and outputs of the float64 formulas."""

    def compute(inputs):
        outputs = STAGES[name].formula({k: rounded(v, bits) for k, v in inputs.items()})
        return {k: rounded(np.float32(v), bits) for k, v in outputs.items()}

    write(Bundle(REFERENCE), name, tmp_path, compute)
    assert main(["check", str(tmp_path), "--stage", name]) == 1
    assert f"LIKELY CAUSE: {words}" in capsys.readouterr().out
    arithmetic = "tf32" if bits == 10 else "bfloat16"
    assert main(["check", str(tmp_path), "--stage", name, "--arithmetic", arithmetic]) == 0


def test_a_small_error_with_a_direction_is_no_rounding(tmp_path, capsys):
    def compute(inputs):
        return {k: v + np.float32(0.003) for k, v in STAGES[name].compute(inputs).items()}

    name = "fastflow.embedding"
    write(Bundle(REFERENCE), name, tmp_path, compute)
    assert main(["check", str(tmp_path), "--stage", name]) == 1
    assert "rounding" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, error",
    [
        ("fastflow.map", {"factor": 0.5015}),  # one sign
        ("reverse_distillation.embedding", {"eps": 1.02e-5}),  # mostly one sign
        ("backbone", {"eps": 1.005e-5}),  # small
        ("reverse_distillation.parameters", {"eps": 1e-6}),  # class boundary
    ],
)
def test_a_constant_that_is_a_little_off_is_no_rounding(name, error, tmp_path, capsys):
    def compute(inputs):
        outputs = STAGES[name].formula(inputs, **error)
        return {k: v.astype(np.float32) for k, v in outputs.items()}

    write(Bundle(REFERENCE), name, tmp_path, compute)
    assert main(["check", str(tmp_path), "--stage", name]) == 1
    assert "rounding" not in capsys.readouterr().out


def test_errors_a_tenth_as_large_are_no_rounding(tmp_path, capsys):
    """In the places and with the signs of rounding to 7 bits."""

    def compute(inputs):
        exact, short = map(STAGES["backbone"].formula, (inputs, rounded_inputs(inputs, 7, False)))
        return {k: (v + 0.1 * (short[k] - v)).astype(np.float32) for k, v in exact.items()}

    write(Bundle(REFERENCE), "backbone", tmp_path, compute)
    assert main(["check", str(tmp_path), "--stage", "backbone"]) == 1
    assert "rounding" not in capsys.readouterr().out


def test_rounding_by_hand():
    one = np.float32([1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-10), np.inf, 0])
    assert rounded(one, 10).tolist() == [1, 1 + 2**-9, -(1 + 2**-10), np.inf, 0]
    settings = np.array([0.999])
    assert rounded(settings, 7) is settings and rounded("text", 7) == "text"


def test_classes_in_short_arithmetic_by_hand():
    entry = {"class": "exact", "reduced": {"tf32": 0.1, "bfloat16": 0.8}}
    rule = Compare.from_json(entry)
    assert rule.in_arithmetic("float32") == rule and rule.as_json() == entry
    for name, room in (("tf32", 0.1), ("float16", 0.1), ("bfloat16", 0.8)):
        assert rule.in_arithmetic(name).kind == "close" and rule.in_arithmetic(name).atol == room
    few = Compare("boundary", rtol=0.5, atol=1, cap=0.1, limit=2, reduced={"tf32": 4})
    wide = few.in_arithmetic("tf32")
    assert (wide.kind, wide.rtol, wide.atol, wide.cap, wide.limit) == ("boundary", 0.5, 5, 0.1, 6)
    assert few.in_arithmetic("bfloat16") == few
