"""The page, in a real browser: one draws, drops, chooses and slides, and the bars follow."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import browser
from tests.browser import Browser
from tests.deploy.serve.conftest import PNG, Service, encoded, serve

pytestmark = pytest.mark.skipif(not browser.installed, reason="needs chromium and chromedriver")

SEVEN = [(0.28, 0.25), (0.5, 0.24), (0.72, 0.25), (0.62, 0.45), (0.53, 0.65), (0.45, 0.82)]
ONE = [(0.5, 0.2), (0.5, 0.4), (0.5, 0.6), (0.5, 0.8)]
ANSWERED = "document.querySelector('#answer').ariaBusy === 'false'"
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], arguments[1], { type: arguments[2] }));
for (const type of ["dragover", "drop"]) {
  const event = new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector("#field").dispatchEvent(event);
}
"""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser.browser() as window:
        yield window


def opened(window: Browser, service: Service, width: int = 1280, dark: bool = False) -> Browser:
    window.open(service.address, width, 844, dark)
    window.wait("document.querySelector('#bars tr') !== null")
    return window


def draw(window: Browser, points: list[tuple[float, float]], kind: str = "mouse") -> None:
    """Draws a stroke through points of the pad, which is 1 by 1."""
    left, top, side = window.run(
        "const { left, top, width } = document.querySelector('#pad').getBoundingClientRect(); "
        "return [left, top, width]"
    )
    window.pointer(kind, *((left + x * side, top + y * side) for x, y in points))
    window.wait(ANSWERED)


def drop(window: Browser, content: bytes, name: str = "a.png", kind: str = "image/png") -> None:
    window.run(DROP, base64.b64encode(content).decode(), name, kind)
    window.wait(ANSWERED)


def bars(window: Browser, column: int) -> list[str]:
    """The figures beside the bars of a column, in the order of the rows."""
    return window.texts(f"#bars td:nth-of-type({column})")


def percent(value: float) -> str:
    if value < 0.001:
        return "<0.1 %"
    return ">99.9 %" if value > 0.999 else f"{100 * value:.1f} %"


def slide_to(window: Browser, temperature: float) -> None:
    """Moves the slider with the keyboard, as far as it takes."""
    window.run("document.querySelector('#temperature').focus()")
    now = float(window.text("#degrees"))
    key = "\ue014" if temperature > now else "\ue012"  # right and left
    window.keys(key * round(2 * abs(temperature - now)))
    assert float(window.text("#degrees")) == temperature


def answer_to(service: Service, content: bytes, temperature: float) -> dict[str, Any]:
    answer: dict[str, Any] = service.ask(f"/predict?temperature={temperature}", content, PNG).content
    return answer


def assert_bars_are(window: Browser, answer: dict[str, Any]) -> None:
    for column, found in enumerate((answer["teacher"], answer), start=1):
        assert bars(window, column) == [percent(value) for value in found["predictions"][0]["softened"]]


def test_a_tap_leaves_a_dot(window: Browser, service: Service) -> None:
    opened(window, service, 1280)
    draw(window, [(0.5, 0.5)])
    opacity = window.run(
        "const pad = document.querySelector('#pad'); "
        "return pad.getContext('2d').getImageData(pad.width / 2, pad.height / 2, 1, 1).data[3]"
    )
    assert opacity == 255
    assert window.complaints() == []


@pytest.mark.parametrize(("width", "dark", "kind"), [(1280, False, "mouse"), (390, True, "touch")])
def test_what_is_drawn_is_recognised(
    window: Browser, service: Service, width: int, dark: bool, kind: str
) -> None:
    opened(window, service, width, dark)
    assert window.text("h1") == "Draw a digit"
    assert set(bars(window, 1) + bars(window, 2)) == {""}
    draw(window, SEVEN, kind)
    before = bars(window, 2)
    verdict = window.run("return document.querySelector('#verdict').textContent")
    assert verdict.startswith("teacher: 7, ")
    assert "student: 7, " in verdict
    assert window.run(
        "return [...document.querySelectorAll('thead strong')].map((one) => one.innerText)"
    ) == [
        "7",
        "7",
    ]
    window.run("document.querySelector('#clear').click()")
    assert set(bars(window, 1)) == {""}
    draw(window, ONE, kind)
    assert window.text("thead .student strong") == "1"
    assert bars(window, 2) != before
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    assert window.complaints() == []


