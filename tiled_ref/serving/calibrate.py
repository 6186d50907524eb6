"""A trained ensemble's operating point, moved on images of one's own.

    calibration.csv     a row per number of false alarms: thresholds and misses
    calibration.svg     the same as a chart

The chosen point is stored in thresholds.json of the ensemble's folder.
"""

from pathlib import Path

import numpy as np

from ..archive.thresholds import write_thresholds
from ..data.folder import load_calibration
from ..data.samples import NORMAL
from ..metrics import label_regions
from ..reporting.drawing import svg
from ..support.errors import InputError
from ..support.files import make_folder, write_files
from ..support.progress import Progress
from ..support.tables import csv_text
from ..verdicts.marks import check_marks, enlarge, mark_value, marks
from ..verdicts.thresholds import allowed_alarms, false_alarm_threshold
from .predict import Predictor, rows_of

COUNTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # false alarms, rows of the table
COLUMNS = (
    "chosen", "false_alarms", "normal_images", "image_threshold", "missed_images",
    "defective_images", "pixel_threshold", "missed_defects", "defects",
)  # fmt: skip


def run_calibrate(ensemble, saved, source, out, rules, options, progress=None):
    """Score a folder and store the thresholds at which a share of its normal images is an alarm.

    Parameters: ensemble, a TiledEnsemble; saved, its folder; source, see
    data.folder.load_calibration; out, a folder for table and chart; rules, a thresholds.Rules,
    whose false_alarms, 0 by default, is the share for images and for pixels; options, a
    PredictOptions; progress, a Progress.
    Returns the rows of the table, dicts of COLUMNS, ascending in false alarms: normal images that
    reach the image threshold, and that have a mark, at most. A missed image has a score below the
    image threshold; a missed defect, a region of a mask, touches no mark. Without masks the
    defective images count instead.
    Raises InputError where the folder does not fit, an image cannot be read or a file written.
    """
    progress = progress or Progress(quiet=True)
    samples, has_masks, notes = load_calibration(source)
    for note in notes:
        progress.note(note)
    make_folder(out)
    ensemble.roi = rules.roi
    groups = [[s for s in samples if (s.label == NORMAL) == normal] for normal in (True, False)]
    stage = progress.stage("calibrate")
    predictor = Predictor(ensemble, options.impl, options.threads, options.memory)
    scores, values = [], []  # of all images; of the maps, the smallest and the largest

    def predicted(samples):
        """(sample, score, map at the image's size) of each sample."""
        for sample, image_map, score, error in rows_of(predictor, [samples]):
            if error is not None:
                raise error
            if not np.isfinite(image_map).all() or not np.isfinite(score):
                raise InputError(f"the prediction for {sample.name} is not finite")
            check_marks(sample.read_size(), rules.min_area, rules.roi, sample.name)
            large = enlarge(image_map, sample.read_size())
            scores.append(score)
            values.extend((float(large.min()), float(large.max())))
            yield sample, score, large
            stage(len(scores), len(samples))

    rows = _rows_of_normal(predicted(groups[0]), rules, options)
    for sample, score, large in predicted(groups[1]):
        mask = sample.read_mask() if has_masks else np.ones(large.shape, bool)
        _count_misses(rows, score, large, mask, rules, options)
    (row,) = (row for row in rows if row["chosen"])
    ensemble.thresholds = {
        "mode": "given",
        "n_normal": len(groups[0]),
        "n_anomalous": len(groups[1]),
        "min_area": rules.min_area,
        "image": _part(rules, row["image_threshold"], scores),
        "pixel": _part(rules, row["pixel_threshold"], values),
    }
    files = {"calibration.csv": csv_text(COLUMNS, rows), "calibration.svg": _chart(rows, has_masks)}
    write_files(Path(out), files)
    write_thresholds(saved, ensemble.thresholds, rules.roi)
    return rows


def _rows_of_normal(predicted, rules, options):
    """The rows of the table, their misses 0, from (sample, score, map) of the normal images."""
    scores, peaks = [], []
    for _, score, large in predicted:
        scores.append(score)
        peaks.append(mark_value(large, rules.min_area, rules.roi, options.impl))
    n = len(scores)
    chosen = allowed_alarms(rules.false_alarms or 0, n)
    return [
        dict.fromkeys(COLUMNS, 0) | {
            "chosen": count == chosen, "false_alarms": count, "normal_images": n,
            "image_threshold": false_alarm_threshold(scores, count),
            "pixel_threshold": false_alarm_threshold(peaks, count),
        }
        for count in sorted({*(c for c in COUNTS if c < n), chosen})
    ]  # fmt: skip


def _count_misses(rows, score, large, mask, rules, options):
    """Add a defective image to every row: its score, map and mask, at the image's size."""
    defects = label_regions(mask[None], impl=options.impl)[0]
    for row in rows:
        found = marks(large, row["pixel_threshold"], rules.min_area, rules.roi, options.impl)
        n_touched = np.count_nonzero(np.unique(defects[found > 0]))
        row["defective_images"] += 1
        row["missed_images"] += int(score < row["image_threshold"])
        row["missed_defects"] += int(defects.max()) - int(n_touched)
        row["defects"] += int(defects.max())


def _part(rules, threshold, values):
    """The entries of thresholds.find_thresholds for a threshold and the values seen."""
    return {
        "rule": "false_alarms", "percentile": None, "false_alarms": rules.false_alarms or 0.0,
        "f1": None, "threshold": threshold, "minimum": min(values), "maximum": max(values),
    }  # fmt: skip


def _chart(rows, has_masks):
    """Misses against false alarms, both in percent, as an SVG file."""
    chart = svg.Chart(
        "False alarms and misses", "false alarms, % of normal images", "missed, %",
        y_range=(0, 100), note=f"{rows[0]['normal_images']} normal images",
    )  # fmt: skip
    x = [100 * row["false_alarms"] / row["normal_images"] for row in rows]
    what = "defects" if has_masks else "defective images"
    lines = {
        "images, by their score": ("missed_images", "defective_images"),
        f"{what}, by marks": ("missed_defects", "defects"),
    }
    for k, (label, (missed, total)) in enumerate(lines.items()):
        if rows[0][total]:
            y = [100 * row[missed] / row[total] for row in rows]
            chart.line(x, y, label=label, series=k, marks=True)
    return chart.svg()
