"""What a cell leaves is one run's, and what is reused is what was written."""

import json
import os

import numpy as np
import pytest
from toys import Notes, toy_category, write_category

from tiled_ref.archive.manifest import MANIFEST
from tiled_ref.data import folder as folder_data
from tiled_ref.reporting.collection import Collection
from tiled_ref.running import analysis, cell, pieces, results, stored_images
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.running.lock import OutputLock
from tiled_ref.running.pieces import Pieces
from tiled_ref.setups import Recipe, Setup
from tiled_ref.support.errors import InputError

TWO = Setup("ENS-48-48-24", "ENS", (24, 48), (24, 24), (24, 24))  # two tiles
CATEGORY = toy_category(n_train=3, n_good=2, n_bad=2, side=48)
FREE = ("seconds", "memory", "versions", "folder")


def run(backbone, out, category=CATEGORY, recipe=None, **options):
    """(result without what may differ, notes) of one cell."""
    progress = Notes()
    options = Options(out=out, weights="random", **options)
    images = CategoryImages(category, options, progress)
    recipe = recipe or Recipe(TWO)
    result = run_cell(recipe, images, backbone, options, progress)
    kept = {k: v for k, v in result.items() if not any(word in k for word in FREE)}
    return kept, progress.notes


def only(folder, name):
    (path,) = folder.rglob(name)
    return path


def identities(out):
    """The identity in every file of the only cell."""
    place = only(out, "seed42")
    found = {}
    if (place / "metrics.json").exists():
        found["metrics"] = results.read_result(place / "metrics.json")["identity"]
    if (place / "analysis.npz").exists():
        found["analysis"] = analysis.load_analysis(place).identity
    if (place / "ensemble").exists():
        found["ensemble"] = pieces.identity_in(place / "ensemble" / MANIFEST)
    return found


class Killed(BaseException):
    """The process ends here."""


def test_results_of_two_runs_are_never_mixed(tiny_backbone, tmp_path, monkeypatch):
    """Run A; run B of the same cell dies before its metrics.json; A again."""
    mine, _ = run(tiny_backbone, tmp_path, save=True, report=True)
    assert list(identities(tmp_path).values()) == [mine["identity"]] * 3

    def killed(*args):
        raise Killed

    for name in ("save_result", "save_analysis"):
        other = Recipe(TWO, seam_sigma=3.0)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            owner = results if name == "save_result" else analysis
            patched.setattr(owner, name, killed)
            run(tiny_backbone, tmp_path, recipe=other, save=True, report=True)
        assert mine["identity"] not in identities(tmp_path).values()
        again, notes = run(tiny_backbone, tmp_path, save=True, report=True, resume=True)
        assert again == mine and not [note for note in notes if "finished before" in note]
        assert set(identities(tmp_path).values()) == {mine["identity"]}
        assert not (only(tmp_path, "seed42") / "partial").exists()
    _, notes = run(tiny_backbone, tmp_path, save=True, report=True, resume=True)
    assert "finished before" in notes[-1]


def test_an_ensemble_of_another_run_keeps_its_files_but_not_its_name(tiny_backbone, tmp_path):
    mine, _ = run(tiny_backbone, tmp_path, save=True)
    states = [path.read_bytes() for path in sorted(tmp_path.rglob("location_*.npz"))]
    for _ in range(2):
        other, notes = run(tiny_backbone, tmp_path, recipe=Recipe(TWO, seam_sigma=3.0))
        assert set(identities(tmp_path).values()) == {other["identity"]}
    aside = only(tmp_path, MANIFEST).parent
    assert aside.name.startswith("ensemble-")
    assert pieces.identity_in(aside / MANIFEST) == mine["identity"]
    assert [path.read_bytes() for path in sorted(aside.rglob("location_*.npz"))] == states


