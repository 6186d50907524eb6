"""The grid of cells: order, sharing, failures, what is left to do."""

import collections
import gc
import io
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up import made_up_result, small
from toys import toy_category, write_category

from tiled_ref import cli
from tiled_ref.models import MODELS
from tiled_ref.running import sweep
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.running.pieces import Pieces
from tiled_ref.setups import SETUPS, Recipe
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress

SM, ENS = SETUPS["SM256"], SETUPS["ENS4"]


def planned(*names):
    return [sweep.Planned("toys", name, lambda name=name: small(name)) for name in names]


def recipes(archs=("padim",), setups=(SM, ENS), seeds=(42, 33), **more):
    return [Recipe(s, a, k, **more) for a in archs for s in setups for k in seeds]


def a_sweep(plan, cells, backbone=None, debug=False, stream=None, **options):
    stream = stream or io.StringIO()
    options = Options(**options)
    return sweep.Sweep(plan, cells, backbone, options, Progress(stream=stream), debug)


def through(whole, cell):
    """The results of all cells; cell(recipe, images, backbone) stands for run_cell."""
    results = []
    for recipe, images, backbone in whole.cells():
        with whole.caught(f"toys {images.category.name} {recipe.arch} {recipe.setup.name} "
                          f"seed {recipe.seed}"):  # fmt: skip
            results.append(cell(recipe, images, backbone))
    return results


def run(plan, cell, cells=None, **options):
    stream = io.StringIO()
    whole = a_sweep(plan, cells or recipes(), stream=stream, **options)
    return through(whole, cell), whole.failures, stream.getvalue()


def answer(recipe, images, backbone):
    name = images.category.name
    return made_up_result("toys", name, recipe.arch, recipe.setup.name, recipe.seed)


def test_every_cell_runs_once_and_shares_the_categorys_images():
    archs, seen = ("padim", "patchcore"), []
    table = [(c, a, s, k) for c in "ab" for a in archs for s in ("SM256", "ENS4") for k in (42, 33)]

    def cell(recipe, images, backbone):
        seen.append(id(images))
        return answer(recipe, images, backbone)

    results, failures, _ = run(planned("a", "b"), cell, recipes(archs))
    assert len(set(seen[:8])) == 1 and not failures
    keys = ("category", "arch", "setup", "seed")
    assert [tuple(result[key] for key in keys) for result in results] == table


def test_failures_come_in_the_order_of_the_table():
    def cell(*_):
        raise InputError("x")

    _, failures, _ = run(planned("a"), cell, recipes(("padim", "patchcore"), seeds=(42,)))
    assert [failure.cell for failure in failures] == [
        f"toys a {a} {s} seed 42" for a in ("padim", "patchcore") for s in ("SM256", "ENS4")
    ]


def test_a_category_is_released_before_the_next():
    alive = []

    def cell(recipe, images, backbone):
        if images.category.name == "b":
            gc.collect()
            assert all(reference() is None for reference in alive)
        else:
            alive.append(weakref.ref(images))
            if recipe.setup is ENS:
                raise InputError("an error keeps its traceback, and that the images")
        return answer(recipe, images, backbone)

    results, failures, _ = run(planned("a", "b"), cell)
    assert len(alive) == 4 and len(results) == 6
    assert all("keeps its traceback" in str(failure) for failure in failures), failures


def test_a_failing_cell_is_told_and_the_others_go_on():
    def cell(recipe, images, backbone):
        if images.category.name == "a" and recipe.seed == 33:
            raise InputError("the image x is damaged")
        if recipe.setup is ENS:
            raise ZeroDivisionError("by zero")
        return answer(recipe, images, backbone)

    results, failures, said = run(planned("a", "b"), cell)
    assert len(results) == 3 and len(failures) == 5
    assert "failed: toys a padim SM256 seed 33: the image x is damaged" in said
    assert "ZeroDivisionError: by zero" in str(failures[-1]) and "cells: 8/8" in said
    assert sweep.exit_status(failures) == 1
    assert sweep.exit_status([f for f in failures if f.is_input]) == 2
    assert sweep.exit_status([]) == 0


