"""Every entry of a file that is read back has a type, a range and a length."""

import json

import pytest

from tiled_ref.support import schema
from tiled_ref.support.errors import InputError

SCHEMA = {
    "n": schema.whole(1, 9),
    "x": schema.number(-1, 1),
    "name": schema.text(5),
    "digest": schema.digest,
    "version": schema.text(20, r"\d+\.\d+", "a version"),
    "kind": schema.one_of("a", 1, None),
    "on": schema.flag,
    "size": (schema.whole(), schema.whole()),
    "parts": schema.each({"y": schema.maybe(schema.number())}, most=2),
    "switches": schema.named(schema.scalar, most=2),
    "late?": schema.flag,
}
GOOD = {
    "n": 1, "x": 1, "name": "größe", "digest": "0" * 64, "version": "2.0", "kind": 1, "on": False,
    "size": [1, 2], "parts": [{"y": None}, {"y": 0.5, "more": "is left alone"}],
    "switches": {"impl": "numpy"},
}  # fmt: skip
NO_NUMBER = [None, True, "1", [], {}]
WRONG = {
    "n": [*NO_NUMBER, 0, 10, 1.0, 10**400],
    "x": [*NO_NUMBER, 1.5, -2, 10**400, float("nan"), float("inf")],
    "name": [None, 1, [], "sechse"],
    "digest": [None, 1, "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n"],
    "version": [2.0, "2", "2.0x", "2.0\n", "x2.0"],
    "kind": [True, 1.0, "b", [], {}],
    "on": [0, 1, None, "true"],
    "size": [None, {}, [1], [1, 2, 3], [1, True], [1, -1], "12"],
    "parts": [None, {}, [{}], [3], [{"y": "1"}], [{"y": 1}] * 3],
    "switches": [None, [], {"a": []}, {"a": {}}, {"a": "x" * 256}, {"a": 1e301},
                 {"x" * 256: 1}, dict.fromkeys("abc", 1)],
    "late": [None, 0],
}  # fmt: skip
CASES = [(key, value) for key, values in WRONG.items() for value in values]


def test_what_follows_is_returned_and_read(tmp_path):
    assert schema.check(GOOD, SCHEMA, "x.json", "do") is GOOD
    (tmp_path / "x.json").write_text(json.dumps(GOOD))
    assert schema.read_json(tmp_path / "x.json", SCHEMA, "do") == GOOD
    assert schema.check(GOOD | {"late": True}, SCHEMA, "x.json", "do")["late"]


@pytest.mark.parametrize("key, value", CASES, ids=lambda value: repr(value)[:20])
def test_a_wrong_entry_is_one_sentence(key, value):
    with pytest.raises(InputError) as caught:
        schema.check(GOOD | {key: value}, SCHEMA, "deep/x.json", "train again")
    sentence = str(caught.value)
    assert sentence.startswith("deep/x.json is damaged or was not written by this program (it")
    assert f" entry {key}" in sentence and sentence.endswith("); train again")
    assert len(sentence) < 600 and sentence.isprintable()


@pytest.mark.parametrize("key", [key for key in SCHEMA if not key.endswith("?")])
def test_a_missing_entry_is_named(key):
    left = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(InputError, match=rf"x.json .*\(it has no entry {key}\); do"):
        schema.check(left, SCHEMA, "x.json", "do")


def test_an_entry_is_named_by_its_place():
    for value, place in (
        (GOOD | {"parts": [{"y": 1}, {"y": []}]}, r"its entry parts\[1\].y is \[\], not a number"),
        (GOOD | {"size": [1, "x"]}, r"its entry size\[1\] is 'x', not a whole number from 0"),
        (GOOD | {"switches": {"\x1b[2J\ud800": []}}, r"switches.'\\x1b\[2J\\ud800' is \[\]"),
        ([1], r"it is \[1\], not an object"),
    ):
        with pytest.raises(InputError, match=place):
            schema.check(value, SCHEMA, "x.json", "do")


@pytest.mark.parametrize(
    "data, sentence",
    [(data, "damaged") for data in (b"", b"{", b"\xff", b"[" * 10**5, b"9" * 5000)]
    + [(b'{"n": NaN}', "it holds NaN"), (b"null", "it is None, not an object")],
)  # fmt: skip
def test_what_is_no_json_is_one_sentence(tmp_path, data, sentence):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(InputError, match=f"x.json .*{sentence}.*; do"):
        schema.read_json(tmp_path / "x.json", {}, "do")


def test_a_file_is_not_read_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "FILE_BYTES", 10)
    (tmp_path / "x.json").write_text(" " * 11)
    with pytest.raises(InputError, match="more than 10 bytes"):
        schema.read_json(tmp_path / "x.json", {}, "do")


def test_a_file_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "x.json")
    assert schema.read_json(tmp_path / "link", {}, "do") == {}
    for name, why in (("none", "No such file"), (".", "directory|regular"), ("link", "is a link")):
        with pytest.raises(InputError, match=f"cannot be read: .*({why}).*; do"):
            schema.read_json(tmp_path / name, {}, "do", follow=False)
