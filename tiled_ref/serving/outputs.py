"""The files of a prediction: two tables, and per image a map and pictures.

    predictions.csv     a row per image, in the order of the paths
    regions.csv         a row per anomalous region of the images that are drawn
    maps/               raw maps, with --save-maps
    pictures/           mask, heat map, contours, and the regions as polygons
"""

import contextlib
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data import encoders
from ..data.disk import printable
from ..reporting.drawing import render
from ..support.errors import InputError
from ..support.files import Names, atomic_write, remove_leftovers, write_errors
from ..support.tables import csv_text
from ..verdicts.marks import check_marks, enlarge, marks
from ..verdicts.thresholds import normalize

LONGEST = 64  # characters of an image's name in the names of its files
LABELLED_REGIONS = 24  # regions of a picture that get their area printed
COLUMNS = (
    "path", "score", "normalised_score", "verdict", "regions", "anomalous_px", "name", "error",
)  # fmt: skip
REGION_COLUMNS = (
    "path", "name", "region", "area_px", "area_map_px", "top", "left", "bottom", "right",
    "normalised_maximum",
)  # fmt: skip
PICTURES = ("anomalous", "all", "none")
MAPS = ("npy", "tiff")
TABLES = ("predictions.csv", "predictions.partial.csv", "regions.csv", "regions.partial.csv")
OURS = Names(r"\d{6,}_.*(_mask\.png|_overlay\.png|_contours\.png|_regions\.json|\.npy|\.tiff)")


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted, and what is written of each."""

    maps: str = None  # kind of file for the raw map, float32 (H, W): "npy", "tiff" or None
    pictures: str = "anomalous"  # which images are drawn, at their own size: one of PICTURES
    impl: str = "cython"
    threads: int = None
    memory: str = None  # see `running.engine`; None keeps all models if they fit a budget

    def check(self, thresholds):
        """Raise InputError where pictures of all images are asked for, and no pixel threshold."""
        if self.pictures == "all" and (thresholds is None or thresholds["pixel"] is None):
            raise InputError(
                "the ensemble has no threshold for pixels, so no masks can be drawn; train it with "
                "--validation none, or use --pictures none"
            )


def output_name(index, path):
    """A name for the files of an image: unique by its number index, safe on any system; of a long
    name the start and a digest.

    >>> output_name(7, "line 3/ué part.png")
    '000007_u__part'
    """
    stem = Path(path).stem
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)
    if len(safe) > LONGEST:
        safe = f"{safe[: LONGEST - 9]}_{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
    return f"{index:06d}_{safe or 'image'}"


class ImageWriter:
    """The outputs of one image.

    Parameters: sample, a data.Sample; name, of its files; ensemble, whose thresholds, if any, and
    roi decide; out, a folder; options, PredictOptions.
    """

    def __init__(self, sample, name, ensemble, out, options):
        self.sample, self.name, self.out, self.options = sample, name, out, options
        self.thresholds, self.roi = ensemble.thresholds, ensemble.roi

    def row(self, **cells):
        """A row of predictions.csv, a dict; the cells that are not given are empty."""
        return dict.fromkeys(COLUMNS, "") | {"path": self.sample.name} | cells

    def decide(self, image_map, score):
        """Decide the verdict.

        Parameters: image_map (H, W) float32 and score, float, raw.
        Returns the image, uint8 (h, w, 3), if it is to be drawn, else None.
        Raises InputError where the prediction is not finite or the image cannot be read.
        """
        if not np.isfinite(image_map).all() or not np.isfinite(score):
            raise InputError(
                f"the prediction for {self.sample.name} is not finite, so it has no verdict; "
                "train the ensemble again"
            )
        self.map, self.found = image_map, self.row(score=repr(score), name=self.name)
        self.large = self.labels = None
        if self.thresholds is None:
            return None
        limits = self.thresholds["image"]
        self.scaled = float(
            normalize(np.float64(score), limits["threshold"], limits["minimum"], limits["maximum"])
        )
        anomalous = score >= limits["threshold"]
        self.found["normalised_score"] = repr(self.scaled)
        self.found["verdict"] = "anomalous" if anomalous else "normal"
        if self.thresholds["pixel"] is None:
            return None
        marked = self._mark()
        drawn = {"all": True, "none": False, "anomalous": anomalous or marked}
        return self.sample.read_image() if drawn[self.options.pictures] else None

    def _mark(self):
        """Find the marks; returns whether there is one."""
        size, area = self.sample.read_size(), self.thresholds.get("min_area", 1)
        check_marks(size, area, self.roi, self.sample.name)
        self.large = enlarge(self.map, size)
        self.labels = marks(
            self.large, self.thresholds["pixel"]["threshold"], area, self.roi, self.options.impl
        )
        n = int(self.labels.max(initial=0))
        self.found |= {"regions": n, "anomalous_px": int((self.labels > 0).sum())}
        return n > 0

    def write(self, image):
        """Write the files of an image, as decide returned it, uint8 (h, w, 3) or None.

        Returns its row of predictions.csv and its rows of regions.csv.
        """
        if self.options.maps:
            self._write_map()
        if image is None:
            return self.found, []
        return self.found, self._draw(image)

    def _write_map(self):
        if self.options.maps == "tiff":
            data = encoders.encode_tiff(self.map)
        else:
            buffer = io.BytesIO()
            np.save(buffer, self.map, allow_pickle=False)
            data = buffer.getvalue()
        with atomic_write(self.out / "maps" / f"{self.name}.{self.options.maps}", "wb") as file:
            file.write(data)

    def _draw(self, image):
        """Write the pictures; returns the rows of regions.csv."""
        limits, mask = self.thresholds["pixel"], self.labels > 0
        self.labels = None
        values = normalize(self.large, limits["threshold"], limits["minimum"], limits["maximum"])
        self.large = None
        regions, caption = render.contours(mask, impl=self.options.impl), self.caption()
        rows = [self._region(k, region, values) for k, region in enumerate(regions, start=1)]
        self._keep("mask.png", encoders.encode_png(mask))
        heat = render.overlay(image, values)
        del values  # of a large image every array counts
        heat = render.with_color_bar(render.draw_contours(heat, mask))
        self._keep("overlay.png", encoders.encode_png(render.with_caption(heat, caption)))
        del heat
        marked = render.draw_contours(image, mask)
        marked = render.label_regions(marked, regions, mask, LABELLED_REGIONS)
        self._keep("contours.png", encoders.encode_png(render.with_caption(marked, caption)))
        shapes = {
            "path": self.sample.name,
            "image_size": list(mask.shape),
            "normalised_score": self.scaled,
            "verdict": self.found["verdict"],
            "regions": [
                {"area_px": r.area, "box": list(r.box), "outline": [p.tolist() for p in r.outline]}
                for r in regions
            ],
        }
        self._keep("regions.json", json.dumps(shapes).encode())
        return rows

    def _keep(self, suffix, data):
        with atomic_write(self.out / "pictures" / f"{self.name}_{suffix}", "wb") as file:
            file.write(data)

    def caption(self):
        """Lines of text, once decided: verdict, marks and their difference; score; file name."""
        verdict, n = self.found["verdict"] or "no verdict", self.found["regions"]
        if n != "":
            marked = f"{n} mark{'s' * (n != 1)}, {self.found['anomalous_px']:,} px"
            differ = (verdict == "anomalous") != (n > 0)
            verdict += f", {'but ' * differ}{marked if n else 'no mark'}"
        score = f"score {float(self.found['score']):.5g}"
        if self.thresholds:
            score += f", threshold {self.thresholds['image']['threshold']:.5g}"
        return [verdict, score, Path(self.sample.name).name]

    def _region(self, number, region, values):
        """A row of regions.csv."""
        top, left, bottom, right = region.box
        return {
            "path": self.sample.name,
            "name": self.name,
            "region": number,
            "area_px": region.area,
            "area_map_px": f"{region.area * self.map.size / values.size:.1f}",
            "top": top, "left": left, "bottom": bottom, "right": right,
            "normalised_maximum": repr(float(values[top:bottom, left:right].max())),
        }  # fmt: skip


def with_given(thresholds, image=None, pixel=None, min_area=None):
    """Thresholds with some of them given by hand; see `find_thresholds`.

    Parameters: thresholds, a dict or None; image and pixel, raw thresholds; min_area, pixels; None
    keeps what there is. Returns a new dict; None where no threshold is known.
    Raises InputError for marks without an image threshold.
    """
    if thresholds is None:
        if image is None:
            if pixel is not None:
                raise InputError(
                    "the ensemble has no thresholds, so --pixel-threshold needs --threshold; "
                    "give both, or decide them by --calibrate"
                )
            return None
        thresholds = {"mode": "given", "n_normal": 0, "n_anomalous": 0, "pixel": None}
    found = dict(thresholds)
    for kind, value in (("image", image), ("pixel", pixel)):
        if value is not None:
            part = found.get(kind) or {"minimum": value, "maximum": value}
            found[kind] = {
                "rule": "given", "percentile": None, "f1": None, "threshold": value,
                "minimum": part["minimum"], "maximum": part["maximum"],
            }  # fmt: skip
    return found if min_area is None else found | {"min_area": min_area}


def is_output(path):
    """Whether a file is a map or a picture of an earlier prediction, by its name and place."""
    if Path(path).name not in OURS:
        return False
    folder = Path(os.path.abspath(path)).parent
    tables = [folder.parent / name for name in TABLES[:2]]
    return folder.name in ("maps", "pictures") and any(map(os.path.isfile, tables))


def clear(out):
    """Remove an earlier prediction from a folder, and nothing else. Raises InputError.

    What it removes from maps/ and pictures/ is what `is_output` names, and what a dead process has
    left of such files. predictions.partial.csv stays: it says that the folder is not whole.
    """
    whole, partial, *others = (out / name for name in TABLES)
    try:
        if whole.is_file():
            os.replace(whole, partial)
        if not partial.is_file():
            return
        for path in others:
            path.unlink(missing_ok=True)
        for folder in (out / "maps", out / "pictures"):
            remove_leftovers(folder, OURS)
            for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
                if name in OURS:
                    (folder / name).unlink()
    except OSError as error:
        raise InputError(
            f"the earlier prediction in {printable(out)} cannot be removed: {error.strerror}; "
            "choose another --out"
        ) from error


@contextlib.contextmanager
def csv_table(stem, columns):
    """A CSV file; until it is complete its name is STEM.partial.csv, then STEM.csv.

    Parameters: stem, its path without an ending; columns, names.
    Yields write(row), which appends a row, a dict, at once.
    Raises InputError where it cannot be written.
    """
    partial = stem.with_suffix(".partial.csv")
    named = printable(partial)
    with write_errors(named):
        partial.unlink(missing_ok=True)  # writing to a link would change its target
        file = open(partial, "w", encoding="utf-8", newline="")

    def write(*rows, header=False):
        with write_errors(named):
            file.write(csv_text(columns, rows, header))
            file.flush()

    try:
        write(header=True)
        yield write
        with write_errors(named):
            os.fsync(file.fileno())
            file.close()
            os.replace(partial, stem.with_suffix(".csv"))
    finally:
        with contextlib.suppress(OSError):
            file.close()
