"""Move a trained ensemble's operating point, using your own images.

    calibration.csv     a row per number of false alarms: thresholds and misses
    calibration.svg     the same as a chart

The chosen point is stored in thresholds.json in the ensemble's folder.
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

COUNTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # false alarms, a table row each
COLUMNS = (
    "chosen", "false_alarms", "normal_images", "image_threshold", "missed_images",
    "defective_images", "pixel_threshold", "missed_defects", "defects",
)  # fmt: skip


def run_calibrate(ensemble, saved, source, out, rules, options, progress=None):
    """Score a folder and store the thresholds that give a chosen false-alarm rate on normal images.

    Parameters: ensemble, a TiledEnsemble; saved, its folder; source, see
    data.folder.load_calibration; out, a folder for table and chart; rules, a thresholds.Rules,
    whose false_alarms, 0 by default, is the rate for images and for pixels; options, a
    PredictOptions; progress, a Progress.
    Returns the table's rows, dicts of COLUMNS, sorted by false alarms: the maximum number of normal
    images that reach the image threshold, and of those with a mark. A missed image scores below the
    image threshold; a missed defect, a region of a mask, touches no mark. Without masks, each
    defective image counts as one defect.
    Raises InputError if the folder has another layout, or an image or output file fails.
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
    scores, values = [], []  # all image scores; minimum and maximum of every map

    def predicted(samples):
        """Yield (sample, score, map at the image's size) for each sample."""
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
    """Build the table's rows, with 0 misses, from (sample, score, map) of the normal images."""
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
    """Count a defective image in every row; its map and mask have the image's size."""
    defects = label_regions(mask[None], impl=options.impl)[0]
    for row in rows:
        found = marks(large, row["pixel_threshold"], rules.min_area, rules.roi, options.impl)
        n_touched = np.count_nonzero(np.unique(defects[found > 0]))
        row["defective_images"] += 1
        row["missed_images"] += int(score < row["image_threshold"])
        row["missed_defects"] += int(defects.max()) - int(n_touched)
        row["defects"] += int(defects.max())


def _part(rules, threshold, values):
    """Return a threshold and its range of values as thresholds.find_thresholds stores them."""
    return {
        "rule": "false_alarms", "percentile": None, "false_alarms": rules.false_alarms or 0.0,
        "f1": None, "threshold": threshold, "minimum": min(values), "maximum": max(values),
    }  # fmt: skip


def _chart(rows, has_masks):
    """Plot misses against false alarms, both in percent, as an SVG file."""
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
