"""Tensor files: what was written comes back bit for bit, and nothing else is taken."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from tiled_ref.archive.tensors import layout, read_tensors, write_tensors
from tiled_ref.support.errors import InputError


def test_tensors_come_back_bit_for_bit(tmp_path, rng):
    tensors = {
        "a.b": torch.arange(6).reshape(2, 3),
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 4),
        "bool": torch.tensor([True, False]),
        "half": torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.float16),
        "strided": torch.arange(12, dtype=torch.int32).reshape(3, 4).T[::2],
        "numpy": rng.standard_normal((2, 3)),
    }
    write_tensors(tmp_path / "x.npz", tensors)
    back = read_tensors(tmp_path / "x.npz")
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        wanted = np.asarray(tensor)
        assert back[name].numpy().dtype == wanted.dtype and back[name].shape == wanted.shape
        assert back[name].numpy().tobytes() == wanted.tobytes()
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:  # a file that NumPy reads
        np.testing.assert_array_equal(archive["a.b"], tensors["a.b"])


def test_equal_tensors_give_equal_bytes(tmp_path):
    for name in ("x", "y"):
        write_tensors(tmp_path / name, {"a": torch.arange(5)})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_layout_tells_types_and_shapes_without_the_data(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.zeros(2, 3), "b": torch.tensor([True])})
    assert layout(tmp_path / "x") == {"a": ("float32", (2, 3)), "b": ("bool", (1,))}


def npz(**members):
    """Bytes of a zip file with these members, as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", members.pop("compression", zipfile.ZIP_STORED)) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), **options)
    return buffer.getvalue()


def header(descr="<f4", shape=(2,), fortran=False, data=b"\0" * 8):
    buffer = io.BytesIO()
    fields = {"descr": descr, "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue() + data


def overlapping():
    """A zip file whose directory names one member's bytes ten times."""
    whole = npz(a=header(shape=(250,), data=b"\0" * 1000))
    start = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    entries = [whole[start:end].replace(b"a.npy", b"%c.npy" % c) for c in b"abcdefghij"]
    directory = b"".join(entries)
    tail = bytearray(whole[end:])
    tail[8:12] = len(entries).to_bytes(2, "little") * 2
    tail[12:16] = len(directory).to_bytes(4, "little")
    return whole[:start] + directory + bytes(tail)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


HOSTILE = {
    "empty": (b"", "is damaged"),
    "no zip": (b"x" * 100, "is damaged"),
    "pickle": (pickle.dumps(Bomb()), "is damaged"),
    "pickled objects": (npz(a=npy([Bomb()], allow_pickle=True)), "not a plain tensor but object"),
    "declares more than it has": (npz(a=header(shape=(10**12,))), "declares 4,000,000,000,000"),
    "overflowing shape": (npz(a=header(shape=(2**62, 4))), "declares"),
    "negative shape": (npz(a=header(shape=(-2,))), "has the shape"),
    "too short": (npz(a=header(shape=(4,))), "declares 16 bytes"),
    "too long": (npz(a=header(shape=(1,))), "declares 4 bytes"),
    "zip bomb": (
        npz(a=header(shape=(10**6,), data=b"\0" * 4 * 10**6), compression=zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "big endian": (npz(a=header(descr=">f4")), "not a plain tensor"),
    "strings": (npz(a=header(descr="<U1")), "not a plain tensor"),
    "records": (npz(a=header(descr=[("x", "<f4")])), "not a plain tensor"),
    "columns first": (npz(a=header(fortran=True)), "not a plain tensor"),
    "no bool": (npz(a=header(descr="|b1", data=b"\x02\x01")), "other than 0 and 1"),
    "another version": (npz(a=npy(np.zeros(2), version=(2, 0))), "another .npy format version"),
    "header without end": (npz(a=b"\x93NUMPY\x01\0\xff\xff{" + b" " * 70_000), "damaged"),
    "header of code": (npz(a=header().replace(b"False", b"exit(")), "is damaged"),
    "other member": (npz(**{"a.npy": npy(np.zeros(1))}).replace(b".npy.npy", b".npy.txt"),
                     "is not a tensor"),
    "overlapping members": (overlapping(), "larger than the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence_and_nothing_is_executed(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, sentence = HOSTILE[name]
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(InputError, match=sentence) as caught:
        read_tensors(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "expected, sentence",
    [
        ({"a": ("float32", (3,)), "c": ("int64", (2,))}, "its tensors are not the expected ones"),
        ({"a": ("float32", (3,))}, "its tensors are not the expected ones"),
        ({"a": ("float32", (4,)), "b": ("int64", (2,))}, r"a is float32 \(3,\), expected float32"),
        ({"a": ("float64", (3,)), "b": ("int64", (2,))}, r"a is float32 .* expected float64"),
    ],
)
def test_tensors_that_are_not_the_expected_ones_are_refused(tmp_path, expected, sentence):
    write_tensors(tmp_path / "x", {"a": torch.arange(3.0), "b": torch.arange(2)})
    with pytest.raises(InputError, match=sentence):
        read_tensors(tmp_path / "x", expected)
    assert read_tensors(tmp_path / "x", {"a": ("float32", (3,)), "b": ("int64", (2,))})


def test_every_truncation_and_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "x.npz"
    write_tensors(path, {"a": torch.arange(3.0), "b": torch.arange(2)})
    whole = path.read_bytes()
    wanted = read_tensors(path)
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_tensors(path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = read_tensors(path)
        except InputError:
            continue
        # The rest is what zip does not look at, such as dates: the tensors are the same.
        assert all(torch.equal(found[name], wanted[name]) for name in wanted if name in found)


def test_a_pipe_a_folder_and_nothing_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in (
        ("pipe", "not a regular file"), (".", "cannot be read"), ("none", "No such file")
    ):  # fmt: skip
        with pytest.raises(InputError, match=sentence):
            read_tensors(tmp_path / name)


def test_tensors_of_other_types_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="cannot write a: a tensor of type complex64"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(1, dtype=torch.complex64)})
    assert list(tmp_path.iterdir()) == []
