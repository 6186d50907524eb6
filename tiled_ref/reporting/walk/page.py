"""The files of a walk: a numbered picture per stage, an overview, and `index.html`."""

import base64
import html
from importlib import resources
from pathlib import Path

import numpy as np

from ...data import encoders, resizing
from ...support.files import make_folder, write_files
from ..drawing import svg
from .stage import GAP, PAPER

MAX_SIDE = 1024  # px, larger pictures are reduced to this
QUALITY = 85  # of the JPEG pictures in the page
OVERVIEW_SIDE, PER_ROW = 200, 6  # of the overview: height of its pictures, px; pictures per row
TITLE = 22  # px, height of the line above each picture


def _overview(stages):
    """The pictures of all stages on one sheet, numbered and named, uint8 (height, width, 3); charts
    are left out."""
    side, panels = OVERVIEW_SIDE, []
    for number, stage in enumerate(stages, start=1):
        if stage.suffix == "svg":
            continue
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
    """Write a numbered PNG or SVG per stage, overview.jpg, and a self-contained index.html
    that shows and explains them.

    Parameters: stages, list of Stage; folder, created if missing; title, text.
    Returns the list of the pictures' names.
    Raises InputError if the folder cannot be written.
    """
    folder, files = Path(folder), {}
    make_folder(folder)
    for number, stage in enumerate(stages, start=1):
        name = f"{number:02d}-{stage.name}.{stage.suffix}"
        is_chart = stage.suffix == "svg"
        files[name] = (
            stage.picture.encode() if is_chart else encoders.encode_png(_reduced(stage.picture))
        )
    names = list(files)
    pictures = [stage.picture for stage in stages if stage.suffix == "png"]
    files |= {"overview.jpg": encoders.encode_jpeg(_overview(stages), 85)} if pictures else {}
    files["index.html"] = _page(stages, title).encode()
    write_files(folder, files)
    return names


def _reduced(picture):
    h, w = picture.shape[:2]
    factor = MAX_SIDE / max(h, w)
    if factor >= 1:
        return picture
    size = max(1, round(h * factor)), max(1, round(w * factor))
    return resizing.resize_image(picture, size, antialias=True)


def _page(stages, title):
    """The text of index.html: the template of assets/, filled in."""
    values = {
        "TITLE": html.escape(title),
        "CSS": _asset("walk.css"),
        "CHART_CSS": svg.style_sheet("svg.chart"),
        "CONTENTS": "\n".join(
            f'<li><a href="#{stage.name}">{html.escape(stage.title)}</a></li>' for stage in stages
        ),
        "STAGES": "\n".join(_section(stage) for stage in stages),
    }
    page = _asset("walk.html")
    for name, value in values.items():
        page = page.replace(f"@{name}@", value)
    return page.replace("<!-- playground -->", "".join(stage.play for stage in stages))


def _section(stage):
    source = f", {html.escape(stage.source)}" if stage.source else ""
    return (
        f'<section id="{stage.name}">\n<h2>{html.escape(stage.title)}</h2>\n'
        f"<p>{html.escape(stage.text)}</p>\n<figure>{_figure(stage)}</figure>\n"
        f'<p class="soft"><code>{html.escape(stage.shape)}</code> from '
        f"<code>{html.escape(stage.code)}</code>{source}</p>\n</section>"
    )


def _figure(stage):
    if stage.suffix == "svg":
        return svg.inline(stage.picture)
    data = base64.b64encode(encoders.encode_jpeg(_reduced(stage.picture), QUALITY)).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(stage.title)}">'


def _asset(name):
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8")
