"""The parts of a data set: samples, and categories of samples."""

from dataclasses import dataclass

NORMAL, ANOMALOUS = 0, 1
GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image of a data set: identified by name, read on demand, not cached.

    Subclasses implement reading: `disk.FileSample` decodes files, `synthetic` draws. Reading is
    a pure function of the fields and is called from several threads at once.

    Parameters
    ----------
    name : str
        Stable and unique within the data set: the image's path relative to the data set's
        root, with "/" as the separator, such as "screw/test/thread_top/007.png".
    label : {0, 1}
        0 normal, 1 anomalous.
    defect : str
        Kind of defect; "good" for a normal image.
    """

    name: str
    label: int
    defect: str

    @property
    def version(self):
        """JSON values that change when the sample does."""
        return [self.name, self.label]

    @property
    def stamp(self):
        """Values that differ if the content may have changed; found without reading it."""
        return None

    def read_image(self):
        """The image, uint8 (h, w, 3), RGB, at its original size."""
        raise NotImplementedError

    def read_size(self):
        """(h, w), the image's original size, measured on the pixels, not read from a header."""
        return self.read_image().shape[:2]

    def read_mask(self):
        """True where the image is anomalous, bool (h, w); None if it is normal or has no mask."""
        raise NotImplementedError


@dataclass(frozen=True)
class Evaluation:
    """A data set's evaluation defaults, which options override.

    Parameters
    ----------
    fpr_limit : float
        FPR limit of AUPRO, a fraction.
    metric_size : {"setup", "original"}
        The size for pixel metrics: the setup's image size, or each image's original size.
    deviations : float or None
        If only normal images decide, the pixel threshold is the mean of all their pixels plus this
        many standard deviations; None uses a share of false alarms, see `find_thresholds`.
    """

    fpr_limit: float = 0.3
    metric_size: str = "setup"
    deviations: float = None


@dataclass(frozen=True)
class Category:
    """One object or texture of a data set: its training and test images.

    Parameters
    ----------
    dataset, name : str
        Such as "mvtec", "screw".
    train : tuple of Sample
        Normal images only, in a stable order, at least one.
    test : tuple of Sample
        Normal and anomalous images, in a stable order, at least one.
    has_masks : bool
        Every anomalous test image has a mask, so pixel metrics can be computed. Also True
        if no test image is anomalous.
    validation : tuple of Sample
        Normal images that decide the thresholds; often empty.
    notes : tuple of str
        Sentences for the user, such as the number of skipped files.
    folder : str
        Absolute path of the folder that it was read from; empty if there is none.
    evaluation : Evaluation
    """

    dataset: str
    name: str
    train: tuple
    test: tuple
    has_masks: bool
    validation: tuple = ()
    notes: tuple = ()
    folder: str = ""
    evaluation: Evaluation = Evaluation()
