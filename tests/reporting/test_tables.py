"""Tables beside the paper's, by hand."""

import csv
import io
import statistics

import numpy as np
import pytest
from made_up import made_up_result as result

from tiled_ref.data import visa
from tiled_ref.reporting import paper, tables
from tiled_ref.reporting.defect_sizes import defect_sizes
from tiled_ref.reporting.results import ARCHS, file_name, setups_of
from tiled_ref.running.analysis import FPRS
from tiled_ref.setups import SETUPS


def grid(dataset, categories, archs=("padim",), setups=("SM256", "ENS9"), seeds=(42,), value=None):
    """Results of all these cells; value(category, arch, setup, seed) -> (AUROC, AUPRO)."""
    value = value or (lambda *cell: (0.9, 0.8))
    results = []
    for category in categories:
        for arch in archs:
            for setup in setups:
                for seed in seeds:
                    auroc, aupro = value(category, arch, setup, seed)
                    results.append(
                        result(dataset, category, arch, setup, seed,
                               image_auroc=auroc, pixel_aupro=aupro)
                    )  # fmt: skip
    return results


def record(table, **wanted):
    (found,) = [r for r in table.records if all(r[k] == v for k, v in wanted.items())]
    return found


def test_mean_over_categories_and_spread_over_seeds_by_hand():
    """Category a: 80, 84, 82; b: 90, 98, 94 for seeds 1, 2, 3. Means of seeds: 85, 91 and 88, so
    the mean is 88 and the standard deviation sqrt((9 + 9) / 2) = 3."""
    table = {("a", 1): 0.80, ("a", 2): 0.84, ("a", 3): 0.82,
             ("b", 1): 0.90, ("b", 2): 0.98, ("b", 3): 0.94}  # fmt: skip
    results = grid("folder", "ab", setups=["SM256"], seeds=(1, 2, 3),
                   value=lambda c, a, s, k: (table[c, k], 0.5))  # fmt: skip
    got = record(tables.means("folder", results), quantity="AUROC")
    assert got["value"] == pytest.approx(88) and got["std"] == pytest.approx(3)
    assert (got["seeds"], got["categories"]) == (3, 2)
    cell = record(tables.by_category("folder", "padim", results), quantity="AUROC", category="b")
    assert cell["value"] == pytest.approx(94)
    assert cell["std"] == pytest.approx(statistics.stdev([90, 94, 98]))


@pytest.mark.parametrize("n, sentence", [
    (1, "One seed, 0: no spread is given."), (2, "Two seeds, 0, 1: no spread is given."),
    (3, "Mean ± standard deviation (n - 1) over the seeds 0, 1, 2; "
     "numbers over fewer than three seeds have no spread."),
])  # fmt: skip
def test_every_table_of_numbers_over_seeds_has_their_spread_from_three_seeds_on(n, sentence):
    """Metrics, training time and recall by size; the tables and the CSV."""
    values = [0.9, 0.7, 0.8][:n]
    results = grid("folder", "a", setups=["SM256"], seeds=range(n),
                   value=lambda c, a, s, k: (values[k], values[k]))  # fmt: skip
    defects = []
    for r, value in zip(results, values):
        r["seconds_train"] = 100 * value
        found = np.full((1, len(FPRS)), value)
        defects.append((r, {"area": np.array([9]), "recall": found}))
    made = tables.all_tables(results, defects)
    for table in made:
        numbers = [r for r in table.records if r["quantity"] != "parameters"]
        for number in numbers:
            want = pytest.approx(statistics.stdev([100 * v for v in values])) if n > 2 else None
            assert number["std"] == want, (table.name, number)
            assert "± 10.0" in str(table.rows) if n > 2 else "±" not in str(table.rows)
        assert not numbers or any(sentence in note for note in table.notes), table.name
    assert len(made) == 5