def test_temperature_softens_both(window: Browser, service: Service, photo: Image.Image) -> None:
    opened(window, service)
    drop(window, encoded(photo))
    for temperature in (4, 1, 7.5):
        slide_to(window, temperature)
        assert_bars_are(window, answer_to(service, encoded(photo), temperature))


def test_picture_is_dropped_or_chosen(
    window: Browser, service: Service, photo: Image.Image, tmp_path: Path
) -> None:
    opened(window, service)
    turned = photo.rotate(90)
    (tmp_path / "turned.png").write_bytes(encoded(turned))
    drop(window, encoded(photo))
    assert_bars_are(window, answer_to(service, encoded(photo), 4))
    assert window.text("thead .student strong") == "7"
    window.choose_file("#file", tmp_path / "turned.png")
    window.wait(f"{ANSWERED} && document.querySelector('#file').value === ''")
    assert_bars_are(window, answer_to(service, encoded(turned), 4))
    seen = window.run(
        "const pad = document.querySelector('#pixels'); return [pad.width, pad.height, "
        "...pad.getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    expected = service.ask("/predict?pixels", encoded(turned), PNG).content["pixels"][0][0]
    assert seen[:2] == [28, 28]
    assert seen[2::4] == [value for row in expected for value in row]


def test_what_cannot_be_read_is_said_and_mended(
    window: Browser, service: Service, photo: Image.Image
) -> None:
    opened(window, service)
    for content, name, kind in ((b"seven", "a.txt", "text/plain"), (b"\x89PNG", "a.png", "image/png")):
        drop(window, content, name, kind)
        assert "the file is not an image in a format that can be read" in window.text("#complaint").lower()
        assert set(bars(window, 1)) == {""}
    drop(window, encoded(photo))
    assert window.run("return document.querySelector('#complaint').hidden")
    window.complaints()  # Chromium notes each answer of 422


def test_keyboard_is_enough(window: Browser, service: Service) -> None:
    opened(window, service)
    window.keys("\ue004")  # the tabulator leads to the pad first
    assert window.run("return document.activeElement.id") == "pad"
    assert window.run("return !document.querySelector('#pen').hidden")
    window.keys("\ue013" * 12 + " " + "\ue015" * 24 + " ")  # up; a stroke downwards
    window.wait(ANSWERED)
    assert window.text("thead .student strong") == "1"
    reached = []
    for _ in range(3):
        window.keys("\ue004")
        reached.append(window.run("return document.activeElement.id"))
    assert reached == ["file", "clear", "temperature"]


def test_without_a_teacher_hard_and_softened_stand_side_by_side(
    window: Browser, pet_service: Service, photo: Image.Image
) -> None:
    opened(window, pet_service, 390)
    assert window.text("h1") == "Drop a picture"
    draw(window, SEVEN)
    assert set(bars(window, 1)) == {""}, "nothing can be drawn"
    drop(window, encoded(photo))
    (prediction,) = answer_to(pet_service, encoded(photo), 4)["predictions"]
    assert bars(window, 1) == [percent(value) for value in prediction["probabilities"]]
    assert bars(window, 2) == [percent(value) for value in prediction["softened"]]
    assert window.texts("thead span") == ["T = 1", "T = 4"]
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    assert window.complaints() == []


def test_page_asks_nobody_else(window: Browser, service: Service, photo: Image.Image) -> None:
    opened(window, service)
    drop(window, encoded(photo))
    asked = json.loads(
        window.run("return JSON.stringify(performance.getEntriesByType('resource').map((one) => one.name))")
    )
    assert {url.removeprefix(service.address) for url in asked} >= {"page.js", "pad.js", "page.css", "model"}
    assert all(url.startswith(service.address) for url in asked)
    assert window.run("return document.title") == "kdtrain"


def test_service_that_is_gone_is_noticed(window: Browser, pets: Path, photo: Image.Image) -> None:
    with serve(pets) as service:
        opened(window, service)
        service.process.terminate()
        service.process.wait(20)
        drop(window, encoded(photo))
        assert window.text("#complaint") == "The service does not answer."
    window.complaints()