def test_a_file_that_a_user_put_into_an_ensemble_is_kept(tiny_backbone, tmp_path, monkeypatch):
    """Into one that is to be replaced during the run, and into one that was put aside."""
    run(tiny_backbone, tmp_path, save=True)
    other = Recipe(TWO, seam_sigma=3.0)
    notes = only(tmp_path, MANIFEST).parent / "notes.txt"

    def write_notes(*args, merge_rows=cell.merge_rows, **options):
        notes.write_text("mine")
        return merge_rows(*args, **options)

    with monkeypatch.context() as patched, pytest.raises(InputError, match="notes.txt"):
        patched.setattr(cell, "merge_rows", write_notes)
        run(tiny_backbone, tmp_path, recipe=other, save=True)
    assert len(set(identities(tmp_path).values())) == 1 and len(identities(tmp_path)) == 2
    notes.unlink()
    run(tiny_backbone, tmp_path, recipe=other)
    run(tiny_backbone, tmp_path, save=True)
    aside = only(tmp_path, "ensemble-*")
    (aside / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):  # the same bytes: it would be replaced
        run(tiny_backbone, tmp_path, recipe=other)
    assert (aside / "notes.txt").read_text() == "mine"


def test_a_report_leaves_out_an_analysis_of_another_run(tiny_backbone, tmp_path):
    run(tiny_backbone, tmp_path, report=True)
    path = only(tmp_path, "analysis.npz")
    before = path.read_bytes()
    run(tiny_backbone, tmp_path, recipe=Recipe(TWO, seam_sigma=3.0), report=True)
    assert Collection(tmp_path).without == []
    path.write_bytes(before)
    assert Collection(tmp_path).without == [path.parent]


def test_a_result_of_an_older_version_is_read_and_computed_again(tiny_backbone, tmp_path):
    mine, _ = run(tiny_backbone, tmp_path)
    path = only(tmp_path, "metrics.json")
    old = json.loads(path.read_text())
    del old["identity"], old["digest"]
    path.write_text(json.dumps(old))
    assert results.read_result(path)["image_auroc"] == mine["image_auroc"]
    again, notes = run(tiny_backbone, tmp_path, resume=True)
    assert again == mine
    assert any("finished by an older version, so it is computed again" in note for note in notes)


def unfinished(backbone, out, monkeypatch, **options):
    """A run that dies after its last tile location."""

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(cell, "merge_rows", killed)
        run(backbone, out, **options)
    return only(out, "partial")


DAMAGE = {
    "truncated": lambda data: data[:-5],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "half zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
    "longer": lambda data: data[:40] + b"\0" + data[40:],
}


NAMES = ("maps_0_1.npy", "scores_0_1.npz", "fit_0_1.json", "ensemble/location_0_1.npz")


@pytest.mark.parametrize(
    "name, damage",
    [("maps_0_1.npy", "not finite"),
     *((name, damage) for name in NAMES for damage in (*DAMAGE, "of another", "missing"))],
)  # fmt: skip
def test_a_damaged_piece_is_computed_again_and_said(
    tiny_backbone, tmp_path, monkeypatch, name, damage
):
    whole, _ = run(tiny_backbone, None, save=True)
    place = unfinished(tiny_backbone, tmp_path, monkeypatch, save=True)
    path = place / name
    if damage == "not finite":
        values = np.load(path)
        values[0, 3, 4] = np.nan
        np.save(path, values)
    elif damage == "of another":
        path.write_bytes((place / name.replace("0_1", "0_0")).read_bytes())
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    again, notes = run(tiny_backbone, tmp_path, save=True, resume=True)
    assert again == whole
    said = [note for note in notes if "computed again" in note]
    if damage == "missing" and name != "maps_0_1.npy":
        assert said == []
    else:
        assert len(said) == 1 and "_0_1" in said[0] and len(said[0]) < 400, notes
    assert not place.exists()


def test_pieces_of_another_identity_are_not_taken(tmp_path):
    """Even under the same names: the digest of a piece is one of its run as well."""
    for mark in "ab":
        mine = Pieces(tmp_path / mark, {"identity": mark}, save=True)
        mine[0, 0] = {"a": np.zeros(3, np.float32)}
        maps = np.ones((2, 3, 4), np.float32)
        mine.add((0, 0), slice(0, 2), 2, maps, maps[:, 0, 0])
        mine._files.close()
    for name in ("maps_0_0.npy", "scores_0_0.npz"):
        os.replace(tmp_path / "b/partial" / name, tmp_path / "a/partial" / name)
    notes = []
    assert not Pieces(
        tmp_path / "a", {"identity": "a"}, resume=True, save=True, note=notes.append
    ).is_done((0, 0))
    assert "it has a digest that does not match its content" in notes[-1]
    assert Pieces(tmp_path / "a", {"identity": "a"}, joins=True).is_done((0, 0)) is False