def test_a_seed_that_lacks_a_category_counts_for_the_mean_but_not_for_the_spread():
    results = grid("folder", "ab", setups=["SM256"], seeds=(1, 2, 3, 4))
    results = [r for r in results if (r["category"], r["seed"]) != ("b", 4)]
    for r, value in zip(results, (0.8, 0.9, 0.7, 1.0, 0.6, 0.7, 0.5)):
        r["image_auroc"] = value
    got = record(tables.means("folder", results), quantity="AUROC")
    assert got["value"] == pytest.approx((85 + 60) / 2)
    assert got["std"] == pytest.approx(statistics.stdev([70, 80, 60]))


def test_best_and_second_best_of_each_column_ties_alike():
    values = {"SM256": 0.9712, "SM512": 0.9708, "ST4": 0.97, "ST9": 0.96, "ENS4": 0.5,
              "ENS9": 0.9699}  # fmt: skip
    results = grid("folder", "a", setups=SETUPS, value=lambda c, a, s, k: (values[s], 0.8))
    table = tables.means("folder", results)
    ranks = {r["setup"]: r["rank"] for r in table.records if r["quantity"] == "AUROC"}
    # 97.1, 97.1, 97.0, 96.0, 50.0, 97.0
    assert ranks == {"SM256": 1, "SM512": 1, "ST4": 2, "ST9": None, "ENS4": None, "ENS9": 2}
    rows = {row[0]: row[1] for row in table.rows}
    assert rows["SM256"].startswith("**97.1** / ") and rows["ST4"].startswith("*97.0* / ")
    assert rows["ENS4"].startswith("50.0 / ")


def test_a_single_setup_is_not_called_the_best():
    table = tables.means("folder", grid("folder", "a", setups=["ENS9"]))
    assert "**" not in table.rows[0][1] and record(table, quantity="AUPRO")["rank"] is None


def test_difference_in_units_of_the_papers_spread():
    """Table 2, PaDiM ENS9: 86.3 with a standard deviation of 0.96; 88.22 is 2 of them above."""
    results = grid("visa", visa.CATEGORIES, setups=["ENS9"],
                   value=lambda *cell: (0.8822, 0.869))  # fmt: skip
    table = tables.means("visa", results)
    got = record(table, quantity="AUROC")
    assert (got["paper"], got["paper_std"]) == (pytest.approx(86.3), pytest.approx(0.96))
    assert got["difference"] == pytest.approx(1.92)
    assert got["difference_in_paper_stds"] == pytest.approx(2)
    assert table.name == "table_02_mean_visa"
    assert "paper 86.3 / 86.9" in table.rows[0][1] and "+1.9 (+2.0 σ) / 0.0" in table.rows[0][1]


def test_some_categories_stand_beside_the_papers_mean_of_the_same():
    """Table 10, PaDiM SM256, printed for pcb3 and candle."""
    names = ["candle", "pcb3"]
    table = tables.means("visa", grid("visa", names, setups=["SM256"]))
    got = record(table, quantity="AUROC")
    theirs = [100 * paper.printed("visa", "padim", n, "SM256", "image_auroc").value for n in names]
    assert got["paper"] == pytest.approx(sum(theirs) / 2) and got["paper_std"] is None
    assert got["difference_in_paper_stds"] is None
    assert any("2 of the paper's 12 categories" in note for note in table.notes)


def test_random_weights_and_other_data_are_compared_with_nothing():
    for results in (
        [r | {"weights": "random"} for r in grid("visa", ["pcb3"])],
        grid("synthetic", ["board"]),
    ):
        for table in tables.all_tables(results):
            if table.name not in ("table_03", "table_04"):
                assert all(r["paper"] is None for r in table.records), table.name
                assert "paper" not in table.rows[0][1]


def test_another_limit_of_aupro_is_named_and_stands_beside_no_number_of_the_paper():
    results = [r | {"fpr_limit": 0.05} for r in grid("visa", ["pcb3"])]
    for table in tables.all_tables(results):
        if table.name not in ("table_03", "table_04"):
            assert table.title.startswith(("AUROC / AUPRO@0.05", "Table")), table.title
            assert "AUROC / AUPRO@0.05 o" in table.title
            for r in table.records:
                assert (r["paper"] is None) == (r["quantity"] == "AUPRO@0.05"), r


