"""The files of a walk: a numbered PNG per stage, an overview, and `index.html`."""

import html
from pathlib import Path

import numpy as np

from ...data import encoders, resizing
from ...support.files import make_folder, write_files
from .stages import GAP, PAPER

MAX_SIDE = 1024  # px, pictures are reduced to this
OVERVIEW_SIDE, PER_ROW = 200, 6  # of the overview: px, height of its pictures; pictures in a row
TITLE = 22  # px, height of the line above each of them


def _overview(stages):
    """All stages on one sheet, numbered and named, uint8 (height, width, 3)."""
    side, panels = OVERVIEW_SIDE, []
    for number, stage in enumerate(stages, start=1):
        h, w = stage.picture.shape[:2]
        w = max(1, round(w * side / h))
        title = encoders.text_coverage(f"{number} {stage.name}", TITLE)[:, :w]
        panel = np.full((TITLE + side + GAP, w + GAP, 3), PAPER)
        panel[:TITLE, : title.shape[1]] -= title[:, :, None]
        panel[TITLE:-GAP, :-GAP] = resizing.resize_image(stage.picture, (side, w), antialias=True)
        panels.append(panel)
    rows = [np.hstack(panels[k : k + PER_ROW]) for k in range(0, len(panels), PER_ROW)]
    width = max(row.shape[1] for row in rows)
    rows = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAPER)
        for row in rows
    ]
    return np.vstack(rows)[:, :-GAP]


def write_walk(stages, folder, title):
    """Write a numbered PNG per stage, overview.jpg, and index.html that shows and explains them.

    Parameters: stages, list of Stage; folder, made where it is missing; title, text.
    Returns the list of the PNG files' names.
    Raises InputError where the folder cannot be written.
    """
    folder = Path(folder)
    make_folder(folder)
    names = [f"{number:02d}-{stage.name}.png" for number, stage in enumerate(stages, start=1)]
    pictures = [encoders.encode_png(_reduced(stage.picture)) for stage in stages]
    files = dict(zip(names, pictures))
    files["overview.jpg"] = encoders.encode_jpeg(_overview(stages), 85)
    files["index.html"] = _page(stages, names, title).encode()
    write_files(folder, files)
    return names


def _reduced(picture):
    h, w = picture.shape[:2]
    factor = MAX_SIDE / max(h, w)
    if factor >= 1:
        return picture
    size = max(1, round(h * factor)), max(1, round(w * factor))
    return resizing.resize_image(picture, size, antialias=True)


def _page(stages, names, title):
    parts = []
    for number, (stage, name) in enumerate(zip(stages, names), start=1):
        source = f", {html.escape(stage.source)}" if stage.source else ""
        parts.append(
            f"<h2>{number}. {html.escape(stage.title)}</h2>\n"
            f"<p><code>{html.escape(stage.shape)}</code> from "
            f"<code>{html.escape(stage.code)}</code>{source}<br>{html.escape(stage.text)}</p>\n"
            f'<p><img src="{name}" alt="{html.escape(stage.title)}"></p>\n'
        )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body { font: 16px/1.5 sans-serif; max-width: 1060px; margin: 2em auto; "
        "padding: 0 1em } img { max-width: 100% }</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        '<p><img src="overview.jpg" alt="all stages"></p>\n' + "".join(parts) + "</html>\n"
    )