def test_a_process_that_sees_other_images_does_not_join(tmp_path):
    Pieces(tmp_path, {"identity": "a", "images_digest": "1"})
    with pytest.raises(InputError, match="images_digest was 1, is 2"):
        Pieces(tmp_path, {"identity": "b", "images_digest": "2"}, joins=True)


@pytest.fixture
def parts(tmp_path):
    """A folder of images of its own."""
    write_category(tmp_path / "a/parts", CATEGORY, train="train")
    return tmp_path / "a/parts"


def change_pixel(path):
    """Change a file's content, but neither its size nor its time."""
    data, status = bytearray(path.read_bytes()), path.stat()
    data[-20] ^= 1  # in the checksum of the last data: it need not be decoded
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns


@pytest.mark.parametrize(
    "name", ["train/001.png", "test/good/000.png", "ground_truth/square/002_mask.png"]
)
def test_changed_content_of_the_same_size_and_time_is_found(parts, name):
    options = Options(weights="random")

    def identity():
        category = folder_data.load(parts, "parts")
        return results.cell_identity(
            Recipe(TWO), CategoryImages(category, options, Notes()), options
        )["identity"]

    before = identity()
    assert identity() == before
    os.utime(parts / name)  # another time alone is no change
    assert identity() == before
    change_pixel(parts / name)
    assert identity() != before


def test_a_finished_cell_of_changed_images_is_computed_again(tiny_backbone, parts, tmp_path):
    out = tmp_path / "out"
    run(tiny_backbone, out, folder_data.load(parts, "parts"))
    _, notes = run(tiny_backbone, out, folder_data.load(parts, "parts"), resume=True)
    assert "finished before" in notes[-1]
    write_category(parts, toy_category(n_train=4, n_good=2, n_bad=2, side=48), train="train")
    _, notes = run(tiny_backbone, out, folder_data.load(parts, "parts"), resume=True)
    assert any("with other options or images, so it is computed again" in note for note in notes)


@pytest.mark.parametrize("name", ["train/001.png", "ground_truth/square/002_mask.png"])
def test_a_file_that_is_changed_during_the_run_is_named(
    tiny_backbone, parts, tmp_path, monkeypatch, name
):
    """Once it is as it was, the run can be resumed."""
    other = next(p for p in sorted((parts / name).parent.iterdir()) if p.name not in name)
    before = (parts / name).read_bytes()

    def change(*args, merge_rows=cell.merge_rows, **options):
        (parts / name).write_bytes(other.read_bytes())
        return merge_rows(*args, **options)

    with monkeypatch.context() as patched, pytest.raises(InputError, match="during the run"):
        patched.setattr(cell, "merge_rows", change)
        run(tiny_backbone, tmp_path / "out", folder_data.load(parts, "parts"), report=True)
    assert not list((tmp_path / "out").rglob("metrics.json"))
    (parts / name).write_bytes(before)
    category = folder_data.load(parts, "parts")

    def touch(*args, merge_rows=cell.merge_rows, **options):
        os.utime(parts / name)  # another time alone is no change
        return merge_rows(*args, **options)

    monkeypatch.setattr(cell, "merge_rows", touch)
    again, _ = run(tiny_backbone, tmp_path / "out", category, report=True, resume=True)
    assert again == run(tiny_backbone, None, category)[0]


def test_two_folders_of_one_name_do_not_share_a_cell(tiny_backbone, parts, tmp_path):
    out, other = tmp_path / "out", tmp_path / "b/parts"
    mine, _ = run(tiny_backbone, out, folder_data.load(parts, "parts"))
    write_category(other, toy_category(n_train=4, n_good=2, n_bad=2, side=48), train="train")
    path = only(out, "metrics.json")
    before = path.read_bytes()
    for recipe in (Recipe(TWO), Recipe(TWO, seed=5)):
        for resume in (False, True):
            with pytest.raises(InputError, match="choose another --out") as error:
                run(tiny_backbone, out, folder_data.load(other, "parts"), recipe, resume=resume)
            assert str(parts.resolve()) in str(error.value) and str(other) in str(error.value)
    assert path.read_bytes() == before
    moved = parts.rename(tmp_path / "parts")  # the same images, in another place
    again, notes = run(tiny_backbone, out, folder_data.load(moved, "parts"), resume=True)
    assert "finished before" in notes[-1] and again == mine


