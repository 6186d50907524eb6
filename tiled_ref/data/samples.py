"""The parts of a data set: samples, and the categories that hold them."""

from dataclasses import dataclass

NORMAL, ANOMALOUS = 0, 1
GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image of a data set: known by name, read on demand, never kept.

    A subclass defines the reading: `disk.FileSample` decodes files, `synthetic` draws. Reading is
    a pure function of the fields and is called from several threads at once.

    Parameters
    ----------
    name : str
        Stable and unique within the data set: the image's path relative to the data set's
        root, with "/" between the parts, such as "screw/test/thread_top/007.png".
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
        """Values that tell, without reading the content, that it may have changed."""
        return None

    def read_image(self):
        """The image, uint8 (h, w, 3), RGB, at its original size."""
        raise NotImplementedError

    def read_size(self):
        """(h, w), the image's original size in pixels: that of the pixels, not of a header."""
        return self.read_image().shape[:2]

    def read_mask(self):
        """True where the image is anomalous, bool (h, w); None for a normal image or no mask."""
        raise NotImplementedError


@dataclass(frozen=True)
class Evaluation:
    """How the images of a data set are scored unless an option says otherwise.

    Parameters
    ----------
    fpr_limit : float
        Of AUPRO, a fraction.
    metric_size : {"setup", "original"}
        The size of the pixel metrics: the setup's image size, or each image's own.
    deviations : float or None
        Where only normal images decide, the pixel threshold is the mean of all their pixels plus so
        many standard deviations; None allows false alarms instead, see `find_thresholds`.
    """

    fpr_limit: float = 0.3
    metric_size: str = "setup"
    deviations: float = None


@dataclass(frozen=True)
class Category:
    """One object or texture of a data set: what is trained on and what is tested on.

    Parameters
    ----------
    dataset, name : str
        Such as "mvtec", "screw".
    train : tuple of Sample
        Normal images only, in a stable order, at least one.
    test : tuple of Sample
        Normal and anomalous images, in a stable order, at least one.
    has_masks : bool
        Every anomalous test image has a mask, so pixel metrics can be computed. True as
        well where no test image is anomalous.
    validation : tuple of Sample
        Normal images that are there to decide the thresholds; often none.
    notes : tuple of str
        Sentences for people, such as how many files were passed over.
    folder : str
        Absolute path of the folder that it was read from; empty where there is none.
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