def test_a_category_that_cannot_be_loaded_is_told_and_the_others_go_on():
    def broken():
        raise InputError("the mask m is missing")

    plan = [sweep.Planned("toys", "a", broken), *planned("b")]
    results, failures, said = run(plan, answer)
    assert len(results) == 4 and [str(f) for f in failures] == ["toys a: the mask m is missing"]
    assert "cells: 8/8 done\n" in said and "cells: 5/8 done" in said


def test_memory_that_ran_out_is_the_users_to_change():
    def cell(*args):
        raise MemoryError("big. And more")

    _, failures, _ = run(planned("a"), cell)
    assert "out of memory (big); choose a smaller --batch-size" in str(failures[0])
    assert sweep.exit_status(failures) == 2


def test_debug_shows_where_a_cell_failed(capsys):
    def cell(*args):
        raise ZeroDivisionError("by zero")

    _, failures, _ = run(planned("a"), cell, recipes(setups=(SM,)), debug=True)
    assert len(failures) == 2 and capsys.readouterr().err.count("Traceback") == 2
    run(planned("a"), cell, recipes(setups=(SM,)))
    assert "Traceback" not in capsys.readouterr().err


def test_what_other_processes_report_is_told_once_and_their_cells_left_out(tmp_path, monkeypatch):
    others = [("toys a padim SM256 seed 33", "the image x is damaged", True),
            ("toys b", "the mask m is missing", True)]  # fmt: skip
    monkeypatch.setattr(sweep, "gather_results", lambda cells, options: cells)
    whole = a_sweep(planned("a", "b"), recipes(), out=tmp_path)
    whole.failures.append(sweep.Failure("toys b", "the mask m is missing", True))
    cells, failures = sweep.gather(whole, others)
    assert [str(f) for f in failures] == [
        "toys a padim SM256 seed 33: the image x is damaged", "toys b: the mask m is missing"
    ]  # fmt: skip
    assert [(entry.name, r.setup.name, r.seed) for entry, r in cells] == [
        ("a", "SM256", 42), ("a", "ENS4", 42), ("a", "ENS4", 33)
    ]  # fmt: skip


def test_without_room_in_the_temporary_folder_nothing_is_shared(monkeypatch):
    monkeypatch.setattr(sweep, "budget_within", lambda n_bytes: 0)
    seen, said = backbones(["SM256", "ENS9"], seeds=(42, 33))
    assert seen == [(None, None)] * 4
    assert "no temporary folder has space, so no layers are shared" in said


def test_an_interrupt_is_no_failure():
    def cell(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(planned("a"), cell)


def test_the_only_cell_of_a_grid_raises_what_it_raises():
    def cell(*args):
        raise InputError("x")

    with pytest.raises(InputError):
        run(planned("a"), cell, recipes(setups=(SM,), seeds=(42,)))


# -------------------------------------------------------------------------- shared layers


def backbones(setups, seeds=(42,), method=None, **options):
    """The SharedLayers that each cell of a category finds, and whether it keeps what is new."""
    seen = []

    def cell(recipe, images, backbone):
        seen.append((backbone, backbone and backbone.keeps))
        return answer(recipe, images, backbone)

    cells = recipes(setups=[SETUPS[name] for name in setups], seeds=seeds, **method or {})
    return seen, run(planned("a"), cell, cells, **options)[2]


def test_cells_share_layers_and_keep_what_a_later_one_asks_for():
    seen, said = backbones(["SM256", "ST9", "SM512", "ENS9", "ENS4"])
    assert len({id(shared) for shared, _ in seen}) == 1 and seen[0][0] is not None
    assert [keeps for _, keeps in seen] == [False, True, False, True, False]
    assert "a: 5 cells share the layers of the backbone, within" in said


@pytest.mark.parametrize(
    "setups, more",
    [
        (["ENS9"], {}),
        (["ST9", "ENS9"], {"share_features": 0}),
        (["ST9", "ENS9"], {"method": {"precision": "bfloat16"}}),
        (["ST9", "ENS9"], {"device": torch.device("cuda")}),
        (["ST9", "ENS9"], {"ranks": SimpleNamespace(size=2)}),
    ],
    ids=str,
)
def test_nothing_is_kept_for_nobody(setups, more):
    seen, said = backbones(setups, **more)
    assert seen == [(None, None)] * len(setups) and "share the layers" not in said


def test_shared_layers_end_with_their_category():
    ended, seen = [], []

    def cell(recipe, images, backbone):
        seen.append(backbone)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep.SharedLayers, "__exit__", lambda layers, *_: ended.append(layers))
        run(planned("a", "b"), cell)
    assert ended == [seen[0], seen[4]] and seen[0] is seen[3] is not seen[4]


