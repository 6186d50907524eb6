"""Size classes of defects and the recall in each of them, by hand."""

import numpy as np
from made_up import made_up_result as result

from tiled_ref.reporting import defect_sizes as sizes
from tiled_ref.running.analysis import FPRS, REPORT_FPR


def test_size_classes_enclose_all_areas():
    def edges(*areas):
        return sizes.area_edges([({}, {"area": np.array([area])}) for area in areas])

    assert edges(1) == [1, 4]
    assert edges(4, 16) == [4, 16, 64]
    assert edges(3, 63, 64) == [1, 4, 16, 64, 256]
    assert edges() is None


def test_recall_by_size_by_hand():
    """Areas 5, 10, 70 with recalls 0.2, 0.4, 1.0 at the FPR shown: classes 4-15, 16-63,
    64-255 have 0.3, none, 1.0."""
    area = np.array([5, 10, 70])
    recall = np.zeros((3, len(FPRS)))
    recall[:, FPRS.index(REPORT_FPR)] = 0.2, 0.4, 1.0
    cells = [(result("folder", "a", setup=s), {"area": area, "recall": recall * f})
             for s, f in (("SM256", 1.0), ("ENS9", 0.5))]  # fmt: skip
    table = sizes.defect_sizes("folder", "padim", cells)
    assert [row[1:] for row in table.rows[:-1]] == [
        ["2", "**30.0**", "*15.0*"], ["0", "-", "-"], ["1", "**100.0**", "*50.0*"],
    ]  # fmt: skip
    assert table.rows[-1][2:] == ["64 px²", "64 px²"]
    assert table.rows[0][0] == "4 to 15 px² (2 to 4 px)"
    twice = cells + [(r | {"seed": 33}, d) for r, d in cells]
    assert sizes.defect_sizes("folder", "padim", twice).rows[0][1] == "2"  # not twice as many


def test_setups_are_compared_on_the_categories_that_all_of_them_have():
    def cell(category, setup, recall):
        found = np.full((1, len(FPRS)), recall)
        return result("folder", category, setup=setup), {"area": np.array([9]), "recall": found}

    cells = [cell("a", "SM256", 1.0), cell("b", "SM256", 0.0), cell("a", "ENS9", 0.5)]
    table = sizes.defect_sizes("folder", "padim", cells)
    assert table.rows[0][1:] == ["1", "**100.0**", "*50.0*"]
    assert table.notes[-1] == "Only categories that every setup has: a."
    apart = [cell("a", "SM256", 1.0), cell("b", "ENS9", 0.5)]
    assert sizes.shared_categories(apart) == apart


def test_found_from_is_the_size_from_which_recall_stays_high():
    edges = [1, 4, 16, 64, 256]
    assert sizes._found_from(edges, [0.9, 0.4, 0.6, 0.7]) == "16 px²"
    assert sizes._found_from(edges, [0.9, None, 0.6, 0.5]) == "1 px²"
    assert sizes._found_from(edges, [0.9, 0.9, 0.6, 0.49]) == "-"
