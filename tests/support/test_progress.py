"""The time left: of kinds of work, each by its own speed, by hand."""

import io
import re

import pytest

from tiled_ref.support import progress
from tiled_ref.support.progress import Progress


@pytest.fixture
def now(monkeypatch):
    """[seconds] of the clock."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def shown(todo, costs, stream=None):
    run = Progress(stream=stream or io.StringIO())
    run.todo, run.costs = dict(todo), costs
    return run


def test_nothing_is_told_before_anything_is_known():
    assert Progress().left() is None
    assert shown({"fit": 10.0}, {}).left() is None


def test_a_kind_that_has_begun_is_judged_by_itself_and_the_others_by_it(now):
    """10 of 40 took 20 s: the speed is (20 + 6 * 3) / (10 + 6) with a tenth of all 60 at the machine's
    3; fit has (20 + 4 * speed) / 14 a second, predict, of which none is done, the speed. Then 5 of the
    20 take 20 s: the speed is (40 + 6 * 3) / (15 + 6)."""
    run = shown({"fit": 40.0, "predict": 20.0},
                {"fit": {None: ("fit", 40.0)}, "predict": {None: ("predict", 20.0)}})  # fmt: skip
    run.speed = 3.0
    stage = run.stage("fit", "fit")
    now[0] += 20
    stage(1, 4)
    speed = 38 / 16
    assert run.left() == pytest.approx(30 * (20 + 4 * speed) / 14 + 20 * speed)
    stage = run.stage("predict", "predict")
    now[0] += 20
    stage(1, 4)
    speed = 58 / 21
    expected = 30 * (20 + 4 * speed) / 14 + 15 * (20 + 2 * speed) / 7
    assert run.left() == pytest.approx(expected)


def test_reading_says_nothing_about_computing(now):
    """1 of 2 took 10 s, ten times the reference, of which a hundredth is kept; the others keep
    theirs."""
    run = shown({"decode": 2.0, "fit": 8.0}, {"decode train": {None: ("decode", 2.0)}})
    stage = run.stage("decode", "decode train")
    now[0] += 10
    stage(5, 10)
    assert run.left() == pytest.approx(10.02 / 1.02 + 8)


def test_all_parts_are_one_line_with_the_time_of_all_and_what_is_left(now):
    """Images, then positions: 12 s for 6 of 10; of the 4 left a second takes
    (12 + 1) / 7 s."""
    stream = io.StringIO()
    costs = {"fit": {None: ("images", 4.0), "factors": ("factors", 2.0)}}
    run = shown({"images": 4.0, "factors": 2.0, "predict": 4.0}, costs, stream)
    stage = run.stage("fit tile 1/2", "fit")
    for done, seconds in ((3, 4), (6, 4)):
        now[0] += seconds
        stage(done, 6)
    assert stream.getvalue() == ""
    for done in (50, 100):
        now[0] += 2
        stage(done, 100, "factors")
    assert stream.getvalue() == "fit tile 1/2: 6/6 in 12.0 s, 7.4 s left\n"
    assert run.todo == {"images": 0, "factors": 0, "predict": 4}
    assert run.seen == {"images": (8, 4), "factors": (4, 2)}


def test_what_precedes_a_part_belongs_to_the_one_before(now):
    """PatchCore's projection, between the last image and the first call of the coreset."""
    run = shown({"images": 4.0, "coreset": 4.0},
                {"fit": {None: ("images", 4.0), "coreset": ("coreset", 4.0)}})  # fmt: skip
    stage = run.stage("fit", "fit")
    for call, seconds in (((6, 6), 3), ((0, 9, "coreset"), 5), ((9, 9, "coreset"), 2)):
        now[0] += seconds
        stage(*call)
    assert run.seen == {"images": (8, 4), "coreset": (2, 4)}


def test_a_stage_of_no_plan_names_its_parts(now):
    stream = io.StringIO()
    stage = Progress(stream=stream).stage("fit")
    stage(6, 6)
    stage(9, 9, "coreset")
    assert stream.getvalue().splitlines() == [
        "fit: 6/6 in 0.0 s", "fit, coreset: 9/9 in 0.0 s",
    ]  # fmt: skip


def test_a_total_that_is_not_known_is_not_shown(now):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    stage = Progress(stream=stream).stage("watch")
    for done in range(3):
        stage(done, None)
        now[0] += 1
    stage(2, 2)
    shown_lines = re.split("[\\r\\n]+", stream.getvalue())
    assert [line for line in shown_lines if line.strip()] == [
        "watch: 0", "watch: 1", "watch: 2", "watch: 2/2 in 3.0 s",
    ]  # fmt: skip
    assert Progress(stream=io.StringIO()).stage("predict")(1, None) is None  # no line in a log