def test_mvtec_ad_2_has_a_third_number_segf1():
    results = [r | {"fpr_limit": 0.05, "seg_f1": 0.25} for r in grid("mvtec2", ["can", "rice"])]
    (means,) = [t for t in tables.all_tables(results) if t.name == "table_mean_mvtec2"]
    assert means.title == "AUROC / AUPRO@0.05 / SegF1 on MVTec AD 2, mean over 2 categories"
    assert means.rows[0][1].endswith("/ **25.0**")
    assert record(means, setup="ENS9", quantity="SegF1")["value"] == 25


def test_tables_carry_the_papers_numbers_and_forms():
    archs = list(ARCHS)
    results = grid("mvtec", ["screw", "leather"], archs, list(SETUPS)) + grid("visa", ["pcb3"])
    made = {table.name: table for table in tables.all_tables(results)}
    assert list(made) == [
        "table_01_mean_mvtec", "table_02_mean_visa", "table_03", "table_04",
        "table_05_categories_mvtec_patchcore", "table_06_categories_mvtec_padim",
        "table_07_categories_mvtec_fastflow", "table_08_categories_mvtec_reverse_distillation",
        "table_10_categories_visa_padim",
    ]  # fmt: skip
    six = made["table_06_categories_mvtec_padim"]
    assert six.headers == ["category", *SETUPS]
    assert [row[0] for row in six.rows] == ["leather", "screw", "*average*"]  # the paper's order
    assert "paper 69.4 / 92.2" in six.rows[1][6]
    assert made["table_01_mean_mvtec"].headers == [
        "setup", "PatchCore", "PaDiM", "FastFlow", "Reverse Distillation"
    ]  # fmt: skip


def test_footnotes_name_the_papers_slips_where_they_matter():
    results = grid("mvtec", ["leather"], list(ARCHS))
    made = {t.name[:8]: t for t in tables.all_tables(results)}
    seven = "\n".join(made["table_07"].notes)
    assert "108.3" in seven and "cannot exceed 100" in seven and "at most 88.5" in seven
    assert "108.3" not in "\n".join(made["table_06"].notes)
    eight = "\n".join(made["table_08"].notes)
    assert "average AUPRO of 87.2" in eight and "is 86.8" in eight
    one = "\n".join(made["table_01"].notes)
    assert "108.3" in one and "87.2" in one


def test_missing_metrics_are_a_dash_and_incomplete_means_are_marked():
    results = grid("folder", "ab")
    results[0]["image_auroc"] = results[0]["pixel_aupro"] = None  # a, SM256
    for r in results:
        r["pixel_aupro"] = None
    table = tables.means("folder", results)
    assert table.rows[0][1] == "90.0 † / -"
    assert any(note.startswith("†") for note in table.notes)
    rows = {row[0]: row for row in tables.by_category("folder", "padim", results).rows}
    assert rows["a"][1] == "- / -"


def test_a_missing_metric_is_a_dash_beside_the_papers_number_as_well():
    """Table 10, PaDiM ENS9 on pcb3; no AUPRO of ours, so no difference from it."""
    results = grid("visa", ["pcb3"], setups=["ENS9"], value=lambda *cell: (0.9, None))
    theirs = [
        100 * paper.printed("visa", "padim", "pcb3", "ENS9", metric).value
        for metric in tables.PAPER_METRICS
    ]
    table = tables.by_category("visa", "padim", results)
    assert table.rows[0][1] == (
        f"90.0 / -<br><sub>paper {theirs[0]:.1f} / {theirs[1]:.1f}</sub>"
        f"<br><sub>{90 - theirs[0]:+.1f} / -</sub>"
    )
    assert record(table, category="pcb3", quantity="AUPRO")["difference"] is None


