"""A figure and its name."""

from dataclasses import dataclass

from .results import file_name


@dataclass(frozen=True)
class Figure:
    """A figure of a report; dataset, category and arch say what it shows, None for all."""

    stem: str  # of its file
    title: str  # plain text
    data: object  # text of an SVG or bytes of a PNG
    dataset: str = None
    category: str = None
    arch: str = None

    @property
    def name(self):
        """File name without the extension."""
        parts = self.stem, self.dataset, self.category, self.arch
        return file_name("_".join(part for part in parts if part is not None))
