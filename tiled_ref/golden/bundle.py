"""Read an untrusted bundle of golden files; FORMAT.md describes its files."""

import io
import json
import re
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np

from ..support.errors import InputError, shortened
from . import npy
from .compare import Compare
from .stage import File

FORMAT = "tiled-ref golden files"
FORMAT_VERSION = 1  # of the bundle's layout; readers reject newer versions
REFERENCE = Path(__file__).with_name("reference")  # the packaged bundle
EDITION = 5  # of the cases and their outputs; FORMAT.md lists the changes of each edition
DOCUMENTS = ("FORMAT.md", "cases.txt", "manifest.schema.json", "report.schema.json")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def output_path(stage, case, name):
    """Return an output's path, relative to the folder of a bundle or of a port."""
    return f"{stage}/{case}.out.{name}.npy"


def json_number(value):
    """Make a number valid JSON: NaN and infinities become "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def pack(files):
    """Pack files, {path: bytes}, into a ZIP archive and return its bytes: uncompressed, sorted and
    without times, so that equal files give equal bytes on every machine."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, data in sorted(files.items()):
            info = zipfile.ZipInfo(path)
            info.create_system, info.external_attr = 3, 0o644 << 16  # Unix, even on Windows
            archive.writestr(info, data)
    return buffer.getvalue()


