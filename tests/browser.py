"""A headless Chromium driven over its DevTools protocol, with the standard library alone."""

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser():
    """Path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class WebSocket:
    """A client's end of a WebSocket (RFC 6455) for text messages."""

    def __init__(self, url, timeout):
        host, _, path = url.removeprefix("ws://").partition("/")
        name, _, port = host.partition(":")
        self._socket = socket.create_connection((name, int(port)), timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        assert b" 101 " in head.splitlines()[0], head

    def send(self, text):
        data = text.encode()
        mask = os.urandom(4)
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x81, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, size)
        body = bytes(byte ^ mask[k % 4] for k, byte in enumerate(data))
        self._socket.sendall(head + mask + body)

    def receive(self):
        """The next text message; parts of one are joined, pings need no answer here."""
        text = b""
        while True:
            first, second = self._take(2)
            size = second & 127
            if size == 126:
                (size,) = struct.unpack("!H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._take(8))
            body = self._take(size)
            if first & 15 in (0, 1):
                text += body
                if first & 128:
                    return text.decode()
            elif first & 15 == 8:
                raise ConnectionError("the browser closed the connection")

    def close(self):
        self._socket.close()

    def _take(self, n):
        while len(self._buffer) < n:
            self._more()
        part, self._buffer = self._buffer[:n], self._buffer[n:]
        return part

    def _more(self):
        part = self._socket.recv(1 << 16)
        if not part:
            raise ConnectionError("the browser closed the connection")
        self._buffer += part


class Browser:
    """One page of a headless Chromium, as a context manager.

    Parameters: profile, an empty folder; size (width, height); dark, which theme the reader
    prefers; timeout in seconds.
    Attributes: messages, what the console and uncaught exceptions said; requests, URLs that
    were asked for.
    """

    def __init__(self, profile, size=(1280, 900), dark=False, timeout=60):
        self.profile, self.size, self.dark, self.timeout = Path(profile), size, dark, timeout
        self.messages, self.requests = [], []
        self._number = 0

    def __enter__(self):
        command = [
            find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
            "--remote-debugging-port=0", f"--user-data-dir={self.profile}",
            f"--window-size={self.size[0]},{self.size[1]}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        if hasattr(self, "_socket"):
            self._socket.close()
        self._process.kill()
        self._process.wait()

    def _connect(self):
        file = self.profile / "DevToolsActivePort"
        end = time.monotonic() + self.timeout
        while not (file.is_file() and file.read_text().strip()):
            if self._process.poll() is not None or time.monotonic() > end:
                raise ConnectionError("Chromium did not start")
            time.sleep(0.05)
        port = file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        self._socket = WebSocket(pages[0]["webSocketDebuggerUrl"], self.timeout)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(*self.size)

    def resize(self, width, height, scale=1, mobile=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=mobile,
        )  # fmt: skip

    def call(self, method, **parameters):
        """The result of a DevTools command; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.receive())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._event(answer)

    def _event(self, event):
        method, parameters = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(json.dumps(parameters["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.messages.append(parameters["message"])
        elif method == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("data:", "about:")):
                self.requests.append(url)

    def open(self, path):
        """Load a local file and wait until its program has run."""
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def run(self, expression):
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + self.timeout
        while not self.run(expression):
            assert time.monotonic() < end, f"in vain waited for {expression}"
            time.sleep(0.05)

    def press(self, key):
        """Press and release a key, as the reader does."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)
