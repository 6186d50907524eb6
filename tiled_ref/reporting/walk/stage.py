"""A stage of a walk, and functions that draw its array."""

from dataclasses import dataclass

import numpy as np

from ..drawing import render

GAP = 8  # px between the tiles of a picture
PAPER = np.uint8(255)  # grey level between tiles
DEFECT = (255, 92, 225)  # outline of a true defect, as in the report


@dataclass(frozen=True)
class Stage:
    """One stage of an image's walk."""

    name: str  # part of the file's name, such as "tile-maps"
    title: str  # a few words
    array: np.ndarray  # the result of the stage for this image
    code: str  # the function that computed it
    source: str  # the equation or section, "" if there is none
    text: str  # what the picture shows
    picture: object  # uint8 (h, w, 3), or the text of an SVG file
    play: str = ""  # HTML of the interactive section at the end of the page

    @property
    def shape(self):
        """Shape and dtype as text, such as "(3, 3, 1, 256, 256) float32"."""
        sides = ", ".join(map(str, self.array.shape))
        return f"({sides}{',' * (self.array.ndim == 1)}) {self.array.dtype}"

    @property
    def suffix(self):
        """The suffix of the picture's file, "png" or "svg"."""
        return "svg" if isinstance(self.picture, str) else "png"


def heat(values, low, high):
    """Colours uint8 (H, W, 3) of values (H, W), any dtype, from low to high."""
    return render.colormap(np.clip((values - low) / ((high - low) or 1.0), 0, 1))


def outlined(picture, truth):
    """A picture uint8 (H, W, 3) with the outlines of true defects, truth bool (H, W); the picture
    itself if truth is None."""
    return picture if truth is None else render.draw_contours(picture, truth, DEFECT)


def heat_map(values, truth=None, limits=None, spot=None, title="anomaly"):
    """A heat map with its scale and the true defects.

    Parameters: values (H, W), any dtype; truth bool (H, W) or None; limits, the values of the
    lowest and highest colour, by default the range of values; spot bool (H, W), outlined in white;
    title, of the colour bar.
    Returns uint8 (h, w, 3), the map at its top left.
    """
    low, high = limits or (float(values.min()), float(values.max()))
    picture = outlined(heat(values, low, high), truth)
    picture = picture if spot is None else render.draw_contours(picture, spot)
    return render.with_color_bar(picture, low, high, (), title)


def apart(tiles, gap=GAP):
    """Tiles uint8 (rows, cols, h, w, 3) side by side, `gap` px apart: uint8 (H, W, 3)."""
    rows, cols, h, w, _ = tiles.shape
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=PAPER)
    picture = padded.transpose(0, 2, 1, 3, 4).reshape(rows * (h + gap), cols * (w + gap), 3)
    return np.ascontiguousarray(picture[:-gap, :-gap])


def in_a_row(pictures):
    """Pictures uint8 (h, w, 3) of any sizes, side by side, aligned at the top: uint8 (H, W, 3)."""
    height = max(len(picture) for picture in pictures)
    parts = [
        np.pad(p, ((0, height - len(p)), (0, 2 * GAP), (0, 0)), constant_values=PAPER)
        for p in pictures
    ]
    return np.ascontiguousarray(np.hstack(parts)[:, : -2 * GAP])
