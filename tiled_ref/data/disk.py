"""Shared by the data sets on disk: file samples, validated listings, pairing of images and masks.

Names are compared in NFC, Unicode's composed form: a file system or archive can store "ü" as one
character or two.
"""

import hashlib
import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from ..support.errors import InputError
from ..support.files import open_regular
from .images import decode_image, decode_mask
from .samples import ANOMALOUS, GOOD, NORMAL, Sample

IMAGE_ENDINGS = (  # in any case
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
GOOD_ALIKE = (  # folder names that suggest normal images, lower-case letters only
    "good", "goods", "ok", "okay", "io", "normal", "normals", "nominal", "pass", "passed", "clean",
    "flawless", "intact", "nodefect", "nodefects", "nondefect", "nondefective", "defectfree",
    "noanomaly", "anomalyfree",
)  # fmt: skip
MASKS_ALIKE = (
    "groundtruth", "groundtruths", "gt", "gts", "mask", "masks", "label", "labels",
    "annotation", "annotations", "segmentation", "segmentations",
)  # fmt: skip


@dataclass(frozen=True)
class FileSample(Sample):
    """A sample whose image and mask are files.

    Parameters: name, label, defect as in Sample; path of the image; mask_path, None if no mask.
    """

    path: Path
    mask_path: Path | None = None
    _size: list = field(default_factory=list, init=False, repr=False, compare=False)  # once read

    @property
    def version(self):
        """See Sample: name and label, the SHA-256 of each file, the mask's name."""
        if self.mask_path is None:
            return [*super().version, _file_version(self.path)]
        files = (_file_version(path) for path in (self.path, self.mask_path))
        return [*super().version, *files, printable("/".join(self.mask_path.parts[-3:]))]

    @property
    def stamp(self):
        """See Sample: inode, size and times of each file."""
        status = (path.stat() for path in (self.path, self.mask_path) if path and path.exists())
        return [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in status]

    def read_image(self):
        image = decode_image(self.path)
        self._size[:] = image.shape[:2]
        return image

    def read_size(self):
        return tuple(self._size) or self.read_image().shape[:2]

    def read_mask(self):
        """See Sample. Raises InputError for a mask whose size differs from the image's.

        It is not resized, because files have usually been mixed up.
        """
        if self.mask_path is None:
            return None
        mask = decode_mask(self.mask_path)
        height, width = self.read_size()
        if mask.shape != (height, width):
            raise InputError(
                f"the mask {self.mask_path} is {mask.shape[0]} x {mask.shape[1]} px but its image "
                f"{self.path} is {height} x {width} px (height x width); save the mask at the "
                "image's size"
            )
        return mask


def _file_version(path):
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise InputError(
            f"the file {path} cannot be read: {error.strerror or error}"
        ) from error
    return digest.hexdigest()


def check_root(root, dataset):
    """Return the root as a Path. Raises InputError unless it is a folder."""
    if root is None:
        raise InputError(f"the data set {dataset} is read from disk; name its folder with --root")
    root = Path(root)
    if not root.exists():
        raise InputError(f"the folder --root {root} does not exist")
    if not root.is_dir():
        raise InputError(f"--root {root} is a file; name the folder that contains the data set")
    return root


def check_category(name, known, root):
    """Raise InputError, listing the known categories, unless `name` is one of them."""
    if name not in known:
        where = f"in {root}" if root is not None else "in the built-in data set"
        raise InputError(
            f"there is no category {name!r} {where}; choose from: {', '.join(known) or 'none'}"
        )


def nfc(text):
    """The text in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


def entries(folder, passed=None):
    """Names in a folder, sorted by code point in NFC; hidden ones are added to `passed` instead.

    Raises InputError if it does not exist, is a file or cannot be read.
    """
    try:
        names = sorted(os.listdir(folder), key=lambda name: (nfc(name), name))
    except FileNotFoundError as error:
        raise InputError(f"the folder {folder} does not exist") from error
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if passed is not None:
        passed += [Path(folder, name) for name in names if name.startswith(".")]
    return [name for name in names if not name.startswith(".")]


def folders(folder):
    """{name in NFC: path} of the subfolders of a folder, sorted, including links to folders.

    Raises InputError if two names are the same in NFC, and as `entries` does.
    """
    found = {}
    for path in (Path(folder, name) for name in entries(folder)):
        if path.is_dir() and found.setdefault(nfc(path.name), path) is not path:
            raise InputError(
                f"{found[nfc(path.name)]} and {path} have the same name in two Unicode forms; "
                "rename one of them"
            )
    return found


def kinds(folder):
    """folders(folder), each with images of one kind: good or a defect.

    Raises InputError for a name that suggests normal images or masks.
    """
    found = folders(folder)
    for name, path in found.items():
        if name != GOOD and _letters(name) in GOOD_ALIKE:
            raise InputError(
                f"does the folder {path} hold normal images? If so, rename it to {GOOD}; "
                "otherwise name it after the defect"
            )
        if looks_like_masks(name):
            raise InputError(
                f"the folder {path} looks like masks, not like images of one kind; move it next "
                f"to {Path(folder).name} as ground_truth, or rename it"
            )
    return found


def looks_like_masks(name):
    """Whether a folder with this name probably holds masks."""
    return _letters(name) in MASKS_ALIKE


def _letters(name):
    return "".join(char for char in nfc(name).lower() if char.isalpha())


def images(folder, passed=None, but=(), endings=IMAGE_ENDINGS):
    """The image files directly in a folder.

    Parameters: folder; passed, a list to which all other files and folders are added, except the
    paths in `but`; endings, file name extensions of images, in lower case.
    Returns a list of Path, sorted by name.
    Raises InputError for a broken link with an image's name, and as `entries` does.
    """
    paths = []
    for path in (Path(folder, name) for name in entries(folder, passed)):
        if path.suffix.lower() in endings and not path.is_dir():
            if not path.exists():
                raise InputError(f"the link {path} is broken; repair or remove it")
            paths.append(path)
        elif passed is not None and path not in but:
            passed.append(path)
    return paths


def some_images(folder, remedy, passed=None):
    """images(folder, passed). Raises InputError with the remedy if there are none."""
    found = images(folder, passed)
    if not found:
        raise InputError(f"the folder {folder} holds no images; {remedy}")
    return found


def passed_over(passed, root):
    """A tuple with one sentence that counts the skipped files and folders below root; an empty
    tuple if there are none."""
    if not passed:
        return ()
    n_folders = sum(path.is_dir() for path in passed)
    parts = [counted(len(passed) - n_folders, "file"), counted(n_folders, "folder")]
    return (
        f"skipped {' and '.join(filter(None, parts))} (hidden, not an image, or in the "
        f"wrong place), such as {printable(min(passed), root)}",
    )


def counted(n, noun):
    """Format a count, such as "1 file" or "2 files"; "" for 0."""
    return f"{n} {noun}{'s' * (n > 1)}" if n else ""


# ---------------------------------------------------------------- test images and their masks


@dataclass(frozen=True)
class Layout:
    """The folder layout that a data set expects.

    Parameters: remedy, the end of an error message about an invalid layout; missing, the end of one
    about a missing mask; suffixes, appended to an image's stem to form its mask's stem; endings,
    file name extensions of masks.
    """

    remedy: str
    missing: str
    suffixes: tuple = ("_mask", "")
    endings: tuple = IMAGE_ENDINGS


def normal_samples(paths, root):
    """Samples for normal images, named by their paths relative to root."""
    return tuple(FileSample(printable(path, root), NORMAL, GOOD, path) for path in paths)


def defect_samples(folder, truth, root, passed, layout):
    """Samples for the images in <folder>/good and <folder>/<defect>, masks from <truth>/<defect>.

    Parameters: folder; truth, the folder of the masks, None if there are none; root, to which the
    samples' names are relative; passed, see `images`; layout, a Layout.
    Returns a tuple of FileSample, sorted by kind of defect, then file name.
    Raises InputError for images directly in `folder`, an empty folder, masks that no image
    uses or that are among the images, and as `kinds` and `match_masks` do.
    """
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist; {layout.remedy}")
    found = kinds(folder)
    if images(folder, passed, found.values()):
        raise InputError(
            f"the folder {folder} holds images outside of good/ and <defect>/, so it is unclear "
            f"which are normal; {layout.remedy}"
        )
    if not found:
        raise InputError(f"the folder {folder} holds no folders of images; {layout.remedy}")
    has_masks = truth is not None and os.path.lexists(truth)
    masks = folders(truth) if has_masks else {}
    unused = [path for name, path in masks.items() if name not in found or name == GOOD]
    for path in (truth, *unused) if has_masks else ():
        if stray := images(path, passed, masks.values(), layout.endings):
            raise InputError(
                f"the folder {path} holds masks of no defective image in {folder}, such as "
                f"{stray[0].name} ({counted(len(stray), 'such mask')}); move or remove them: the "
                f"masks of {folder.name}/<defect> belong in {truth.name}/<defect>"
            )
    samples = []
    for defect, path in found.items():
        paths = some_images(path, f"fill or remove it; {layout.remedy}", passed)
        label = NORMAL if defect == GOOD else ANOMALOUS
        by_stem = {nfc(path.stem).lower(): path for path in paths}
        pairs = ((by_stem.get(f"{s}_{word}"), s) for s in by_stem for word in MASKS_ALIKE)
        beside = next((pair for pair in pairs if pair[0] and not has_masks), None)
        if beside:
            raise InputError(
                f"is {beside[0]} the mask of {by_stem[beside[1]]}? If so, "
                f"move masks to {folder.parent / 'ground_truth' / defect}; otherwise rename it"
            )
        matched = {}
        if label == ANOMALOUS and truth is not None:
            matched = match_masks(paths, masks.get(defect, truth / defect), passed, layout)
        for path in paths:
            name = printable(path, root)
            samples.append(FileSample(name, label, printable(defect), path, matched.get(path)))
    return tuple(samples)


def match_masks(paths, folder, passed, layout):
    """Match the images in a folder one to one with their masks.

    A mask's stem is its image's stem plus one of layout.suffixes. If one suffix fits all of them,
    only that one is used, as for images 0 and 0_mask with masks 0 and 0_mask.
    Parameters: paths, of images in one folder; folder, of their masks; passed, layout, see
    `defect_samples`.
    Returns {path of the image: path of its mask}.
    Raises InputError, naming both files, for two images with the same stem, two masks of an image,
    a mask of two images or none, and a missing mask.
    """
    stems, masks, owners, missing = {}, {}, {}, []
    for path in paths:
        if stems.setdefault(nfc(path.stem), path) is not path:
            raise InputError(
                f"{stems[nfc(path.stem)]} and {path} differ only in their extension, so their "
                "masks would have the same name; rename or remove one"
            )
    for mask in images(folder, passed, endings=layout.endings) if folder.is_dir() else ():
        masks.setdefault(nfc(mask.stem), []).append(mask)
    fits = [s for s in layout.suffixes if {stem + s for stem in stems} == set(masks)]
    for stem, path in stems.items():
        suffixes = fits or layout.suffixes
        mine = [mask for suffix in suffixes for mask in masks.get(stem + suffix, ())]
        if len(mine) > 1:
            raise InputError(f"{mine[0]} and {mine[1]} are both masks of {path}; remove one")
        if not mine:
            missing.append(path)
        elif owners.setdefault(mine[0], path) is not path:
            raise InputError(
                f"the mask {mine[0]} belongs to {owners[mine[0]]} and to {path}; give every image "
                "its own mask"
            )
    unused = [mask for group in masks.values() for mask in group if mask not in owners]
    if missing:
        wanted = Path(folder, f"{missing[0].stem}{layout.suffixes[0]}.png")
        hint = f" (is it {unused[0].name}? Rename it)" if unused else ""
        raise InputError(
            f"the mask {wanted} of the image {missing[0]} is missing{hint}; {layout.missing}"
        )
    if unused:
        raise InputError(
            f"the mask {unused[0]} belongs to no image in {paths[0].parent}; add the image, or "
            f"remove the mask ({counted(len(unused), 'such mask')})"
        )
    return {path: mask for mask, path in owners.items()}


def printable(path, root=None):
    """A path, relative to root if given, as text with "/"; bytes not in UTF-8 become \\xNN."""
    text = (Path(path) if root is None else Path(path).relative_to(root)).as_posix()
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def validation_samples(folder, base, passed, layout):
    """Returns the samples of folder/good, a tuple, () if it does not exist.

    Parameters: folder, a path that need not exist; base, a path to which their names are relative;
    passed, see `images`; layout, text that describes the expected layout.
    Raises InputError for images elsewhere in the folder, and an empty folder/good.
    """
    if not os.path.lexists(folder):
        return ()
    good = kinds(folder).get(GOOD)
    if images(folder, passed, [good]):
        raise InputError(
            f"the folder {folder} holds images outside of good/, so it is unclear whether they "
            f"are normal; {layout}"
        )
    return normal_samples(some_images(good, "fill or remove it", passed), base) if good else ()
