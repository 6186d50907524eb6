"""Shared by the data sets on disk: samples made of files, and checked listings of folders."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..support.errors import InputError
from .images import decode_image, decode_mask
from .samples import Sample

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")  # any case


@dataclass(frozen=True)
class FileSample(Sample):
    """A sample whose image and mask are files.

    Parameters: name, label, defect as in Sample; path of the image; mask_path, None without one.
    """

    path: Path
    mask_path: Path | None = None
    _size: list = field(default_factory=list, init=False, repr=False, compare=False)  # once read

    @property
    def version(self):
        """See Sample: name and label, and of each file its size and time of change."""
        paths = [path for path in (self.path, self.mask_path) if path is not None]
        return [*super().version, *(_file_version(path) for path in paths)]

    def read_image(self):
        image = decode_image(self.path)
        self._size[:] = image.shape[:2]
        return image

    def read_size(self):
        return tuple(self._size) or self.read_image().shape[:2]

    def read_mask(self):
        """See Sample. Raises InputError for a mask of another size than the image's.

        It is not resized: the usual cause is a mix-up of files.
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
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"the file {path} cannot be read: {error.strerror}") from error
    return [status.st_size, status.st_mtime_ns]


def check_root(root, dataset):
    """The root as a Path. Raises InputError unless it names a folder."""
    if root is None:
        raise InputError(f"the data set {dataset} lies on disk; name its folder with --root")
    root = Path(root)
    if not root.exists():
        raise InputError(f"the folder --root {root} does not exist")
    if not root.is_dir():
        raise InputError(f"--root {root} is a file; name the folder that holds the data set")
    return root


def check_category(name, known, root):
    """Raise InputError, listing the known ones, unless `name` is among them."""
    if name not in known:
        where = f"in {root}" if root is not None else "in the built-in data set"
        raise InputError(
            f"there is no category {name!r} {where}; known are: {', '.join(known) or 'none'}"
        )


def entries(folder):
    """Names in a folder, sorted by code point, without hidden ones.

    Raises InputError where it does not exist, is a file or cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError as error:
        raise InputError(f"the folder {folder} does not exist") from error
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read: {error.strerror}") from error
    return sorted(name for name in names if not name.startswith("."))


def folders(folder):
    """Names of the folders in a folder, sorted, links to folders included."""
    return [name for name in entries(folder) if os.path.isdir(os.path.join(folder, name))]


def images(folder):
    """The image files directly in a folder, a list of Path sorted by name; the rest is skipped.

    Raises InputError for a dead link with an image's name, and as `entries` does.
    """
    paths = []
    for name in entries(folder):
        path = Path(folder, name)
        if path.suffix.lower() in IMAGE_ENDINGS and not path.is_dir():
            if not path.exists():
                raise InputError(f"the link {path} leads nowhere; repair or remove it")
            paths.append(path)
    return paths


def some_images(folder, remedy):
    """images(folder). Raises InputError with the remedy where there are none."""
    found = images(folder)
    if not found:
        raise InputError(f"the folder {folder} holds no images; {remedy}")
    return found


def printable(path, root=None):
    """A path, relative to root if given, as text with "/"; bytes that are no UTF-8 become \\xNN."""
    text = (Path(path) if root is None else Path(path).relative_to(root)).as_posix()
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
