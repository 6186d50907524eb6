"""Stages, their cases, and the known mistakes of ports.

A stage is computed twice: by the package's own code (`compute`), whose result is stored, and
by a plain formula in float64 (`formula`), which measures the float32 error and, with a
mistake switched on, reproduces a port with that mistake.
"""

from dataclasses import dataclass, field


class Mistake:
    """A known mistake of ports: the sentence that describes it, and the switches of a stage's
    formula that reproduce it."""

    def __init__(self, sentence, **switches):
        self.sentence, self.switches = sentence, switches


@dataclass(frozen=True)
class Weights:
    """A case input: all tensors of one of the bundle's models."""

    model: str  # the model's name


@dataclass(frozen=True)
class File:
    """A case input: a file that is not an array, such as an image."""

    name: str  # with its suffix
    data: bytes  # the file's content


@dataclass(frozen=True)
class Case:
    """Inputs of a stage."""

    name: str  # also used in file names
    inputs: dict  # arrays, Weights or File by name
    flags: tuple = ()  # keys of FLAGS
    comment: str = ""  # a sentence, or empty
    compare: dict = field(default_factory=dict)  # compare classes overriding the stage's


@dataclass(frozen=True)
class Stage:
    """A step of the method."""

    name: str  # also the folder's name
    title: str  # a phrase
    function: str  # the package's implementation
    source: str  # paper and equation
    outputs: dict  # compare class of each output
    cases: object  # () -> iterable of Case
    compute: object  # (inputs) -> outputs, a dict of arrays
    formula: object  # (inputs, **switches) -> the same in float64, all outputs or some
    mistakes: tuple = ()  # of Mistake


# The meanings of case flags.
FLAGS = {
    "non_divisible": "the stride does not fit the image, so the last tiles stick out of it",
    "single_tile": "one tile that covers the image: nothing overlaps and there is no seam",
    "overlap": "tiles overlap, so sums are divided by the number of tiles",
    "not_square": "height and width differ, which shows what exchanges them",
    "ties": "equal scores, which must be one threshold, one curve point, or half a win",
    "empty_mask": "an image, or all, without an anomalous pixel",
    "full_mask": "an image whose every pixel is anomalous",
    "touching_regions": "regions that touch at a corner only are one region (8-connectivity)",
    "reflect": "the border is mirrored without repeating the edge pixel",
    "smaller_than_radius": "the map is smaller than the radius of the blur: mirrored repeatedly",
    "padding": "a side is no multiple of the feature stride, so a grid is rounded up",
    "grey": "one channel, which becomes three equal ones",
    "palette": "pixels are numbers of colours",
    "alpha": "a fourth channel, which is dropped, not blended",
    "sixteen_bit": "16 bits per channel, brought to 8",
    "rotated": "EXIF orientation says that the picture lies on its side",
    "lossy": "a JPEG file, whose decoders differ by a level or two",
    "downscale": "the result is smaller than the input: no antialias",
    "upscale": "the result is larger than the input: the border repeats",
    "same_size": "nothing to do, and nothing may change",
    "one_pixel": "a side of one pixel",
    "clamped": "values beyond the range are clamped",
    "no_range": "the largest value is the smallest: below, at and above the threshold",
    "no_anomalous": "no anomalous example, so the threshold is the largest score",
    "all_equal": "all scores are equal",
    "infinite": "infinities, which have a rank like other numbers",
    "negative": "negative values",
    "few_images": "as many images as the method can do with",
    "more_images_than_channels": "enough images for a covariance of full rank",
    "several": "more than one image, which must not mix",
    "duplicates": "equal vectors; the first of them is taken",
    "start_included": "the random start is the first member of the coreset",
    "one_neighbour": "no re-weighting: the score is the distance",
    "small_bank": "the bank has fewer vectors than neighbours are asked for",
    "limit_between_points": "the FPR limit lies between two curve points",
    "limit_one": "the whole curve, up to an FPR of 1",
    "training": "two steps of training",
    "zero_vector": "a feature vector of zeros, whose cosine counts as 0",
    "small_variance": "a variance near the epsilon of the batch normalisation",
    "undefined": "the result is undefined, which the files say with NaN",
    "near_zero": "gradients near the epsilon of Adam",
    "switch": "a switch of the method that is off by default",
    "genuine": "the backbone has the genuine ImageNet weights",
}
