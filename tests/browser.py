"""A headless Chromium, driven by selenium: Debian's chromium and chromedriver, nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from typing import Any

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "hide-scrollbars")


class Browser(Chrome):
    """A window with an empty profile."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        options = ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in FLAGS:
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        super().__init__(options, ChromeService(CHROMEDRIVER))

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a page in a viewport of this size, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.get(address)

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what a JavaScript function body returns."""
        return self.execute_script(script, *arguments)

    def wait(self, expression: str) -> None:
        """Waits until a JavaScript expression is true."""
        WebDriverWait(self, 20, 0.05).until(lambda _: self.run(f"return {expression}"), expression)

    def text(self, selector: str) -> str:
        return self.find_element(By.CSS_SELECTOR, selector).text

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.find_elements(By.CSS_SELECTOR, selector)]

    def drag(self, kind: str, *points: tuple[float, float]) -> None:
        """Moves a pressed ``mouse`` or ``touch`` through points of the viewport, in CSS pixels."""
        actions = ActionBuilder(self, mouse=PointerInput(kind, kind), duration=20)
        (first, *others) = [(round(x), round(y)) for x, y in points]
        actions.pointer_action.move_to_location(*first).pointer_down()
        for x, y in others:
            actions.pointer_action.move_to_location(x, y)
        actions.pointer_action.pointer_up()
        actions.perform()

    def press(self, keys: str) -> None:
        """Presses keys one after another, in the element that has the focus."""
        ActionChains(self).send_keys(keys).perform()

    def messages(self) -> list[str]:
        """Returns the console's messages since the last call."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """Returns the addresses of the requests since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [parameters["request"]["url"] for parameters in sent]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = Chrome.get_log(self, kind)
        return entries
