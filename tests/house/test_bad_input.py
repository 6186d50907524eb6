"""Malformed input of every kind: one sentence, exit status 2, nothing written, bounded memory.

Each case of the table prepares a folder and names the command line and the sentence expected.
The cases run in this process through `cli.main`, which is what `run.py` calls.
"""

import functools
import io
import json
import os
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from toys import rebind, toy_category

import tiled_ref.ensemble
from tiled_ref import cli
from tiled_ref.archive.tensors import read_tensors, write_tensors
from tiled_ref.data.encoders import encode_jpeg, encode_png, encode_tiff
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models.padim import Padim
from tiled_ref.models.weights import find_weights, random_weights
from tiled_ref.setups import SETUPS
from tiled_ref.support.memory import PeakMemory

MEMORY = 400 << 20  # bytes that a case may add to the process; the largest adds about 60 MiB


@pytest.fixture(scope="module")
def templates(tmp_path_factory, tiny_backbone):
    """Folders to copy from: parts (a user's folder), mvtec, visa, ensemble, images."""
    base = tmp_path_factory.mktemp("templates")
    category = toy_category(n_train=3, n_good=2, n_bad=2)

    def put(path, data):
        path = base / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    table = ["object,split,label,image,mask"]
    for k, sample in enumerate((*category.train, *category.test)):
        split = "train" if k < 3 else "test"
        image = encode_png(sample.read_image())
        put(f"parts/{split}/{'' if k < 3 else sample.defect + '/'}{k}.png", image)
        put(f"mvtec/screw/{split}/{sample.defect}/{k}.png", image)
        put(f"visa/pcb1/{k}.png", image)
        mask = ""
        if sample.label:
            data = encode_png(sample.read_mask())
            put(f"parts/ground_truth/square/{k}_mask.png", data)
            put(f"mvtec/screw/ground_truth/square/{k}_mask.png", data)
            mask = f"pcb1/{k}_mask.png"
            put(f"visa/{mask}", data)
        label = "anomaly" if sample.label else "normal"
        table.append(f"pcb1,{split},{label},pcb1/{k}.png,{mask}")
    put("visa/split_csv/1cls.csv", "\n".join(table).encode())
    put("images/a.png", image)
    ensemble = TiledEnsemble(
        SETUPS["SM256"].with_sizes((32, 32)), backbone=tiny_backbone, weights="random"
    ).fit(category.train)
    ensemble.calibrate(category.test, [s.label for s in category.test])
    ensemble.save(base / "ensemble")
    return base


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b"", colour=2):
    """A PNG file that declares a size and holds whatever data."""
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    )


def bmp(width, height):
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0
    )  # fmt: skip


def tiff(width, height):
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (279, 10**9))
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + b"\0\0\0\0"