def timeless(result):
    kept = {k: v for k, v in result.items() if "seconds" not in k and "memory" not in k}
    return {k: v for k, v in kept.items() if k != "features_reused"}


def analyses(out):
    """The content of every analysis.npz below a folder: scores, curves and recall in full."""
    found = {}
    for path in sorted(out.rglob("analysis.npz")):
        with np.load(path) as data:
            found[str(path.relative_to(out))] = {k: data[k].tobytes() for k in data.files}
    return found


def toy_grid(backbone, out, archs, setups, seeds, budget):
    """Every result of a small category, and what was kept for a report."""
    options = Options(out=out, share_features=budget, report=True)
    plan = [sweep.Planned("toys", "toy", lambda: toy_category(n_train=3, n_good=2, n_bad=2))]
    switches = {arch: {"steps": 2} for arch in ("fastflow", "reverse_distillation")}
    cells = [Recipe(s, a, k, None, switches.get(a)) for a in archs for s in setups for k in seeds]
    whole = sweep.Sweep(plan, cells, backbone, options, Progress(quiet=True))
    results = through(whole, lambda *cell: run_cell(*cell, options, whole.progress))
    assert not whole.failures
    return results, analyses(out)


@pytest.mark.parametrize(
    "archs, tiled, seeds",
    [
        (["padim", "patchcore"], ["ENS4", "ST9", "ENS9"], (42, 33)),
        (["fastflow", "reverse_distillation"], ["ST4", "ENS4"], (42,)),
    ],
    ids=str,
)
def test_shared_layers_change_no_bit(tiny_backbone, tmp_path, archs, tiled, seeds):
    """All architectures, kinds of setup and seeds: metrics, scores and curves are those of cells
    that compute everything themselves, also where not everything could be kept."""
    setups = [SM.with_sizes((64, 64))]
    setups += [SETUPS[name].with_sizes((64, 64), (32, 32)) for name in tiled]
    apart, expected = toy_grid(tiny_backbone, tmp_path / "apart", archs, setups, seeds, 0)
    assert len(expected) == len(archs) * len(setups) * len(seeds)
    assert {result["features_reused"] for result in apart} == {0.0}
    parts = []
    for name, budget in (("shared", 1 << 30), ("full", 400_000)):
        results, found = toy_grid(tiny_backbone, tmp_path / name, archs, setups, seeds, budget)
        assert list(map(timeless, results)) == list(map(timeless, apart)) and found == expected
        parts.append([result["features_reused"] for result in results])
    if "ENS9" in tiled:  # ENS4 computes its tiles, 4 of the 9 of ST9 are among them, ENS9 none
        assert parts[0] == pytest.approx([0, 1, 0, 1, 4 / 9, 1, 1, 1] + 8 * [1.0])
    assert 0 < sum(parts[1]) < sum(parts[0])