def unpack(path):
    """Return the files, {path: bytes}, of an archive made by `pack`; InputError for any other."""
    data, files = npy.read_bytes(path), {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(i.file_size for i in infos) < len(data):  # no ZIP bombs
                files = {i.filename: archive.read(i) for i in infos}
    except Exception as error:  # zipfile raises BadZipFile, RuntimeError, struct.error and others
        raise InputError(f"{path} is not a ZIP file ({shortened(error)}); get it again") from error
    if pack(files) != data:
        raise InputError(
            f"{path} differs from what python -m tiled_ref.golden archive FILE.zip writes for "
            "these files; get it again, or unpack it and name the folder"
        )
    return files


class Bundle:
    """A bundle on disk.

    Parameters: folder, or an archive written by the command archive.
    Attributes: folder; manifest, a dict.
    Raises InputError, naming the file, if the folder or the manifest is missing, damaged,
    in a newer format, or names files outside the folder.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._packed = unpack(folder) if self.folder.is_file() else None
        if self._packed is None and not self.folder.is_dir():
            raise InputError(f"no such folder: {self.folder}; export a bundle to it first")
        self.file = self.folder / "manifest.json"
        if not (self.file.is_file() if self._packed is None else "manifest.json" in self._packed):
            raise InputError(
                f"{self.folder} has no manifest.json, so it is not a golden bundle; export "
                "one with python -m tiled_ref.golden export DIR"
            )
        self._manifest_bytes = self._read("manifest.json")
        try:
            self.manifest = json.loads(self._manifest_bytes.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"not complete JSON: {error}") from error
        self._check()
        if self._packed is not None and set(self._packed) != self.paths():
            raise self.damaged("its archive does not hold exactly the files it names")
        self._arrays, self._inputs = {}, {}

    @cached_property
    def archive(self):
        """The bytes of the bundle's ZIP archive (see pack), with the files of paths(). Raises
        InputError if a file is missing or its SHA-256 differs from the manifest's."""
        files = {path: self._verified(entry) for path, entry in self._entries().items()}
        files |= {name: self._read(name) for name in DOCUMENTS}
        return pack(files | {"manifest.json": self._manifest_bytes})

    @cached_property
    def digest(self):
        """The archive's SHA-256, which covers all files; defined for a folder too."""
        return npy.sha256(self.archive)

    @property
    def edition(self):
        """The edition of the cases and their outputs; 1 if the manifest has none."""
        return self.manifest.get("edition", 1)

    @property
    def stages(self):
        """The manifest's stages, a list of dict."""
        return self.manifest["stages"]

    def path(self, relative):
        """Return the file of a manifest path; InputError if it lies outside the folder."""
        parts = relative.split("/") if isinstance(relative, str) else [""]
        inside = all(NAME.fullmatch(part) for part in parts)
        file = self.folder.joinpath(*parts) if inside else None
        if not inside or not file.resolve().is_relative_to(self.folder.resolve()):
            raise self.damaged(f"it names the path {relative!r} outside its folder")
        return file

    def outputs(self):
        """Return {(stage, case, output): entry of the manifest}."""
        return {
            (stage["name"], case["name"], name): entry
            for stage in self.stages
            for case in stage["cases"]
            for name, entry in case["outputs"].items()
        }

    def _entries(self):
        """Return {path: entry} for every file that the manifest names."""
        entries = [e for tensors in self.manifest["models"].values() for e in tensors.values()]
        entries += self.outputs().values()
        for stage in self.stages:
            for case in stage["cases"]:
                entries += case["inputs"].values()
        return {e["path"]: e for e in entries if "path" in e and "values" not in e}

    def paths(self):
        """Return the paths of all files of the bundle, a set."""
        return {"manifest.json", *DOCUMENTS, *self._entries()}

    def _read(self, path):
        return npy.read_bytes(self.path(path)) if self._packed is None else self._packed[path]

    def _verified(self, entry):
        """Read an entry's file. InputError if it is missing or its SHA-256 differs."""
        data = self._read(entry["path"])
        if npy.sha256(data) != entry["sha256"]:
            raise InputError(
                f"{self.path(entry['path'])} does not have the SHA-256 in {self.file}; the "
                "reference has been changed or damaged, get or export it again"
            )
        return data

    def array(self, entry):
        """Read the array of a manifest entry, or the bytes of a file that is not an array. Raises
        InputError if it is missing, or its SHA-256, dtype or shape differs from the manifest's."""
        if "values" in entry:
            return self._inline(entry)
        file = self.path(entry["path"])
        if file in self._arrays:
            return self._arrays[file]
        data = self._verified(entry)
        if "bytes" in entry:
            return data
        array = npy.decode(data, file)
        if array.dtype.str != entry["dtype"] or list(array.shape) != entry["shape"]:
            raise InputError(
                f"{file} holds {array.dtype.str} of shape {list(array.shape)}, but {self.file} "
                f"states {entry['dtype']} of shape {entry['shape']}; export the bundle again"
            )
        self._arrays[file] = array
        return array

    def _inline(self, entry):
        try:
            values = np.array([float(v) if isinstance(v, str) else v for v in entry["values"]])
            with np.errstate(invalid="raise", over="raise"):
                array = values.astype(entry["dtype"]).reshape(entry["shape"])
        except (ValueError, TypeError, ArithmeticError) as error:
            raise self.damaged(
                f"the values {entry['values']} are not {entry['dtype']} of shape {entry['shape']}"
            ) from error
        if npy.sha256(npy.encode(array)) != entry["sha256"]:
            raise self.damaged(f"the values {entry['values']} do not have the stated SHA-256")
        return array

    def inputs(self, case):
        """Return the inputs of a case of this manifest in the form Stage.compute takes."""
        if id(case) in self._inputs:
            return self._inputs[id(case)]
        inputs = self._inputs[id(case)] = {}
        for name, entry in case["inputs"].items():
            if "model" in entry:
                tensors = self.manifest["models"][entry["model"]]
                inputs[name] = {key: self.array(tensor) for key, tensor in tensors.items()}
            elif "bytes" in entry:
                inputs[name] = File(entry["path"].rpartition("/")[2], self.array(entry))
            else:
                inputs[name] = self.array(entry)
        return inputs

    def damaged(self, why):
        """Return the InputError for a damaged manifest; why, a phrase."""
        return InputError(f"the manifest {self.file} is damaged ({why}); export the bundle again")

    def _check(self):
        """Raise InputError if an entry that is used later is missing or has a wrong type."""
        manifest = self.manifest
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise self.damaged(f'its "format" is not "{FORMAT}"')
        version = manifest.get("version")
        for key, number in (("version", version), ("edition", self.edition)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise self.damaged(f'its "{key}" is {number!r}')
        if version > FORMAT_VERSION:
            raise InputError(
                f"{self.file} has format version {version}, newer than the {FORMAT_VERSION} this "
                "program reads; update tiled-ref"
            )
        try:
            for tensors in manifest["models"].values():
                for entry in tensors.values():
                    self._check_entry(entry)
            names = set()
            if not manifest["stages"]:
                raise ValueError("it has no stages")
            for stage in manifest["stages"]:
                stage["title"]
                for case in stage["cases"]:
                    name = f"{stage['name']}/{case['name']}"
                    if name in names or not all(NAME.fullmatch(p) for p in name.split("/", 1)):
                        raise ValueError(f"the case {name!r}")
                    names.add(name)
                    for entry in case["inputs"].values():
                        if "model" in entry:
                            manifest["models"][entry["model"]]
                        else:
                            self._check_entry(entry)
                    for key, entry in case["outputs"].items():
                        self._check_entry(entry)
                        own = output_path(stage["name"], case["name"], key)
                        if not NAME.fullmatch(key) or entry.get("path", own) != own:
                            raise ValueError(f"the path of output {name}/{key}")
                        rule = Compare.from_json(entry["compare"])
                        if "bytes" in entry or rule.kind == "ulp" and entry["dtype"][1] != "f":
                            raise ValueError(f"the kind of output {name}/{key}")
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            text = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
            raise self.damaged(text) from error

    def _check_entry(self, entry):
        if "values" not in entry:
            self.path(entry["path"])
        elif not isinstance(entry["values"], list):
            raise ValueError("values are not a list")
        if not isinstance(entry["sha256"], str):
            raise ValueError("a sha256 is not a string")
        if "bytes" not in entry:
            shape = entry["shape"]
            if entry["dtype"] not in npy.DTYPES:
                raise ValueError(f"the dtype {entry['dtype']!r}")
            if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"the shape {shape!r}")
