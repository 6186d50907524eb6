"""Results of finished cells for tables, figures and the page: order, titles, selection.

A result is the dict that metrics.json of a cell holds, see `cell.run_cell`.
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
LONGEST = 120  # characters; with what stands around it a name fits into 255, its temporary one too
LEFT_OUT = (
    "Times are missing where a run reused layers of the backbone that another one had computed."
)


def title_of(name):
    """The title of an architecture or data set; of one that the paper lacks its name."""
    return TITLES.get(name, name)


def aupro_name(results):
    """AUPRO as text, with its limit in the results where that is not the paper's.

    >>> aupro_name([{"fpr_limit": 0.3}]), aupro_name([{"fpr_limit": 0.05}])
    ('AUPRO', 'AUPRO@0.05')
    """
    limits = sorted({r["fpr_limit"] for r in results})
    return "AUPRO" if limits in ([], [PAPER_LIMIT]) else f"AUPRO@{', '.join(map(str, limits))}"


def table_metrics(results):
    """The metrics of a table of results of one data set: entry of a result -> name."""
    names = {"image_auroc": "AUROC", "pixel_aupro": aupro_name(results)}
    is_mvtec2 = {r["dataset"] for r in results} == {"mvtec2"}
    return names | ({"seg_f1": "SegF1"} if is_mvtec2 else {})


def comparable(results, metric="image_auroc"):
    """Whether the paper's numbers of a metric may stand beside those of results."""
    return all(
        r["weights"] == "imagenet" and (metric != "pixel_aupro" or r["fpr_limit"] == PAPER_LIMIT)
        for r in results
    )


def select(results, **wanted):
    """The results that have these values, such as select(results, arch="padim")."""
    return [r for r in results if all(r[key] == value for key, value in wanted.items())]


def grouped(results, *keys):
    """{values of the keys: results that share them}, in the order first seen."""
    groups = {}
    for r in results:
        groups.setdefault(tuple(r[key] for key in keys), []).append(r)
    return groups


def datasets_of(results):
    """The data sets that occur: the known ones in their order, then others by name."""
    return [name for _, name in sorted({_place(r["dataset"], DATASETS) for r in results})]


def categories_of(dataset, results):
    """The categories that occur: the paper's in its order, then others by name."""
    known = paper.categories(dataset)
    return [name for _, name in sorted({_place(r["category"], known) for r in results})]


def archs_of(results):
    """The architectures that occur: the paper's in its order, then others by name."""
    return [name for _, name in sorted({_place(r["arch"], ARCHS) for r in results})]


def setups_of(results):
    """The setups that occur: the paper's in its order, then others by image size and name."""
    return list(dict.fromkeys(r["setup"] for r in sorted(results, key=_setup_place)))


def table_place(r):
    """A key that sorts results as in tables, those of one cell by seed."""
    dataset, known = r["dataset"], paper.categories(r["dataset"])
    return (
        _place(dataset, DATASETS), _place(r["category"], known), _place(r["arch"], ARCHS),
        _setup_place(r), r["seed"],
    )  # fmt: skip


def _setup_place(r):
    return [*SETUPS, r["setup"]].index(r["setup"]), tuple(r["image_size"]), r["setup"]


def _place(name, known):
    """A key that sorts names: the known ones in their order, then others by name."""
    return [*known, name].index(name), name


def timed(results):
    """The results of cells that computed all layers themselves."""
    return [result for result in results if not result.get("features_reused")]


def left_out(results):
    """[LEFT_OUT] where a cell is not timed, else []."""
    return [LEFT_OUT] if len(timed(results)) < len(results) else []


def lost(results, text=str):
    """A sentence for each kind of loss, of category_images.LOST, that some result counts; results
    of older versions count none. Parameters: results; text(name) of a category."""
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
    """The largest peak memory of results in bytes, None where no system reported one."""
    peaks = [result["peak_memory_bytes"] for result in results]
    return max((peak for peak in peaks if peak is not None), default=None)


def file_name(text):
    """A text as part of a file name: anything but ASCII letters, digits, "-" and "_" becomes "_",
    what is longer than LONGEST is cut, and a checksum behind it keeps different texts different.

    >>> file_name("mvtec_screw"), file_name("a b"), file_name("a/b")
    ('mvtec_screw', 'a_b-806c5cd3', 'a_b-07f4401c')
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)
    plain = plain[:LONGEST]
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode()):08x}"