def test_the_part_reused_is_that_of_all_pieces(tmp_path):
    """What an earlier process did counts: 3 of 4 and 1 of 12 images are 4 of 16."""
    for folder in (None, tmp_path):
        network = SimpleNamespace(asked=0, reused=0)
        with Pieces(folder, {"a": 1}, network=network) as pieces:
            assert pieces.costs([])[2] == 0.0
            for location, asked, reused in (((0, 0), 4, 3), ((0, 1), 12, 1)):
                pieces[location] = {}
                network.asked, network.reused = network.asked + asked, network.reused + reused
                for row in range(2):
                    maps, scores = np.zeros((1, 3, 3), np.float32), np.zeros(1, np.float32)
                    pieces.add(location, slice(row, row + 1), 2, maps, scores)
            if folder is None:
                assert pieces.costs([(0, 0), (0, 1)])[2] == 0.25
    with Pieces(tmp_path, {"a": 1}, resume=True) as pieces:
        assert pieces.costs([(0, 0), (0, 1)])[2] == 0.25


def test_a_cell_that_another_process_finishes_has_no_result():
    results, failures, said = run(planned("a"), lambda *cell: None)
    assert results == [None] * 4 and failures == [] and "cells: 4/4 done" in said


@pytest.mark.parametrize("memory", ["low", "resident"])
@pytest.mark.parametrize("arch", MODELS)
def test_a_cell_does_the_work_that_was_planned(tiny_backbone, memory, arch, tmp_path):
    """Of every kind, so that the time left is that of the whole run."""
    sizes = [SM.with_sizes((64, 64))]
    sizes += [SETUPS[name].with_sizes((64, 64), (32, 32)) for name in ("ST9", "ENS4")]
    switches = {"steps": 2} if arch in ("fastflow", "reverse_distillation") else {}
    cells = recipes((arch,), sizes, seeds=(42,), switches=switches)
    options = dict(memory=memory, out=tmp_path, report=True)
    whole = a_sweep(planned("a"), cells, tiny_backbone, **options)
    (part,), later = whole.estimates, []

    def cell(*parts):
        run_cell(*parts, whole.options, whole.progress)
        later.append(dict(whole.progress.todo))

    through(whole, cell)
    for k, todo in enumerate(later):
        expected = collections.Counter()
        for other in part.cells[k + 1 :]:
            expected.update(other.work)
        assert todo.keys() == {"decode"} | {key for c in part.cells for key in c.work}
        assert all(work == pytest.approx(expected[key]) for key, work in todo.items()), todo
    assert whole.progress.left() == pytest.approx(0)