def test_only_files_that_a_dead_process_of_this_program_wrote_are_removed(tmp_path):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    ours = {
        "": ("results.csv", "rank"), "cell": ("metrics.json", "analysis.npz"),
        "cell/partial": ("run.json", "fit_0_12.json", "merged.npy", "maps_3_0.npy", "fit_1_1.json"),
        "cell/partial/ensemble": ("manifest.json", "location_10_2.npz"),
    }  # fmt: skip
    theirs = {".notes.tmp", f".notes.{pid}.tmp", ".results.csv.tmp", ".notes.txt", "notes.1.tmp"}
    theirs |= {f".{name}.{os.getppid()}.tmp" for names in ours.values() for name in names}
    Pieces(tmp_path / "cell", {})
    for folder, names in ours.items():
        for name in [*theirs, *(f".{name}.{pid}.tmp" for name in names)]:
            (tmp_path / folder / name).write_text("x")
    with OutputLock(tmp_path):
        Pieces(tmp_path / "cell", {}, resume=True)
    for folder in ours:
        assert theirs == {path.name for path in (tmp_path / folder).glob("*notes*")} | {
            path.name for path in (tmp_path / folder).glob(".*.tmp")
        }


def test_a_users_file_of_the_locks_name_is_kept(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with OutputLock(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "mine"


def test_a_folder_that_cannot_be_changed_is_one_sentence(tmp_path, monkeypatch):
    def fails(*names, **options):
        raise PermissionError(13, "Permission denied", "a file")

    for mark, name in (("a", "replace"), ("b", "unlink")):
        Pieces(tmp_path, {"identity": mark}, save=True).publish()
        (tmp_path / "ensemble" / MANIFEST).write_text(json.dumps({"identity": mark}))
        with monkeypatch.context() as patched, pytest.raises(InputError, match="cannot write"):
            patched.setattr(os, name, fails)
            Pieces(tmp_path, {"identity": mark}, save=True, resume=mark == "a")
        Pieces(tmp_path, {"identity": mark}, save=True)


WRONG = {"setup": [], "image_auroc": "0.9", "n_test": -1, "seed": None, "image_size": [1],
         "seconds_train": {}, "dataset": 3, "n_masks": "many", "thresholds": 7,
         "switches": [], "batch_size": True}  # fmt: skip


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_type_in_a_result_is_one_sentence(tiny_backbone, tmp_path, key, signed):
    run(tiny_backbone, tmp_path)
    path = only(tmp_path, "metrics.json")
    result = json.loads(path.read_text())
    del result["digest"]
    result[key] = WRONG[key]
    if signed:
        result["digest"] = results.json_digest(result)
    path.write_text(json.dumps(result))
    with pytest.raises(InputError, match="metrics.json is damaged or was not written by") as error:
        Collection(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("name", ["analysis.npz", "images.npz"])
def test_a_wrong_type_in_an_array_file_is_one_sentence(tiny_backbone, tmp_path, name):
    run(tiny_backbone, tmp_path, report=True)
    path = only(tmp_path, name)
    load = analysis.load_analysis if name == "analysis.npz" else stored_images.load_images
    load(path.parent)
    arrays = dict(np.load(path))
    for key, value in arrays.items():
        if key in ("schema", "identity") or not value.size:
            continue
        changes = [{key: value[..., None]}, {key: value.astype("complex64")}]
        if key in analysis.CURVES:
            changes[0] = {key: value[:1]}
        elif f"{key}?" not in analysis.ARRAYS:  # which older files lack
            changes.append({})
        for change in changes:
            others = {k: v for k, v in arrays.items() if k != key}
            np.savez_compressed(path, **others, **change)
            with pytest.raises(InputError, match=f"{name} is damaged"):
                load(path.parent)
