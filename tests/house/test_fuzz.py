"""A short run of `tests/fuzz.py`, and that it would notice."""

import fuzz
import pytest

from tiled_ref.support.errors import InputError

CASES = 150


def test_mutated_files_work_or_are_refused(tmp_path):
    counts, failures = fuzz.fuzz(tmp_path, 0, range(CASES))
    assert failures == []
    assert sum(counts.values()) == CASES
    for kind in fuzz.KINDS:
        assert counts[kind, "refused"] > 0, kind
    assert sum(n for (_, outcome), n in counts.items() if outcome == "read") > 0


def test_a_case_is_a_function_of_its_number(tmp_path):
    source = fuzz.Fuzz(tmp_path, 3)
    first = [source.run(case) for case in (7, 8, 9)]
    assert [source.run(case) for case in (9, 8, 7)] == first[::-1]


@pytest.mark.parametrize(
    "error, sentence",
    [(KeyError("x"), "KeyError: 'x'"), (MemoryError(), "MemoryError"),
     (InputError("x" * 2000), "a sentence of 2000 characters")],
)  # fmt: skip
def test_anything_else_than_an_input_error_is_a_failure(tmp_path, monkeypatch, error, sentence):
    def fail(*args):
        raise error

    monkeypatch.setattr(fuzz, "read_tensors", fail)
    monkeypatch.setattr(fuzz, "layout", fail)
    _, failures = fuzz.fuzz(tmp_path, 0, [3])  # case 3 is a tensor file
    assert len(failures) == 1 and sentence in failures[0][1]
