"""Drives a headless Chromium through chromedriver, by WebDriver (W3C), which is JSON over HTTP."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "hide-scrollbars",
    "disable-background-networking", "disable-component-update", "disable-sync",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key under which WebDriver names an element

installed = shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a page in a viewport of this size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self._post("url", url=address)

    def devtools(self, method: str, **parameters: Any) -> Any:
        return self._post("goog/cdp/execute", cmd=method, params=parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what a script returns, or the promise that it returns leads to."""
        return self._post("execute/sync", script=script, args=arguments)

    def wait(self, script: str) -> Any:
        """Returns the value of an expression once it is true."""
        deadline = time.monotonic() + 20
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < deadline, f"{script} has not become true: {self.text('body')}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        (found,) = self.texts(selector)
        return found

    def texts(self, selector: str) -> list[str]:
        """Returns what is to be read in each of the elements."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)"
        found: list[str] = self.run(script, selector)
        return found

    def pointer(self, kind: str, *points: tuple[float, float]) -> None:
        """Moves a mouse or a finger, pressed, through points of the viewport."""
        moves = [{"type": "pointerMove", "duration": 20, "x": round(x), "y": round(y)} for x, y in points]
        presses = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        actions = [moves[0], presses[0], *moves[1:], presses[1]]
        self._act(type="pointer", id=kind, parameters={"pointerType": kind}, actions=actions)

    def keys(self, text: str) -> None:
        """Presses keys one after another, wherever the focus is."""
        pressed = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self._act(type="key", id="keyboard", actions=pressed)

    def choose_file(self, selector: str, path: Path) -> None:
        """Chooses a file in a form."""
        element = self._post("element", using="css selector", value=selector)[ELEMENT]
        self._post(f"element/{element}/value", text=str(path))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(
            base64.b64decode(self.devtools("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        )

    def complaints(self) -> list[str]:
        """Returns what has come up in the console since this was asked last."""
        return [entry["message"] for entry in self._post("se/log", type="browser")]

    def _act(self, **source: Any) -> None:
        self._post("actions", actions=[source])

    def _post(self, path: str, **body: Any) -> Any:
        return _post(f"{self._session}/{path}", body)


def _post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.loads(error.read())["value"]["message"]) from error


@contextmanager
def browser() -> Iterator[Browser]:
    """Starts a browser with nothing in its profile, and ends it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        said = Path(folder) / "chromedriver.txt"
        with said.open("wb") as output:
            driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=output, stderr=output)
        try:
            found = _waited_for(lambda: re.search(r"successfully on port (\d+)", said.read_text()))
            address = f"http://127.0.0.1:{found[1]}/session"
            flags = [*(f"--{flag}" for flag in FLAGS), f"--user-data-dir={folder}/profile"]
            options = {
                "goog:chromeOptions": {"args": flags, "binary": shutil.which("chromium")},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            session = _post(address, {"capabilities": {"alwaysMatch": options}})["sessionId"]
            yield Browser(f"{address}/{session}")
            urllib.request.urlopen(
                urllib.request.Request(f"{address}/{session}", method="DELETE"), timeout=60
            )
        finally:
            driver.terminate()
            driver.wait(20)


def _waited_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
