"""Every equation, section, table and figure that the code cites is cited by a test."""

import inspect
import re

import pytest
from citations import cited, in_code, in_tests
from sources import ROOT, SOURCES

from tiled_ref import metrics, smoothing
from tiled_ref.data import images
from tiled_ref.models import fastflow, padim, patchcore, reverse_distillation, trained
from tiled_ref.reporting import paper
from tiled_ref.setups import Recipe


def default(function, name):
    """The default value of a parameter."""
    return inspect.signature(function).parameters[name].default


# (where the number stands, what the code has, what is printed there)
NUMBERS = [
    ("Rolih et al. Sec. 3.3, 10 % of the tile", default(smoothing.smooth_seams, "width"), 0.1),
    ("Rolih et al. Sec. 3.3, as a command runs", Recipe("SM256").seam_width, 0.1),
    ("Rolih et al. Sec. 4.1, AUPRO up to FPR 30 %", default(metrics.aupro, "fpr_limit"), 0.3),
    ("Rolih et al. Sec. 4.2, batch size", padim.Padim.BATCH_SIZE, 32),
    ("Rolih et al. Sec. 4.2, PatchCore's", patchcore.PatchCore.BATCH_SIZE, 8),
    ("Rolih et al. Sec. 4.2, batch size", fastflow.FastFlow.BATCH_SIZE, 32),
    ("Rolih et al. Sec. 4.2", reverse_distillation.ReverseDistillation.BATCH_SIZE, 32),
    ("Rolih et al. Sec. 4.2, steps", default(trained.TrainedModel, "steps"), 200),
    ("Rolih et al. Sec. 4.2, coreset as in anomalib", patchcore.RATIO, 0.1),
    ("Rolih et al. Sec. 4.2, neighbours as in anomalib", patchcore.N_NEIGHBOURS, 9),
    ("Defard et al. Sec. IV-B, PaDiM-R18-Rd100", padim.D, 100),
    ("Defard et al. Sec. IV-B, 64 + 128 + 256", padim.N_FEATURES, 448),
    ("Defard et al. Sec. IV-B, eps of Eq. 1", padim.EPSILON, 0.01),
    ("Defard et al. Sec. IV-B, px", padim.SIGMA, 4.0),
    ("Roth et al. Sec. 3.3, px", patchcore.SIGMA, 4.0),
    ("Yu et al., implementation details", fastflow.N_BLOCKS, 8),
    ("Yu et al., implementation details", fastflow.LEARNING_RATE, 1e-3),
    ("Yu et al., implementation details", fastflow.WEIGHT_DECAY, 1e-5),
    ("Deng and Li Sec. 4.1", reverse_distillation.LEARNING_RATE, 0.005),
    ("Deng and Li Sec. 4.1", reverse_distillation.BETAS, (0.5, 0.999)),
    ("Deng and Li Sec. 4.1, px", reverse_distillation.SIGMA, 4.0),
    ("torchvision, IMAGENET1K_V1", images.MEAN, (0.485, 0.456, 0.406)),
    ("torchvision, IMAGENET1K_V1", images.STD, (0.229, 0.224, 0.225)),
]


@pytest.mark.parametrize("source, ours, printed", NUMBERS)
def test_numbers_are_those_of_the_papers(source, ours, printed):
    """Defard et al. Sec. IV-B; Roth et al. Sec. 3.3; Deng and Li Sec. 4.1."""
    assert ours == printed, source


# One cell of each table, read off the page: (table, data set, architecture, category, AUROC, AUPRO).
PRINTED = [
    (1, "mvtec", "padim", "average", 89.7, 91.0),
    (2, "visa", "padim", "average", 86.3, 86.9),
    (5, "mvtec", "patchcore", "screw", 92.1, 98.2),
    (6, "mvtec", "padim", "screw", 69.4, 92.2),
    (7, "mvtec", "fastflow", "screw", 81.2, 88.6),
    (8, "mvtec", "reverse_distillation", "screw", 69.6, 76.0),
    (9, "visa", "patchcore", "pcb3", 97.5, 94.6),
    (10, "visa", "padim", "pcb3", 80.7, 89.7),
    (11, "visa", "fastflow", "pcb3", 93.8, 88.1),
    (12, "visa", "reverse_distillation", "pcb3", 94.6, 93.3),
]


