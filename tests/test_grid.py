"""The grid of cells: order, sharing, failures, what is left to do."""

import gc
import io
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from made_up import made_up_result, small
from tiled_ref import cli, grid
from tiled_ref.distributed import Alone
from tiled_ref.errors import InputError
from tiled_ref.experiment import Options
from tiled_ref.progress import Progress
from tiled_ref.setups import SETUPS
from tiled_ref.store import CellStore, maps_name
from toys import toy_category, write_category

SM, ENS = SETUPS["SM256"], SETUPS["ENS4"]


def planned(*names):
    return [grid.Planned("toys", name, lambda name=name: small(name)) for name in names]


def run(plan, cell, archs=("padim",), setups=(SM, ENS), seeds=(42, 33), **options):
    stream = io.StringIO()
    results, failures = grid.run(
        plan, archs, setups, seeds, None, Options(**options), Progress(stream=stream), cell=cell
    )
    return results, failures, stream.getvalue()


def answer(setup, arch, images, seed):
    return made_up_result("toys", images.category.name, arch, setup.name, seed)


def test_every_cell_runs_once_and_shares_the_categorys_images():
    """In the order of the table, or, where layers are shared, setup by setup here; the results
    come in the order of the table."""
    archs = ("padim", "patchcore")
    names, seeds = ("SM256", "ENS4"), (42, 33)
    table = [(c, a, s, k) for c in "ab" for a in archs for s in names for k in seeds]
    grouped = [(c, a, s, k) for c in "ab" for s in names for a in archs for k in seeds]
    for budget, order in ((0, table), (1 << 20, grouped)):
        seen = []

        def cell(setup, arch, images, seed, *rest, seen=seen):
            seen.append((images.category.name, arch, setup.name, seed, id(images)))
            return answer(setup, arch, images, seed)

        results, failures, _ = run(planned("a", "b"), cell, archs, share_features=budget)
        assert [entry[:4] for entry in seen] == order
        assert len({entry[4] for entry in seen[:8]}) == 1 and not failures
        keys = ("category", "arch", "setup", "seed")
        assert [tuple(result[key] for key in keys) for result in results] == table


def test_failures_come_in_the_order_of_the_table():
    def cell(setup, arch, *rest):
        raise InputError("x")

    _, failures, _ = run(planned("a"), cell, archs=("padim", "patchcore"), seeds=(42,))
    assert [failure.cell for failure in failures] == [
        f"toys a {a} {s} seed 42" for a in ("padim", "patchcore") for s in ("SM256", "ENS4")
    ]


def test_a_category_is_released_before_the_next():
    alive = []

    def cell(setup, arch, images, seed, *rest):
        if images.category.name == "b":
            gc.collect()
            assert all(reference() is None for reference in alive)
        else:
            alive.append(weakref.ref(images))
            if setup is ENS:
                raise InputError("an error keeps its traceback, and that the images")
        return answer(setup, arch, images, seed)

    results, failures, _ = run(planned("a", "b"), cell)
    assert len(alive) == 4 and len(results) == 6
    assert all("keeps its traceback" in str(failure) for failure in failures), failures


def test_a_failing_cell_is_told_and_the_others_go_on():
    def cell(setup, arch, images, seed, *rest):
        if images.category.name == "a" and seed == 33:
            raise InputError("the image x is damaged")
        if setup is ENS:
            raise ZeroDivisionError("by zero")
        return answer(setup, arch, images, seed)

    results, failures, said = run(planned("a", "b"), cell)
    assert len(results) == 3 and len(failures) == 5
    assert "failed: toys a padim SM256 seed 33: the image x is damaged" in said
    assert "ZeroDivisionError: by zero" in str(failures[-1]) and "cells: 8/8" in said
    assert grid.exit_status(failures) == 1
    assert grid.exit_status([f for f in failures if f.is_input]) == 2
    assert grid.exit_status([]) == 0


def test_a_category_that_cannot_be_loaded_is_told_and_the_others_go_on():
    def broken():
        raise InputError("the mask m is missing")

    plan = [grid.Planned("toys", "a", broken), *planned("b")]
    results, failures, said = run(plan, lambda s, a, i, k, *r: answer(s, a, i, k))
    assert len(results) == 4 and [str(f) for f in failures] == ["toys a: the mask m is missing"]
    assert "cells: 8/8 done\n" in said


def test_memory_that_ran_out_is_the_users_to_change():
    def cell(*args):
        raise MemoryError("big. And more")

    _, failures, _ = run(planned("a"), cell)
    assert "out of memory (big); choose a smaller --batch-size" in str(failures[0])
    assert grid.exit_status(failures) == 2


def test_debug_shows_where_a_cell_failed(capsys):
    def cell(*args):
        raise ZeroDivisionError("by zero")

    stream = io.StringIO()
    arguments = planned("a"), ("padim",), (SM,), (42, 33), None, Options(), Progress(stream=stream)
    _, failures = grid.run(*arguments, cell=cell, debug=True)
    assert len(failures) == 2 and capsys.readouterr().err.count("Traceback") == 2
    grid.run(*arguments, cell=cell)
    assert "Traceback" not in capsys.readouterr().err


