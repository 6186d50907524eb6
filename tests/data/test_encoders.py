"""Text drawn for pictures; the encoders themselves are tested in tests/reporting/test_render.py."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont, _util

from tiled_ref.data import encoders


@pytest.mark.parametrize("why", ["old", "no FreeType"])
@pytest.mark.parametrize("height", [8, 11, 20])
def test_text_in_the_bitmap_typeface_has_its_height(monkeypatch, height, why):
    """Lines of 11 px: made smaller where they do not fit, the width with them; never larger."""
    bitmap = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()
    wide = math.ceil(bitmap.getlength("1.5 g"))
    if why == "old":
        monkeypatch.setattr(encoders.ImageFont, "load_default", lambda: bitmap)
    else:  # what Pillow itself finds where its module for FreeType was not built
        monkeypatch.setitem(sys.modules, "PIL._imagingft", None)
        missing = ImportError("no FreeType")
        monkeypatch.setattr(ImageFont, "core", _util.DeferredError(missing))
    font = encoders._font(height)
    assert type(font) is type(bitmap) and encoders._extent(font) == (11, 0)
    coverage = encoders.text_coverage("1.5 g", height)
    assert coverage.shape == (height, wide if height >= 11 else round(wide * height / 11))
    assert coverage.dtype == np.uint8 and coverage.max() > 100 and not coverage[11:].any()


def test_only_two_files_import_pil():
    package = Path(encoders.__file__).parent.parent
    files = sorted(package.rglob("*.py"))
    found = [path.name for path in files if "from PIL" in path.read_text("utf-8")]
    assert found == ["decoding.py", "encoders.py"]