@pytest.mark.parametrize("table, dataset, arch, category, auroc, aupro", PRINTED)
def test_results_are_those_printed(table, dataset, arch, category, auroc, aupro):
    """ENS9 in Tables 1-2 and 5-12: Tables 1-2, Tables 5-12."""
    assert paper.paper_result(dataset, arch, category, "ENS9") == (
        pytest.approx(auroc / 100), pytest.approx(aupro / 100)
    )  # fmt: skip
    if category != "average":
        assert paper.table_number(dataset, arch) == table


def test_parameters_and_seconds_are_those_printed():
    """Table 3, Table 4."""
    assert paper.paper_parameters("reverse_distillation", "ENS9") == 163.5
    assert paper.paper_parameters("padim", "ENS4") == 11.1
    assert paper.paper_training_seconds("padim", "SM256") == 772.0
    assert paper.paper_training_seconds("patchcore", "SM512") == 2273.0


def test_every_citation_has_a_test():
    tests = in_tests()
    lacking = {c: sorted(files) for c, files in in_code().items() if c not in tests}
    # "Read Sec. 3 beside this file" is advice and states nothing that could be wrong.
    chapters = {c for c in lacking if c[1] == "Sec." and c[2].isdigit()}
    # A figure is a picture to look at; numbers that stand in one are cited where they are used.
    figures = {c for c in lacking if c[1] == "Fig."}
    assert {c: f for c, f in lacking.items() if c not in chapters | figures} == {}


def test_the_equations_of_the_paper_are_all_there():
    """Rolih et al. have five numbered equations."""
    code = in_code()
    assert {c[2] for c in code if c[:2] == ("Rolih", "Eq.")} == {"1", "2", "3", "4", "5"}


PAGE = ROOT / "tiled_ref" / "models" / "README.md"


def readme_rows():
    """Rows of models/README.md's table of equations: (citations, test names)."""
    text = PAGE.read_text("utf-8")
    table = text.partition("## Equation, function, test")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [
        (cited(row[0], ROOT / "tiled_ref" / "tiling.py"), re.findall(r"`(tests/\S+::\w+)`", row[3]))
        for row in rows
        if len(row) == 4 and "::" in row[3]
    ]


def test_every_row_of_the_readme_names_a_test_that_cites_its_equation():
    rows, tests = readme_rows(), in_tests()
    assert len(rows) > 15
    wrong = [
        (citation, names)
        for citations, names in rows
        for citation in citations
        if citation[1] == "Eq." and not tests.get(citation, set()) & set(names)
    ]
    assert wrong == []


def test_every_equation_of_the_code_is_in_the_readme():
    listed = set().union(*(citations for citations, _ in readme_rows()))
    borrowed = {"Higham"}  # bounds of rounding, not part of the method
    code = {c for c in in_code() if c[1] == "Eq." and c[0] not in borrowed}
    assert sorted(code - listed) == []


def test_every_deviation_is_in_the_table_and_in_the_code():
    """Ids are D1, D2, ...; the code says at its place which one it is."""
    text = PAGE.read_text("utf-8")
    listed = [int(n) for n in re.findall(r"^\| D(\d+) \|", text, re.MULTILINE)]
    assert listed == list(range(1, len(listed) + 1)) and len(listed) >= 11
    code = "\n".join(path.read_text("utf-8") for path in SOURCES)
    assert re.findall(r"\bDeviation\b(?! D\d).*", code) == []
    assert {int(n) for n in re.findall(r"\b[Dd]eviation D(\d+)\b", code)} == set(listed)


def test_how_citations_are_read():
    """The reader itself: ranges, pairs, authors before and by default, tables, lines."""
    padim_file, other = ROOT / "tiled_ref/models/padim.py", ROOT / "tiled_ref/x.py"
    assert cited("Eq. 1-2 and Eq. 5", other) == {("Rolih", "Eq.", n) for n in "125"}
    assert cited("see Eq. 1", padim_file) == {("Defard", "Eq.", "1")}
    assert cited("Table 3", padim_file) == {("Rolih", "Table", "3")}
    assert cited("Yu et al. Sec. 3.3, Dinh et al. Eq. 4-5", padim_file) == {
        ("Yu", "Sec.", "3.3"), ("Dinh", "Eq.", "4"), ("Dinh", "Eq.", "5")
    }  # fmt: skip
    assert cited("Roth et al. Sec. 4\nEq. 1", padim_file) == {
        ("Roth", "Sec.", "4"), ("Defard", "Eq.", "1")
    }  # fmt: skip
    assert cited("Sec. III-A", padim_file) == {("Defard", "Sec.", "III-A")}