def test_what_other_processes_report_is_told_once_and_their_cells_left_out(tmp_path, monkeypatch):
    class Two(Alone):
        def told(self):
            return [("toys a padim SM256 seed 33", "the image x is damaged", True),
                    ("toys b", "the mask m is missing", True)]  # fmt: skip

    options = Options(out=tmp_path, ranks=Two())
    monkeypatch.setattr(grid, "gather_results", lambda cells, options: cells)
    mine = [grid.Failure("toys b", "the mask m is missing", True)]
    plan = planned("a", "b")
    cells, failures = grid.gather(plan, ("padim",), (SM, ENS), (42, 33), mine, options)
    assert [str(f) for f in failures] == [
        "toys a padim SM256 seed 33: the image x is damaged", "toys b: the mask m is missing"
    ]  # fmt: skip
    assert [(e.name, setup.name, seed) for e, _, setup, seed in cells] == [
        ("a", "SM256", 42), ("a", "ENS4", 42), ("a", "ENS4", 33)
    ]  # fmt: skip


def test_without_room_in_the_temporary_folder_nothing_is_shared(monkeypatch):
    monkeypatch.setattr(grid, "budget_within", lambda n_bytes: 0)
    memos = []

    def cell(setup, arch, images, seed, *rest):
        memos.append(images.memo)
        return answer(setup, arch, images, seed)

    results, failures, said = run(planned("a"), cell)
    assert len(results) == 4 and not failures and memos == [None] * 4
    assert "no temporary folder has room, so no layers are shared" in said