def jpeg(width, height):
    whole = bytearray(encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    at = whole.index(b"\xff\xc0")
    whole[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(whole)


def cut(data, part=0.5):
    return data[: int(len(data) * part)]


PICTURE = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
BOMB = zlib.compress(b"\0" * (64 << 20))  # 64 KB that unpack to 64 MiB


class Code:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


class Case:
    """A malformed input: prepare(folder) -> arguments; the sentence; data on standard input."""

    def __init__(self, name, prepare, sentence, stdin=b""):
        self.name, self.prepare, self.sentence, self.stdin = name, prepare, sentence, stdin


def image(name, data, sentence, path="parts/train/1.png"):
    """A training image with this content."""

    def prepare(folder):
        (folder / path).write_bytes(data)
        return user(folder)

    return Case(name, prepare, sentence)


def mask(name, data, sentence):
    return image(name, data, sentence, "parts/ground_truth/square/5_mask.png")


def changed(name, change, sentence, arguments=()):
    """The user's folder after change(folder)."""

    def prepare(folder):
        change(folder)
        return [*user(folder), *arguments]

    return Case(name, prepare, sentence)


def user(folder):
    return ["--dataset", "folder", "--root", folder / "parts", *SMALL]


SMALL = ["--setup", "SM256", "--image-size", 32, "--weights", "random"]


def dataset(name, kind, change, sentence):
    """mvtec or visa after change(folder)."""

    def prepare(folder):
        change(folder)
        return ["--dataset", kind, "--root", folder / kind, *SMALL]

    return Case(name, prepare, sentence)


def visa_line(line):
    def change(folder):
        path = folder / "visa/split_csv/1cls.csv"
        path.write_bytes(path.read_bytes() + b"\n" + line)

    return change


def visa_table(data):
    return lambda folder: (folder / "visa/split_csv/1cls.csv").write_bytes(data)


def weights(name, write, sentence):
    def prepare(folder):
        write(folder / "weights.pth")
        return [*user(folder)[:-1], folder / "weights.pth"]

    return Case(name, prepare, sentence)


def predicting(folder, *more):
    return ["--load", folder / "ensemble", "--predict", folder / "images", *more]


def ensemble(name, change, sentence):
    """A saved ensemble after change(its folder)."""

    def prepare(folder):
        change(folder / "ensemble")
        return predicting(folder)

    return Case(name, prepare, sentence)


def manifest(**entries):
    """Change entries of the manifest."""

    def change(folder):
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        for key, value in entries.items():
            content[key] = value
        path.write_text(json.dumps(content))
        rebind(folder)

    return change


def option(name, arguments, sentence):
    return Case(name, lambda folder: [*user(folder), *arguments], sentence)


def predict(name, arguments, sentence, stdin=b""):
    return Case(name, lambda folder: [*predicting(folder), *arguments], sentence, stdin)


def new_image(name, data, sentence, file="b.png"):
    """A new image among others: its row is an error, the others are scored."""

    def prepare(folder):
        path = os.fsencode(folder / "images") + b"/" + os.fsencode(file)
        with open(path, "wb") as out:
            out.write(data)
        return predicting(folder)

    return Case(name, prepare, sentence)


def swap(old, new):
    def change(folder):
        (folder / old).unlink()
        new(folder / old)

    return change


def remove(path):
    return lambda folder: shutil.rmtree(folder / path)


def altered_state(folder):
    """Not a number in a location whose digest agrees with the manifest."""
    from tiled_ref.archive.tensors import file_digest

    path = folder / "location_0_0.npz"
    tensors = read_tensors(path)
    tensors["mean"][0, 0] = float("nan")
    write_tensors(path, tensors)
    text = (folder / "manifest.json").read_text()
    content = json.loads(text)
    content["files"][0]["sha256"] = file_digest(path)
    (folder / "manifest.json").write_text(json.dumps(content))
    rebind(folder)


def flipped(folder):
    path = folder / "location_0_0.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def linked(folder):
    target = folder.parent / "elsewhere.npz"
    (folder / "location_0_0.npz").rename(target)
    (folder / "location_0_0.npz").symlink_to(target)


def escaping(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["files"][0]["location"] = ["../../etc/passwd", 0]
    (folder / "manifest.json").write_text(json.dumps(content))


TABLE = [
    # images
    image("empty image", b"", "1.png is empty (0 bytes)"),
    image("text as an image", b"hello", "1.png is not an image"),
    image("cut PNG", cut(encode_png(PICTURE)), "1.png is damaged"),
    image("cut JPEG", cut(encode_jpeg(PICTURE)), "1.png is damaged"),
    image("PNG header alone", encode_png(PICTURE)[:33], "1.png is not an image"),
    image("PNG of 10^10 px", png(10**5, 10**5), "1.png is too large (Image size "
          "(10000000000 pixels)"),
    image("BMP of 10^10 px", bmp(10**5, 10**5), "Image size (10000000000 pixels)"),
    image("TIFF of 10^10 px", tiff(10**5, 10**5), "Image size (10000000000 pixels)"),
    image("JPEG of 4 * 10^9 px", jpeg(65500, 65500), "Image size (4290250000 pixels)"),
    image("PNG without width", png(0, 40), "1.png"),
    image("PNG that unpacks to too little", png(200, 200, b"\0"), "1.png is damaged"),
    image("bomb in a PNG's text", png(40, 40)[:33] + chunk(b"zTXt", b"k\0\0" + BOMB), "1.png"),
    image("float TIFF", encode_tiff(np.full((40, 40), np.nan, np.float32)), "has floating-point 32-bit samples"),
    image("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a supported format"),
    image("PNG of random chunks", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "1.png"),
    changed("link that leads nowhere", swap("parts/train/1.png", lambda p: p.symlink_to("none")),
            "1.png is broken; repair or remove it"),
    changed("link to itself", swap("parts/train/1.png", lambda p: p.symlink_to("1.png")),
            "1.png is broken; repair or remove it"),
    changed("pipe as an image", swap("parts/train/1.png", os.mkfifo),
            "1.png cannot be read: it is not a regular file"),
    image("image name with a newline", b"x", "new\\nline.png is not an image",
          "parts/train/new\nline.png"),
    # masks
    mask("text as a mask", b"hello", "5_mask.png is not an image"),
    mask("empty mask", b"", "5_mask.png is empty (0 bytes)"),
    mask("cut mask", cut(encode_png(PICTURE)), "5_mask.png is damaged"),
    mask("mask of another size", encode_png(PICTURE > 128), "save the mask at the image's size"),
    mask("JPEG as a mask", encode_jpeg(PICTURE), "uses lossy compression, which blurs"),
    mask("mask of 10^10 px", png(10**5, 10**5), "too large"),
    changed("no mask", lambda f: (f / "parts/ground_truth/square/5_mask.png").unlink(),
            "5_mask.png of the image"),
    changed("two masks", lambda f: (f / "parts/ground_truth/square/5_mask.bmp").write_bytes(b""),
            "are both masks of"),
    # folders
    changed("no root", remove("parts"), "parts does not exist"),
    changed("root that is a file", lambda f: (shutil.rmtree(f / "parts"),
            (f / "parts").write_text("")), "parts is a file; name the folder"),
    changed("empty root", lambda f: (shutil.rmtree(f / "parts"), (f / "parts").mkdir()),
            "holds a folder train; expected: "),
    changed("no test folder", remove("parts/test"), "test does not exist; expected: "),
    changed("empty defect folder", lambda f: (f / "parts/test/scratch").mkdir(),
            "scratch holds no images; fill or remove it"),
    changed("test images without a kind", lambda f: shutil.copy(
            f / "parts/train/0.png", f / "parts/test/0.png"), "holds images outside of good/"),
    changed("training images in two places", lambda f: shutil.copytree(
            f / "parts/train", f / "parts/train/good"), "keep the training images in one"),
    changed("train that is a loop of links", lambda f: (shutil.rmtree(f / "parts/train"),
            (f / "parts/train").symlink_to("train")), "folder train"),
    changed("masks of another name", lambda f: None, "masks is not a folder next to train",
            ["--masks", "masks"]),
    changed("mask that nobody uses", lambda f: shutil.copy(
            f / "parts/ground_truth/square/5_mask.png", f / "parts/ground_truth/square/7.png"),
            "square/7.png belongs to no image in"),
    changed("test images that may be normal", lambda f: (f / "parts/test/good").rename(
            f / "parts/test/OK"), "test/OK hold normal images? If so, rename it to good"),
    changed("masks inside test", lambda f: (f / "parts/ground_truth").rename(
            f / "parts/test/gt"), "test/gt looks like masks"),
    changed("no validation images", lambda f: None, "--validation folder uses the images in",
            ["--validation", "folder"]),
    changed("validation images of no kind", lambda f: shutil.copytree(
            f / "parts/train", f / "parts/validation"), "holds images outside of good/"),
    changed("unknown category", lambda f: None, "there is no category 'none'",
            ["--category", "none"]),
    # MVTec AD and VisA
    dataset("no MVTec category", "mvtec", remove("mvtec/screw"), "no category of MVTec AD is in"),
    dataset("MVTec without a mask", "mvtec", remove("mvtec/screw/ground_truth"), "5_mask.png"),
    dataset("MVTec without train", "mvtec", remove("mvtec/screw/train"), "train does not exist"),
    Case("masks of MVTec", lambda f: ["--dataset", "mvtec", "--root", f / "mvtec", *SMALL,
         "--masks", "gt"], "--masks applies to --dataset folder only; leave it out"),
    dataset("no table of VisA", "visa", remove("visa/split_csv"), "1cls.csv is missing"),
    dataset("empty table", "visa", visa_table(b""), "is not object,split,label,image,mask"),
    dataset("other columns", "visa", visa_table(b"a,b\n1,2\n"), "is not object,split,label"),
    dataset("short line", "visa", visa_line(b"pcb1,test"), "does not have 5 columns"),
    dataset("long line", "visa", visa_line(b"pcb1,test,normal,a,b,c"), "does not have 5 columns"),
    dataset("unknown label", "visa", visa_line(b"pcb1,test,odd,pcb1/0.png,"), "the label 'odd'"),
    dataset("table of other bytes", "visa", visa_line(b"\xff\xfe"), "cannot be read as a table"),
    dataset("open quote", "visa", visa_line(b'pcb1,"test'), "cannot be read as a table"),
    dataset("field without end", "visa", visa_line(b"x" * 200_000), "cannot be read as a table"),
    dataset("image listed twice", "visa", visa_line(b"pcb1,test,normal,pcb1/0.png,"),
            "'pcb1/0.png' on line 9 of "),
    dataset("listed image that is missing", "visa", visa_line(b"pcb1,test,normal,no.png,"),
            "no.png, listed on line"),
    dataset("path out of the root", "visa", visa_line(b"pcb1,test,normal,../secret.png,"),
            "points outside --root"),
    dataset("absolute path", "visa", visa_line(b"pcb1,test,normal,/etc/passwd,"),
            "points outside --root"),
    # weights
    weights("no weights", lambda p: None, "weights.pth: cannot be read"),
    weights("text as weights", lambda p: p.write_text("hello"), "is damaged or not a weights file"),
    weights("code in the weights", lambda p: torch.save({"a": Code()}, p), "is damaged or not a"),
    weights("other tensors", lambda p: torch.save({"conv1.weight": torch.zeros(1)}, p),
            "its tensors are not the official ones"),
    weights("a list as weights", lambda p: torch.save([1], p), "holds no state dict"),
    weights("folder as weights", lambda p: p.mkdir(), "weights.pth: "),
    # saved ensembles
    ensemble("no ensemble", shutil.rmtree, "ensemble does not exist"),
    ensemble("ensemble without manifest", lambda f: (f / "manifest.json").unlink(),
             "holds no manifest.json"),
    ensemble("cut manifest", lambda f: (f / "manifest.json").write_text('{"format": '),
             "manifest.json is damaged or was not written by this program"),
    ensemble("deep manifest", lambda f: (f / "manifest.json").write_text("[" * 10**5),
             "manifest.json is damaged or was not written by this program"),
    ensemble("foreign manifest", lambda f: (f / "manifest.json").write_text("{}"),
             "has no entry format); restore it"),
    ensemble("huge sigma in a manifest", manifest(seam_sigma=1e6), "not a number from 0 to 32"),
    ensemble("no thresholds", lambda f: (f / "thresholds.json").unlink(),
             "thresholds.json cannot be read: No such file"),
    ensemble("cut thresholds", lambda f: (f / "thresholds.json").write_text('{"format": '),
             "thresholds.json is damaged or was not written by this program"),
    ensemble("newer format", manifest(format_version=9), "written by a newer version of tiled-ref"),
    ensemble("other weights", manifest(backbone_digest="0" * 64), "with other backbone weights"),
    ensemble("other torch", manifest(versions={"torch": "1.0.0"}), "--allow-version-change"),
    ensemble("huge setup", manifest(setup={"name": "x", "kind": "ENS", "image_size": [10**6] * 2,
             "tile_size": [1, 1], "stride": [1, 1]}), "cut an image into 1,000,000,000,000"),
    ensemble("missing location", lambda f: (f / "location_0_0.npz").unlink(),
             "of tile location (0, 0) cannot be read: No such file"),
    ensemble("cut location", lambda f: os.truncate(f / "location_0_0.npz", 999), "999 bytes, not"),
    ensemble("flipped bit", flipped, "its SHA-256 differs from the manifest's"),
    ensemble("linked location", linked, "cannot be read: it is a link"),
    ensemble("path in the manifest", escaping, "its entry files[0].location[0] is"),
    ensemble("not a number in a model", altered_state, "not finite in mean"),
    # new images for a saved ensemble
    new_image("one bad image among good ones", b"x", "b.png is not an image"),
    new_image("a bad name", b"x", "\\xff.png is not an image", os.fsdecode(b"\xff.png")),
    new_image("a bomb among good ones", png(10**5, 10**5), "Image size (10000000000 pixels)"),
    predict("nothing to predict", ["--predict", "no/such"], "no such file or folder"),
    predict("no list", ["--predict", "-"], "no paths on standard input"),
    predict("a list of nothing", ["--predict", "-"], "no/such.png does not exist",
            b"no/such.png\n"),
    predict("setup of a saved ensemble", ["--setup", "ENS4"], "--setup does not apply to a saved"),
    Case("folder without images", lambda f: (shutil.rmtree(f / "images"), (f / "images").mkdir(),
         predicting(f))[2], "images holds no images"),
    predict("lines with a NUL", ["--predict", "-"], "a list of lines holds a NUL; separate all",
            b"\n" * 65_536 + b"no/such.png\0"),
    predict("a path without end", ["--predict", "-"], "a path has more than 65,536 bytes",
            b"n" * 70_000),
    Case("load without predict", lambda f: ["--load", f], "give --load DIR and exactly one of"),
    Case("watch without load", lambda f: ["--watch", f], "give --load DIR and exactly one of"),
    predict("watch and predict", ["--watch", "no"], "give --load DIR and exactly one of --predict"),
    Case("nothing to watch", lambda f: [*predicting(f)[:2], "--watch", "no"], "no such folder"),
    # arguments
    option("predict without load", ["--pictures", "all"], "--pictures needs a saved ensemble"),
    option("tile above image", ["--setup", "ENS4", "--tile-size", 64], "than the image's 32"),
    option("stride > tile", ["--setup", "ENS4", "--tile-size", 16, "--stride", 17], "uncovered"),
    option("stride of an SM setup", ["--stride", 8], "SM256 has no tiles"),
    option("images beyond the disk", ["--image-size", 10**6], "make room, choose another --out"),
    option("images beyond numbers", ["--image-size", 10**15], "at most 1,048,576; see"),
    option("tiles beyond numbers", ["--setup", "ENS4", "--image-size", 10**6, "--tile-size", 1,
           "--stride", 1], "into 1,000,000,000,000 tiles, more than 65,536"),
    option("sigma above the image", ["--seam-sigma", "33"], "at most the image's larger side, not"),
    option("sigma beyond all images", ["--seam-sigma", "1e7"], "'1e7' is not a positive number"),
    option("too many threads", ["--threads", 100_000], "of at least 1 and at most"),
    option("batch beyond all", ["--batch-size", 65537], "of at least 1 and at most 65,536"),
    option("seed beyond torch", ["--seed", 2**63], "of at least 0 and at most 9,223,372,036,"),
    option("steps without end", ["--steps", 10**6], "of at least 1 and at most 100,000"),
    option("pixels beyond memory", ["--max-pixels", 2**40], "at most 1,099,511,627,775"),
    option("a number of 5,000 digits", ["--seed", "9" * 5000], "is not a whole number of at least"),
    option("bytes of 400 digits", ["--memory", "9" * 400 + "TiB"], "a cap in bytes"),
    option("device beyond all", ["--device", "cuda:128"], "is not one of auto, cpu, cuda"),
    option("folder of a long name", ["--root", "n" * 300, "--dataset", "folder"], "n" * 300),
    Case("ensemble of a long name", lambda f: ["--load", "n" * 300, "--predict", f], "n" * 300),
    predict("image of a long name", ["--predict", "n" * 300], "File name too long"),
    predict("a list of long names", ["--predict", "-"], "name too long", b"n" * 300 + b".png\n"),
    option("percentile of zero", ["--percentile", 0], "'0' is not a number above 0 and at"),
    option("percentile that is none", ["--percentile", "nan"], "'nan' is not a number above 0"),
    option("unknown validation", ["--validation", "half"], "invalid choice: 'half'"),
    option("no threads", ["--threads", 0], "'0' is not a whole number of at least 1"),
    option("size of three", ["--image-size", "1x2x3"], "is not a size such as"),
    option("no such device", ["--device", "tpu"], "is not one of auto, cpu, cuda"),
    option("out that is a file", ["--out", __file__], "cannot create the folder"),
]  # fmt: skip


@pytest.fixture
def place(templates, tmp_path):
    """A copy of the templates, and an empty folder to run in."""
    for name in os.listdir(templates):
        shutil.copytree(templates / name, tmp_path / name)
    return tmp_path


random_once = functools.cache(random_weights)


def find_weights_once(source, **options):
    return random_once() if source == "random" else find_weights(source, **options)


def written(folder):
    """Files of results below a folder."""
    results = ("metrics.json", "results.csv", "manifest.json", "predictions.csv")
    return [path.name for path in folder.rglob("*") if path.name in results or ".tmp" in path.name]


def test_the_table_is_large_enough():
    assert len(TABLE) >= 60 and len({case.name for case in TABLE}) == len(TABLE)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_malformed_input_is_one_sentence(place, case, capsys, monkeypatch):
    (place / "cwd").mkdir()
    monkeypatch.chdir(place / "cwd")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(case.stdin)))
    arguments = case.prepare(place)
    if "--out" not in arguments:
        arguments = [*arguments, "--out", place / "out"]
    for module in (cli, tiled_ref.ensemble):  # drawing them anew takes longer than all the rest
        monkeypatch.setattr(module, "find_weights", find_weights_once)
    peak = PeakMemory("cpu")
    before = peak.read()["peak_memory_bytes"]
    try:
        status = cli.main([str(part) for part in [*arguments, "--device", "cpu"]])
    except SystemExit as stop:  # argparse
        status = stop.code
    grown = peak.read()["peak_memory_bytes"] - before
    out, err = capsys.readouterr()
    assert status == 2
    errors = [line for line in err.splitlines() if line.startswith("tiled-ref: error: ")]
    assert len(errors) == 1 and case.sentence in errors[0], err
    assert "Traceback" not in err and "Warning" not in err
    if not peak.since_start:
        assert grown < MEMORY
    assert not (place / "cwd/exploded").exists()
    if "could not be scored" in out:  # the rest was scored
        table = (place / "out/predictions.csv").read_text().splitlines()
        assert sum(",error," in line for line in table) == 1
    elif (place / "out").is_dir():
        assert written(place / "out") == []


def test_a_bad_mask_is_found_before_the_training(place, capsys, monkeypatch):
    def train(*args, **kwargs):
        raise AssertionError("the training has begun")

    monkeypatch.setattr(Padim, "fit", train)
    monkeypatch.setattr(cli, "find_weights", find_weights_once)
    (place / "parts/ground_truth/square/5_mask.png").write_bytes(b"x")
    arguments = [*user(place), "--out", place / "out", "--device", "cpu"]
    assert cli.main([str(part) for part in arguments]) == 2
    assert "5_mask.png is not an image" in capsys.readouterr().err
