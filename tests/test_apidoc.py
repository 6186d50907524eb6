"""The API reference holds every public name, and its links lead somewhere."""

import re
import subprocess
import sys

import pytest

from sources import ROOT
from tiled_ref import apidoc

SOURCE = '''"""A module with `Thing` and `nothing`."""

LIMIT = 3  # of things, <= 4
_HIDDEN = 1


class Thing(dict):
    """Holds < 3."""

    def __init__(self, size, *, deep=False):
        pass

    @property
    def size(self):
        """How large."""

    @size.setter
    def size(self, value):
        pass

    def add(self, other=None):
        """See `Thing.size`."""


def make(n):
    """n things."""
'''


def test_entries_by_hand():
    doc, found = apidoc.entries(SOURCE)
    assert doc == "A module with `Thing` and `nothing`."
    assert [(e.name, e.signature, e.doc, e.kind) for e in found] == [
        ("LIMIT", "LIMIT = 3", "of things, <= 4", "constant"),
        ("Thing", "class Thing(dict)\n    Thing(size, *, deep=False)", "Holds < 3.", "class"),
        ("Thing.size", "size", "How large.", "method"),
        ("Thing.add", "add(other=None)", "See `Thing.size`.", "method"),
        ("make", "make(n)", "n things.", "function"),
    ]


def test_page_by_hand(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mod.py").write_text(SOURCE)
    (tmp_path / "pack" / "_own.py").write_text(SOURCE)
    page = apidoc.page(tmp_path / "pack")
    assert page.count("<h2") == 1
    assert '<a href="#mod.Thing">Thing</a> and `nothing`' in page
    assert '<a href="#mod.Thing.size">Thing.size</a>' in page
    assert "Holds &lt; 3." in page and "_HIDDEN" not in page


def test_every_module_and_function_is_on_the_page():
    page = apidoc.page()
    for name in ("tiling.TileGrid.untile", "smoothing.smooth_seams", "models.padim.Padim.fit"):
        assert f'id="{name}"' in page
    names = [name for name, _ in apidoc.modules()]
    assert names[:4] == ["tiled_ref", "setups", "tiling", "backbone"]
    assert len(names) == len(set(names)) > 30 and "_arrays" not in names
    ids = re.findall(r'id="([^"]+)"', page)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_command_needs_no_package_but_python(tmp_path):
    """-S leaves out installed packages: the page is made of sources alone."""
    out = tmp_path / "api.html"
    command = [sys.executable, "-S", "-m", "tiled_ref.apidoc", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_text("utf-8") == apidoc.page()
    assert apidoc.main([str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == out.read_bytes()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert apidoc.main([str(tmp_path / "file" / "api.html")]) == 2
    assert capsys.readouterr().err.startswith("tiled-ref: error: cannot write")
    with pytest.raises(SystemExit) as stop:
        apidoc.main([])
    assert stop.value.code == 2