def test_an_interrupt_is_no_failure():
    def cell(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(planned("a"), cell)


def test_the_only_cell_of_a_grid_raises_what_it_raises():
    def cell(*args):
        raise InputError("x")

    with pytest.raises(InputError):
        run(planned("a"), cell, setups=(SM,), seeds=(42,))


def only(groups):
    return [cell for group in groups for cell in group]


def test_time_left_by_hand():
    """PaDiM: SM256 is 1 tile of 256 px, ENS9 9, so 10 s of SM256 promise 90 s of ENS9. Two
    categories: 10 s more of SM256 and 180 s of ENS9."""
    sm, ens9 = cells = only(grid.schedule(("padim",), (SM, SETUPS["ENS9"]), (42,), False))
    clock = grid.Eta(2, cells)
    assert clock.seconds_left() is None and clock.left() == ""
    clock.done(sm, 10.0)
    assert clock.seconds_left() == pytest.approx(10 + 2 * 90)
    clock.done(ens9, None)  # failed: done, but says nothing
    assert clock.seconds_left() == pytest.approx(10 + 90)
    assert clock.left() == ", about 1 min 40 s left"
    clock.skip_category()
    assert clock.seconds_left() == 0 and clock.left() == "" and clock.count == 4


def test_another_architecture_is_guessed_until_it_is_measured():
    archs = ("padim", "patchcore", "patchcore")
    padim, first, second = (grid.Cell(k, arch, SM, 42) for k, arch in enumerate(archs))
    clock = grid.Eta(1, [padim, first, second])
    clock.done(padim, 10.0)
    ratio = grid.FIRST_GUESS["patchcore"]
    assert clock.seconds_left() == pytest.approx(2 * 10 * ratio)
    clock.done(first, 7.0)
    assert clock.seconds_left() == pytest.approx(7)


def test_cells_that_reuse_layers_have_a_time_of_their_own():
    """The first of three seeds computes them; 10 s of it say 10 s times the guess of the others,
    and when the second took 4 s, the third will take 4 s, and of the next category 10 + 4 + 4."""
    cells = only(grid.schedule(("padim",), (SM,), (1, 2, 3), True))
    clock = grid.Eta(2, cells)
    clock.done(cells[0], 10.0)
    reused = 10 * grid.REUSE_GUESS["padim"]
    assert clock.seconds_left() == pytest.approx(2 * reused + 10 + 2 * reused)
    clock.done(cells[1], 4.0)
    assert clock.seconds_left() == pytest.approx(4 + 10 + 4 + 4)


# -------------------------------------------------------------------------- shared layers


def schedule(setups, archs=("padim",), seeds=(42,), share=True):
    groups = grid.schedule(archs, [SETUPS[name] for name in setups], seeds, share)
    return [[(c.place, c.arch, c.setup.name, c.seed, c.reuses) for c in group] for group in groups]


def test_setups_with_equal_tiles_come_together_by_hand():
    """4 of the 9 tiles of ST9 are those of ENS4, fewer than half; all of ST4 and ENS9 were there
    before."""
    names = ("SM256", "ENS4", "ST9", "SM512", "ST4", "ENS9")
    assert schedule(names) == [
        [(0, "padim", "SM256", 42, False)],
        [(1, "padim", "ENS4", 42, False), (2, "padim", "ST9", 42, False),
         (4, "padim", "ST4", 42, True), (5, "padim", "ENS9", 42, True)],
        [(3, "padim", "SM512", 42, False)],
    ]  # fmt: skip
    assert schedule(["SM256"], ("padim", "patchcore"), (1, 2)) == [
        [(0, "padim", "SM256", 1, False), (1, "padim", "SM256", 2, True),
         (2, "patchcore", "SM256", 1, True), (3, "patchcore", "SM256", 2, True)]
    ]  # fmt: skip
    alone = schedule(["SM256", "SM512"], share=False)
    assert len(alone) == 1 and [cell[2] for cell in alone[0]] == ["SM256", "SM512"]
    assert not any(cell[-1] for cell in schedule(["ENS9", "ENS9"], share=False)[0])


def memos(setups, **more):
    """The memo that each cell of a category finds, and whether it keeps what is new."""
    seen = []

    def cell(setup, arch, images, seed, *rest):
        seen.append((images.memo, images.memo is not None and images.memo.keeps))
        return answer(setup, arch, images, seed)

    options = {"seeds": (42,), **more}
    said = run(planned("a"), cell, setups=[SETUPS[name] for name in setups], **options)[2]
    return seen, said


def test_cells_with_something_in_common_share_a_memo_and_the_last_keeps_nothing():
    seen, said = memos(["SM256", "ST9", "SM512", "ENS9", "ENS4"])
    found = [memo for memo, _ in seen]  # SM256, ST9, ENS9, ENS4, SM512
    assert found[0] is found[4] is None and found[1] is found[2] is found[3] is not None
    assert [keeps for _, keeps in seen] == [False, True, True, False, False]
    assert "a: 3 cells share the layers of the backbone, within" in said


@pytest.mark.parametrize(
    "setups, more",
    [
        (["ENS9"], {}),
        (["SM256", "SM512"], {}),
        (["ST9", "ENS9"], {"share_features": 0}),
        (["ST9", "ENS9"], {"precision": "bfloat16"}),
        (["ST9", "ENS9"], {"compile": True}),
        (["ST9", "ENS9"], {"device": torch.device("cuda")}),
        (["ST9", "ENS9"], {"ranks": SimpleNamespace(size=2)}),
    ],
    ids=str,
)
def test_nothing_is_kept_for_nobody(setups, more):
    seen, said = memos(setups, **more)
    assert {memo for memo, _ in seen} == {None} and "share the layers" not in said


def test_a_memo_ends_with_its_group():
    seen, _ = memos(["SM256", "ENS9"], seeds=(1, 2))
    assert seen[0][0] is seen[1][0] is not seen[2][0] is seen[3][0]
    with pytest.MonkeyPatch.context() as patch:
        ended = []
        patch.setattr(grid.FeatureMemo, "__exit__", lambda memo, *exception: ended.append(memo))
        seen, _ = memos(["SM256", "ENS9"], seeds=(1, 2))
        assert ended == [seen[0][0], seen[2][0]]


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
    options = Options(
        out=out, share_features=budget, report=True,
        switches={arch: {"steps": 2} for arch in ("fastflow", "reverse_distillation")},
    )  # fmt: skip
    plan = [grid.Planned("toys", "toy", lambda: toy_category(n_train=3, n_good=2, n_bad=2))]
    results, failures = grid.run(
        plan, archs, setups, seeds, backbone, options, Progress(quiet=True)
    )
    assert not failures
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
        with CellStore(folder, {"a": 1}) as store:
            assert store.reused([]) == 0.0
            for location, layers in (((0, 0), (4, 3)), ((0, 1), (12, 1))):
                maps = store.new_maps(maps_name(location), (2, 3, 3))
                maps[0:2] = np.zeros((2, 3, 3), np.float32)
                store.save_prediction(location, maps, np.zeros(2, np.float32), 1.0, layers)
            if folder is None:
                assert store.reused([(0, 0), (0, 1)]) == 0.25
    with CellStore(tmp_path, {"a": 1}, resume=True) as store:
        assert store.reused([(0, 0), (0, 1)]) == 0.25


def test_a_cell_that_another_process_finishes_has_no_result():
    results, failures, said = run(planned("a"), lambda *cell: None)
    assert results == [] and failures == [] and "cells: 4/4 done" in said


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
    assert "finished before with other options, so it is computed again" in capsys.readouterr().err
    assert json.loads(metrics.read_text())["score"] == "max"
    # without what the report needs a finished cell is computed again
    (metrics.parent / "analysis.npz").unlink()
    assert command(two, "--report", "--score", "max", "--category", "screw") == 0
    assert (metrics.parent / "analysis.npz").is_file()


def names(entries):
    return [(entry.dataset, entry.name) for entry in entries]


def categories(*argv):
    return cli._categories(cli.build_parser().parse_args([str(part) for part in argv]))


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
    with pytest.raises(InputError, match="no category 'what' in .*mvtec; known are: screw, tile"):
        categories("--dataset", "mvtec", "--root", two / "mvtec", "--category", "tile", "what")