def test_parameters_and_training_time_stand_beside_tables_3_and_4():
    results = grid("synthetic", ["board"], setups=["SM256", "ENS9"])
    results += [r | {"seed": 33, "seconds_train": 30.0} for r in results]
    made = {t.name: t for t in tables.all_tables(results)}
    assert made["table_03"].rows[1] == ["ENS9", "25.0<br><sub>paper 25.0</sub>"]
    assert made["table_04"].rows[0] == ["SM256", "20.0<br><sub>paper 772.0</sub>"]
    assert "cpu" in made["table_04"].notes[0]


def test_training_times_with_reused_layers_are_left_out():
    results = grid("synthetic", ["board"], setups=["SM256", "ENS9"])
    reused = {"seed": 33, "features_reused": 0.5, "seconds_train": 1.0}
    results = [results[0], results[0] | reused, results[1] | reused]
    made = {t.name: t for t in tables.all_tables(results)}
    assert [row[1].partition("<")[0] for row in made["table_04"].rows] == ["10.0", "-"]
    assert made["table_04"].notes[-1].startswith("Times are missing")
    assert not any("read layers" in note for note in made["table_03"].notes)


def test_other_sizes_come_behind_the_papers_setups_by_size():
    results = [
        result(setup="SM256", category="a") | {"setup": name, "image_size": [side, side]}
        for name, side in (("SM-1024", 1024), ("SM-300", 300), ("ENS9", 512), ("SM256", 256))
    ]
    assert setups_of(results) == ["SM256", "ENS9", "SM-300", "SM-1024"]


def test_without_defects_there_is_no_table_of_them_and_no_number_of_a_setup():
    none = {"area": np.zeros(0, int), "recall": np.zeros((0, len(FPRS)))}
    one = {"area": np.array([9]), "recall": np.full((1, len(FPRS)), 0.7)}
    with_one, without = result("folder", "a"), result("folder", "b", setup="SM256")
    results = [with_one, without]
    assert defect_sizes("folder", "padim", [(without, none)]) is None
    names = [t.name for t in tables.all_tables(results)]
    assert [t.name for t in tables.all_tables(results, [(without, none)])] == names
    made = tables.all_tables(results, [(with_one, one), (without, none)])
    assert [t.name for t in made[:-1]] == names and made[-1].headers[2:] == ["SM256", "ENS9"]
    assert [row[1:] for row in made[-1].rows] == [["1", "-", "**70.0**"], ["", "-", "4 px²"]]
    assert any("No category was run in every setup" in note for note in made[-1].notes)


def test_names_cannot_break_a_table_or_a_file():
    evil = "a|b<script>*_`[x](y)\n&amp;"
    made = tables.all_tables(grid("folder", [evil, "plain"]))
    (table,) = [t for t in made if t.name == "table_categories_folder_padim"]
    line = next(row for row in table.markdown().splitlines() if "script" in row)
    assert line.count("|") == 4 and "<script" not in line and r"\*" in line
    rows = list(csv.DictReader(io.StringIO(tables.table_files(made)["tables.csv"], newline="")))
    assert {row["category"] for row in rows} >= {evil, "plain"}
    assert sum(len(t.records) for t in made) == len(rows)
    one, other = file_name("a/b"), file_name("a b")
    assert one != other and "/" not in one


def test_names_longer_than_a_file_system_allows_are_cut_and_stay_different():
    assert file_name("a" * 120) == "a" * 120
    names = {file_name("a" * 121), file_name("a" * 255), file_name("a" * 254 + "b"), "a" * 120}
    assert len(names) == 4 and max(map(len, names)) == 129


def test_csv_holds_full_precision():
    results = grid("visa", ["pcb3"], setups=["ENS9"], value=lambda *c: (1 / 3, 0.8))
    (row, _) = csv.DictReader(io.StringIO(tables.means("visa", results).csv()))
    assert float(row["value"]) == 100 * (1 / 3)
