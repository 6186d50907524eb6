"""The output files of a prediction: two tables, and a map and pictures per image.

    predictions.csv     a row per image, in path order
    regions.csv         a row per anomalous region of each image drawn
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

LONGEST = 64  # characters of an image's name kept in its output file names
LABELLED_REGIONS = 24  # maximum number of regions per picture labelled with their area
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
    """How to predict images, and which files to write for each."""

    maps: str = None  # file format of the raw map, float32 (H, W): "npy", "tiff" or None
    pictures: str = "anomalous"  # which images to draw, at their own size: one of PICTURES
    impl: str = "cython"
    threads: int = None
    memory: str = None  # see `running.engine`; None keeps all models if they fit a budget

    def check(self, thresholds):
        """Raise InputError if pictures of all images are requested without a pixel threshold."""
        if self.pictures == "all" and (thresholds is None or thresholds["pixel"] is None):
            raise InputError(
                "the ensemble has no pixel threshold, so masks cannot be drawn; train it with "
                "--validation none, or use --pictures none"
            )


def output_name(index, path):
    """Return a name for an image's files: unique through index, safe on any system, long names cut
    and completed by a digest.

    >>> output_name(7, "line 3/ué part.png")
    '000007_u__part'
    """
    stem = Path(path).stem
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)
    if len(safe) > LONGEST:
        safe = f"{safe[: LONGEST - 9]}_{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
    return f"{index:06d}_{safe or 'image'}"


class ImageWriter:
    """Decides and writes the outputs of one image.

    Parameters: sample, a data.Sample; name, the stem of its files; ensemble, provides thresholds,
    if any, and roi; out, a folder; options, PredictOptions.
    """

    def __init__(self, sample, name, ensemble, out, options):
        self.sample, self.name, self.out, self.options = sample, name, out, options
        self.thresholds, self.roi = ensemble.thresholds, ensemble.roi

    def row(self, **cells):
        """Return a row of predictions.csv, a dict; cells not given are empty."""
        return dict.fromkeys(COLUMNS, "") | {"path": self.sample.name} | cells

    def decide(self, image_map, score):
        """Decide the verdict.

        Parameters: image_map (H, W) float32 and score, float, raw.
        Returns the image, uint8 (h, w, 3), if it should be drawn, else None.
        Raises InputError if the prediction is not finite or the image cannot be read.
        """
        if not np.isfinite(image_map).all() or not np.isfinite(score):
            raise InputError(
                f"the prediction for {self.sample.name} is not finite, so it has no verdict; "
                "retrain the ensemble"
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
        """Find the marks; return whether there are any."""
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
        """Write the image's files; image is what decide returned, uint8 (h, w, 3) or None.

        Returns its row for predictions.csv and its rows for regions.csv.
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
        """Write the pictures; return the rows for regions.csv."""
        limits, mask = self.thresholds["pixel"], self.labels > 0
        self.labels = None
        values = normalize(self.large, limits["threshold"], limits["minimum"], limits["maximum"])
        self.large = None
        regions, caption = render.contours(mask, impl=self.options.impl), self.caption()
        rows = [self._region(k, region, values) for k, region in enumerate(regions, start=1)]
        self._keep("mask.png", encoders.encode_png(mask))
        heat = render.overlay(image, values)
        del values  # saves memory on large images
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
        """Return the caption's lines, after decide: verdict and marks; score; file name."""
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
        """Return a row for regions.csv."""
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
    """Return thresholds with some values overridden; see `find_thresholds`.

    Parameters: thresholds, a dict or None; image and pixel, raw thresholds; min_area, pixels; None
    keeps the current value. Returns a new dict, or None if there is no threshold.
    Raises InputError for a pixel threshold without an image threshold.
    """
    if thresholds is None:
        if image is None:
            if pixel is not None:
                raise InputError(
                    "the ensemble has no thresholds, so --pixel-threshold needs --threshold; "
                    "give both, or set them with --calibrate"
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
    """Return whether a file's name and folder mark it as a map or picture written by predict."""
    if Path(path).name not in OURS:
        return False
    folder = Path(os.path.abspath(path)).parent
    tables = [folder.parent / name for name in TABLES[:2]]
    return folder.name in ("maps", "pictures") and any(map(os.path.isfile, tables))


def clear(out):
    """Remove an earlier prediction from a folder, and nothing else. Raises InputError.

    From maps/ and pictures/ it removes the files that `is_output` accepts, and temporary files of
    dead processes. predictions.partial.csv stays: it marks the folder as incomplete.
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
            f"cannot remove the earlier prediction in {printable(out)}: {error.strerror}; "
            "choose another --out"
        ) from error


@contextlib.contextmanager
def csv_table(stem, columns):
    """A CSV file named STEM.partial.csv until it is complete, then STEM.csv.

    Parameters: stem, its path without the suffix; columns, names.
    Yields write(*rows), which appends rows, dicts, and flushes them.
    Raises InputError if it cannot be written.
    """
    partial = stem.with_suffix(".partial.csv")
    named = printable(partial)
    with write_errors(named):
        partial.unlink(missing_ok=True)  # writing through a link would change its target
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