def test_work_that_is_not_done_goes_with_its_cell():
    """A cell that was finished before, fails or is another process's, and a category that cannot
    be read: what is left is that of the others."""
    said = []

    def cell(recipe, images, backbone):
        said.append(dict(whole.progress.todo))
        if recipe.setup is ENS:
            raise InputError("x")

    def broken():
        raise InputError("y")

    plan = [sweep.Planned("toys", "z", broken), *planned("a", "b")]
    whole = a_sweep(plan, recipes(seeds=(42,)))
    _, *parts = whole.estimates
    through(whole, cell)
    works = [cell.work for part in parts for cell in part.cells]
    for number, todo in enumerate(said):
        expected = collections.Counter()
        for work in [part.work for part in parts[number // 2 :]] + works[number:]:
            expected.update(work)
        assert all(work == pytest.approx(expected[key]) for key, work in todo.items()), number
    assert whole.progress.todo and not any(whole.progress.todo.values())


# ------------------------------------------------------------------------ the command line


@pytest.fixture
def two(tmp_path):
    """A root with the categories alpha and beta in the form of MVTec AD's screw and tile."""
    category = toy_category(n_train=3, n_good=2, n_bad=2, side=64)
    for name in ("screw", "tile"):
        write_category(tmp_path / "mvtec" / name, category)
    return tmp_path


def command(root, *argv):
    small = ["--image-size", 64, "--tile-size", 32, "--weights", "random", "--device", "cpu"]
    argv = ["--dataset", "mvtec", "--root", root / "mvtec", "--out", root / "out",
            "--setup", "ENS4", *small, *argv]  # fmt: skip
    return cli.main([str(part) for part in argv])


def test_a_report_of_two_categories_one_of_them_broken(two, capsys):
    """The finished cells are reported, the broken one is told, the status says so; mended, the
    same command computes what is missing and nothing else."""
    broken = two / "mvtec" / "tile" / "test" / "square" / "002.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:100])
    assert command(two, "--report") == 2
    out, err = capsys.readouterr()
    assert "tiled-ref: error: mvtec tile padim ENS-64-32-32 seed 42: the image" in err
    assert "cells: 2/2 done" in err and "report.html" in out
    metrics = two / "out/mvtec/screw/padim/ENS-64-32-32/seed42/metrics.json"
    before = metrics.stat().st_mtime_ns
    broken.write_bytes(good)
    assert command(two, "--report") == 0
    out, err = capsys.readouterr()
    assert "screw padim ENS-64-32-32 seed 42: finished before" in err
    assert metrics.stat().st_mtime_ns == before
    page = (two / "out/report/report.html").read_text("utf-8")
    assert "tile (MVTec AD)" in page and "screw (MVTec AD)" in page
    # another option: computed again, and said so
    assert command(two, "--report", "--score", "max") == 0
    assert "finished with other options or images, so it is computed" in capsys.readouterr().err
    assert json.loads(metrics.read_text())["score"] == "max"
    # without what the report needs a finished cell is computed again
    (metrics.parent / "analysis.npz").unlink()
    assert command(two, "--report", "--score", "max", "--category", "screw") == 0
    assert (metrics.parent / "analysis.npz").is_file()


def names(entries):
    return [(entry.dataset, entry.name) for entry in entries]


def categories(*argv):
    args = cli.build_parser().parse_args([str(part) for part in argv])
    return cli._categories(args, Progress(quiet=True))


def test_several_data_sets_with_a_root_each_or_one_for_all(two):
    root = two / "mvtec"
    both = names(categories("--dataset", "mvtec", "folder", "--root", root, root))
    assert both == [("mvtec", "screw"), ("mvtec", "tile"), ("folder", "screw"),
                    ("folder", "tile")]  # fmt: skip
    assert names(categories("--dataset", "mvtec", "folder", "--root", root)) == both
    twice = categories("--dataset", "mvtec", "folder", "--root", root, "--root", root)
    assert names(twice) == both
    # a folder of the data set's name below the one root is taken
    assert cli._roots(["mvtec", "synthetic", "visa"], [two]) == {
        "mvtec": root, "synthetic": None, "visa": two,
    }  # fmt: skip
    chosen = categories("--dataset", "mvtec", "synthetic", "--root", root, "--category",
                        "weave", "tile")  # fmt: skip
    assert names(chosen) == [("mvtec", "tile"), ("synthetic", "weave")]
    every = categories("--dataset", "synthetic", "mvtec", "--root", root, "--category", "all")
    assert len(every) == 3 + 2 and every[-1].load().name == "tile"


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--root", "a", "b", "c"], r"--root names 3 folders \(a, b, c\) for 2 data sets"),
        (["--root", "ROOT", "--category", "screw", "what"], "no category 'what' in mvtec, folder"),
        (["--root", "ROOT", "--category", "board"], "none of --category board is in the data set"),
        ([], "name its folder with --root"),
    ],
)
def test_roots_and_categories_that_do_not_fit_are_told(two, argv, sentence):
    argv = [two / "mvtec" if part == "ROOT" else part for part in argv]
    with pytest.raises(InputError, match=sentence):
        categories("--dataset", "mvtec", "folder", *argv)


def test_an_unknown_category_of_one_data_set_is_told_with_those_it_has(two):
    with pytest.raises(InputError, match="no category 'what' in .*mvtec; choose from: screw, tile"):
        categories("--dataset", "mvtec", "--root", two / "mvtec", "--category", "tile", "what")


def test_a_note_is_one_line():
    """Names of files are part of notes, and may hold anything."""
    stream = io.StringIO()
    Progress(stream=stream).note("test/a\nb.png is train/0.png")
    assert stream.getvalue() == "test/a\\nb.png is train/0.png\n"
