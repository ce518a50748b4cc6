"""A headless Chromium, driven over its debugging pipe: pages as a reader sees them, without any driver installed."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = f"no {', '.join(NAMES[:-1])} or {NAMES[-1]} is installed"
TIMEOUT = 120
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
# the browser reads descriptor 3 and writes to 4, which may be in use by the process that starts it
_WITH_PIPES = """
import fcntl, os, sys
spare = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
for descriptor, pipe in enumerate(spare, 3):
    os.dup2(pipe, descriptor)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9}


class Chromium:
    """One page; ``events`` holds everything that it reported since it was opened."""

    def __init__(self, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._replies, replies = os.pipe()

        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _WITH_PIPES,
                str(commands),
                str(replies),
                FOUND,
                *OPTIONS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(commands, replies),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(replies)
        self._unread, self._n_sent, self._session = b"", 0, None
        self.events: list[dict] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(TIMEOUT)
        os.close(self._commands)
        os.close(self._replies)

    def send(self, method: str, **parameters: object) -> dict:
        """The result of one command of the DevTools protocol."""
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == message["id"]:
                assert "error" not in reply, reply["error"]
                return reply["result"]
            self.events.append(reply)

    def open(self, path: Path) -> None:
        """Load a page from a file and wait until it is there."""
        self.events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as from a keyboard."""
        code = _KEYS.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def hover(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and the reader's wish for dark pages."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """What the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def problems(self) -> list[dict]:
        """Errors and warnings on the console, and exceptions."""
        found = []
        for event in self.events:
            details = event.get("params", {})
            level = details.get("entry", {}).get("level", details.get("type"))
            if event["method"] == "Runtime.exceptionThrown" or level in ("error", "warning"):
                found.append(event)
        return found

    def requests(self) -> list[str]:
        """The addresses of everything that the page asked for."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def _read(self) -> dict:
        end = time.monotonic() + TIMEOUT
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._replies], [], [], max(0, end - time.monotonic()))
            assert ready, f"the browser was silent for {TIMEOUT} s"
            part = os.read(self._replies, 1 << 20)
            assert part, "the browser ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
