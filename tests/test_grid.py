"""The grid of cells: order, sharing, failures, what is left to do."""

import gc
import io
import json
import weakref

import pytest

from made_up import made_up_result, small
from tiled_ref import cli, grid
from tiled_ref.errors import InputError
from tiled_ref.experiment import Options
from tiled_ref.progress import Progress
from tiled_ref.setups import SETUPS
from toys import toy_category, write_category

SM, ENS = SETUPS["SM256"], SETUPS["ENS4"]


def planned(*names):
    return [grid.Planned("toys", name, lambda name=name: small(name)) for name in names]


def run(plan, cell, archs=("padim",), setups=(SM, ENS), seeds=(42, 33)):
    stream = io.StringIO()
    results, failures = grid.run(
        plan, archs, setups, seeds, None, Options(), Progress(stream=stream), cell=cell
    )
    return results, failures, stream.getvalue()


def answer(setup, arch, images, seed):
    return made_up_result("toys", images.category.name, arch, setup.name, seed)


def test_every_cell_runs_once_in_order_and_shares_the_categorys_images():
    seen = []

    def cell(setup, arch, images, seed, *rest):
        seen.append((images.category.name, arch, setup.name, seed, id(images)))
        return answer(setup, arch, images, seed)

    results, failures, _ = run(planned("a", "b"), cell, archs=("padim", "patchcore"))
    assert [entry[:4] for entry in seen] == [
        (c, a, s, k)
        for c in "ab" for a in ("padim", "patchcore") for s in ("SM256", "ENS4") for k in (42, 33)
    ]  # fmt: skip
    assert len({entry[4] for entry in seen[:8]}) == 1 and not failures
    assert [(r["category"], r["arch"]) for r in results[:5:4]] == [("a", "padim"),
                                                                  ("a", "patchcore")]  # fmt: skip


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


def test_time_left_by_hand():
    """PaDiM: SM256 is 1 tile of 256 px, ENS9 9, so 10 s of SM256 promise 90 s of ENS9. Two
    categories: 10 s more of SM256 and 180 s of ENS9."""
    clock = grid.Eta(2, ("padim",), (SM, SETUPS["ENS9"]), 1)
    assert clock.seconds_left() is None and clock.left() == ""
    clock.done("padim", SM, 10.0)
    assert clock.seconds_left() == pytest.approx(10 + 2 * 90)
    clock.done("padim", SETUPS["ENS9"], None)  # failed: done, but says nothing
    assert clock.seconds_left() == pytest.approx(10 + 90)
    assert clock.left() == ", about 1 min 40 s left"
    clock.skip_category()
    assert clock.seconds_left() == 0 and clock.left() == "" and clock.count == 4


def test_another_architecture_is_guessed_until_it_is_measured():
    clock = grid.Eta(1, ("padim", "patchcore"), (SM,), 2)
    clock.done("padim", SM, 10.0)
    ratio = grid.FIRST_GUESS["patchcore"]
    assert clock.seconds_left() == pytest.approx(10 + 2 * 10 * ratio)
    clock.done("patchcore", SM, 7.0)
    assert clock.seconds_left() == pytest.approx(10 + 7)


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
