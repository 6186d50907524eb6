"""Results of finished cells for tables, figures and the page: order, titles, selection.

A result is the dict in a cell's metrics.json, see `cell.run_cell`.
"""

import zlib

from ..running.category_images import LOST
from ..setups import SETUPS
from . import paper

ARCHS = {  # in the order of the paper's columns
    "patchcore": "PatchCore",
    "padim": "PaDiM",
    "fastflow": "FastFlow",
    "reverse_distillation": "Reverse Distillation",
}
DATASETS = {
    "mvtec": "MVTec AD", "visa": "VisA", "mvtec2": "MVTec AD 2",
    "synthetic": "the built-in data set",
}  # fmt: skip
PAPER_LIMIT = 0.3  # of the paper's AUPRO
TITLES = ARCHS | DATASETS
LONGEST = 120  # characters; with prefix and suffix even the temporary name stays within 255
LEFT_OUT = (
    "Times are missing where a run reused backbone layers that another run had computed."
)


def title_of(name):
    """Return the title of an architecture or data set; its name if it is not in the paper."""
    return TITLES.get(name, name)


def aupro_name(results):
    """Return "AUPRO", with the FPR limit of the results if it is not the paper's.

    >>> aupro_name([{"fpr_limit": 0.3}]), aupro_name([{"fpr_limit": 0.05}])
    ('AUPRO', 'AUPRO@0.05')
    """
    limits = sorted({r["fpr_limit"] for r in results})
    return "AUPRO" if limits in ([], [PAPER_LIMIT]) else f"AUPRO@{', '.join(map(str, limits))}"


def table_metrics(results):
    """Return the metrics of a data set's table: {key in a result: name}."""
    names = {"image_auroc": "AUROC", "pixel_aupro": aupro_name(results)}
    is_mvtec2 = {r["dataset"] for r in results} == {"mvtec2"}
    return names | ({"seg_f1": "SegF1"} if is_mvtec2 else {})


def comparable(results, metric="image_auroc"):
    """Whether a metric of the results can be compared with the paper's."""
    return all(
        r["weights"] == "imagenet" and (metric != "pixel_aupro" or r["fpr_limit"] == PAPER_LIMIT)
        for r in results
    )


def select(results, **wanted):
    """Return the results with these values, such as select(results, arch="padim")."""
    return [r for r in results if all(r[key] == value for key, value in wanted.items())]


def grouped(results, *keys):
    """Return {values of the keys: results that share them}, in order of first occurrence."""
    groups = {}
    for r in results:
        groups.setdefault(tuple(r[key] for key in keys), []).append(r)
    return groups


def datasets_of(results):
    """Return the data sets that occur: known ones in their order, then others by name."""
    return [name for _, name in sorted({_place(r["dataset"], DATASETS) for r in results})]


def categories_of(dataset, results):
    """Return the categories that occur: the paper's in its order, then others by name."""
    known = paper.categories(dataset)
    return [name for _, name in sorted({_place(r["category"], known) for r in results})]


def archs_of(results):
    """Return the architectures that occur: the paper's in its order, then others by name."""
    return [name for _, name in sorted({_place(r["arch"], ARCHS) for r in results})]


def setups_of(results):
    """Return the setups that occur: the paper's in its order, then others by size and name."""
    return list(dict.fromkeys(r["setup"] for r in sorted(results, key=_setup_place)))


def table_place(r):
    """Sort key of a result: the order of tables, then the seed."""
    dataset, known = r["dataset"], paper.categories(r["dataset"])
    return (
        _place(dataset, DATASETS), _place(r["category"], known), _place(r["arch"], ARCHS),
        _setup_place(r), r["seed"],
    )  # fmt: skip


def _setup_place(r):
    return [*SETUPS, r["setup"]].index(r["setup"]), tuple(r["image_size"]), r["setup"]


def _place(name, known):
    """Sort key of a name: known names in their order, then others by name."""
    return [*known, name].index(name), name


def timed(results):
    """Return the results of cells that reused no backbone layers."""
    return [result for result in results if not result.get("features_reused")]


def left_out(results):
    """Return [LEFT_OUT] if a cell is not timed, else []."""
    return [LEFT_OUT] if len(timed(results)) < len(results) else []


def lost(results, text=str):
    """Return a sentence for each kind of loss in category_images.LOST that some result counts;
    results of older versions count none. Parameters: results; text(name) of a category."""
    sentences = []
    for field, (total, kind) in LOST.items():
        places = {}  # seeds and architectures share their counts
        for r in results:
            if r.get(field):
                size = " at {}x{}".format(*r["image_size"]) if field == "n_defects_vanished" else ""
                place = text(r["category"]) + size
                places[r["dataset"], f"{r[field]} of {r.get(total)} ({place})"] = None
        if places:
            numbers = ", ".join(number for _, number in places)
            sentences.append(f"{kind[0].upper()}{kind[1:]}: {numbers}.")
    return sentences


def largest_peak(results):
    """Return the largest peak memory of results in bytes, None if no system reported it."""
    peaks = [result["peak_memory_bytes"] for result in results]
    return max((peak for peak in peaks if peak is not None), default=None)


def file_name(text):
    """Make a text part of a file name: characters other than ASCII letters, digits, "-" and "_"
    become "_", it is cut to LONGEST, and a checksum is appended if that changed the text.

    >>> file_name("mvtec_screw"), file_name("a b"), file_name("a/b")
    ('mvtec_screw', 'a_b-806c5cd3', 'a_b-07f4401c')
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)
    plain = plain[:LONGEST]
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode()):08x}"
