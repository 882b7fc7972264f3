"""A real browser, told what to do through chromedriver's HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
MISSING = [program for program in PROGRAMS if shutil.which(program) is None]
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """A page in a headless Chromium."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        """Loads a page, and waits until that is done."""
        _send(f"{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        """Returns what the JavaScript returns."""
        return _send(f"{self._session}/execute/sync", {"script": script, "args": []})

    def look(self, width: int, height: int = 900, scheme: str = "light", media: str = "screen") -> None:
        """Sets the window's size in CSS pixels, the colour scheme that is preferred, and the medium."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._devtools("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, path: Path, **options: Any) -> None:
        """Writes what is seen as PNG; ``captureBeyondViewport=True`` takes the whole page."""
        taken = self._devtools("Page.captureScreenshot", **options)
        path.write_bytes(base64.b64decode(taken["data"]))

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Returns what was logged since the last call; ``browser`` is the console."""
        entries: list[dict[str, Any]] = _send(f"{self._session}/se/log", {"type": kind})
        return entries

    def requests(self) -> list[str]:
        """Returns the addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _devtools(self, command: str, **parameters: Any) -> Any:
        return _send(f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Starts chromedriver and a browser whose profile lies in ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while not _is_ready(address):
            assert driver.poll() is None, "chromedriver has ended"
            assert time.monotonic() < deadline, "chromedriver does not answer"
            time.sleep(0.05)
        options = {
            "goog:chromeOptions": {
                "binary": shutil.which("chromium"),
                "args": [*_FLAGS, f"--user-data-dir={folder / 'profile'}"],
            },
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        made = _send(f"{address}/session", {"capabilities": {"alwaysMatch": options}})
        session = f"{address}/session/{made['sessionId']}"
        try:
            yield Browser(session)
        finally:
            _send(session, method="DELETE")
    finally:
        driver.terminate()
        driver.wait(10)


def _is_ready(address: str) -> bool:
    try:
        return bool(_send(f"{address}/status", method="GET")["ready"])
    except urllib.error.URLError:
        return False


def _send(address: str, body: Any = None, method: str = "POST") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.loads(error.read())["value"]["message"]) from error
