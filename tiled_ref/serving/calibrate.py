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
from ..marks import check_marks, enlarge, mark_value, marks
from ..metrics import label_regions
from ..reporting.drawing import svg
from ..support.errors import InputError
from ..support.files import atomic_write, make_folder
from ..support.progress import Progress
from ..support.tables import csv_text
from ..thresholds import allowed_alarms, false_alarm_threshold
from .predict import Predictor, rows_of

COUNTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # false alarms, rows of the table
COLUMNS = (
    "false_alarms", "normal_images", "image_threshold", "missed_images", "defective_images",
    "pixel_threshold", "missed_defects", "defects",
)  # fmt: skip


def run_calibrate(ensemble, saved, source, out, rules, options, progress=None):
    """Score a folder and store the thresholds at which a share of its normal images is an alarm.

    Parameters: ensemble, a TiledEnsemble; saved, its folder; source, see
    data.folder.load_calibration; out, a folder for table and chart; rules, a thresholds.Rules,
    whose false_alarms, 0 by default, is the share for images and for pixels; options, a
    PredictOptions; progress, a Progress.
    Returns (rows, chosen, notes): rows of the table, dicts of COLUMNS, ascending in false alarms;
    the number of false alarms whose row is chosen, and sentences. A missed image has a score below
    the image threshold; a missed defect, a region of a mask, touches no mark. Without masks the
    defective images count instead. With marks, false alarms are normal images that have one.
    Raises InputError where the folder does not fit, an image cannot be read or a file written.
    """
    progress, out = progress or Progress(quiet=True), Path(out)
    samples, has_masks, notes = load_calibration(source)
    for note in notes:
        progress.note(note)
    make_folder(out)
    ensemble.roi = rules.roi
    good = [sample for sample in samples if sample.label == NORMAL]
    bad = [sample for sample in samples if sample.label != NORMAL]
    stage = progress.stage("calibrate")
    predictor = Predictor(ensemble, options.impl, options.threads, options.memory)

    def predicted(samples, before):
        """(sample, score, map at the image's size) of each sample."""
        for k, (sample, image_map, score, error) in enumerate(rows_of(predictor, samples)):
            if error is not None:
                raise error
            if not np.isfinite(image_map).all() or not np.isfinite(score):
                raise InputError(f"the prediction for {sample.name} is not finite")
            size = sample.read_size()
            check_marks(size, rules.min_area, rules.roi, sample.name)
            yield sample, score, enlarge(image_map, size)
            stage(before + k + 1, len(good) + len(bad))

    scores, peaks, low, high = [], [], np.inf, -np.inf
    for _, score, large in predicted(good, 0):
        scores.append(score)
        peaks.append(mark_value(large, rules.min_area, rules.roi, options.impl))
        low, high = min(low, float(large.min())), max(high, float(large.max()))
    n, rate = len(good), rules.false_alarms or 0.0
    chosen = allowed_alarms(rate, n)
    rows = [
        dict.fromkeys(COLUMNS, 0) | {
            "false_alarms": count, "normal_images": n, "defective_images": len(bad),
            "image_threshold": false_alarm_threshold(scores, count),
            "pixel_threshold": false_alarm_threshold(peaks, count),
        }
        for count in sorted({*(c for c in COUNTS if c < n), chosen})
    ]  # fmt: skip
    for sample, score, large in predicted(bad, n):
        mask = sample.read_mask() if has_masks else np.ones(large.shape, bool)
        defects = label_regions(mask[None], impl=options.impl)[0]
        for row in rows:
            row["missed_images"] += int(score < row["image_threshold"])
            found = marks(large, row["pixel_threshold"], rules.min_area, rules.roi, options.impl)
            n_touched = np.count_nonzero(np.unique(defects[found > 0]))
            row["missed_defects"] += int(defects.max()) - int(n_touched)
            row["defects"] += int(defects.max())
        scores.append(score)
        low, high = min(low, float(large.min())), max(high, float(large.max()))
    row = next(row for row in rows if row["false_alarms"] == chosen)
    part = {"rule": "false_alarms", "percentile": None, "false_alarms": rate, "f1": None}
    ensemble.thresholds = {
        "mode": "given", "n_normal": n, "n_anomalous": len(bad), "min_area": rules.min_area,
        "image": part | {
            "threshold": row["image_threshold"], "minimum": min(scores), "maximum": max(scores)
        },
        "pixel": part | {
            "threshold": row["pixel_threshold"], "minimum": low, "maximum": high
        },
    }  # fmt: skip
    with atomic_write(out / "calibration.csv") as file:
        file.write(csv_text(COLUMNS, rows))
    with atomic_write(out / "calibration.svg") as file:
        file.write(_chart(rows, has_masks))
    write_thresholds(saved, ensemble.thresholds, rules.roi)
    return rows, chosen


def _chart(rows, has_masks):
    """Misses against false alarms, both in percent, as an SVG file."""
    chart = svg.Chart(
        "False alarms and misses", "false alarms, % of normal images", "missed, %",
        y_range=(0, 100), note=f"{rows[0]['normal_images']} normal images",
    )  # fmt: skip
    x = [100 * row["false_alarms"] / row["normal_images"] for row in rows]
    lines = {
        "images, by their score": ("missed_images", "defective_images"),
        f"{'defects' if has_masks else 'defective images'}, by marks": ("missed_defects", "defects"),
    }
    for k, (label, (missed, total)) in enumerate(lines.items()):
        if rows[0][total]:
            y = [100 * row[missed] / row[total] for row in rows]
            chart.line(x, y, label=label, series=k, marks=True)
    return chart.svg()
