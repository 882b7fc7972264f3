"""The service's page in a real browser: drawing, dropping, choosing and sliding change the bars."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import Browser
from tests.deploy.serve.conftest import PNG, Service, encoded, serve

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
    window.drag(kind, *((left + x * side, top + y * side) for x, y in points))
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
    key = Keys.RIGHT if temperature > now else Keys.LEFT
    window.press(key * round(2 * abs(temperature - now)))
    assert float(window.text("#degrees")) == temperature


def answer_to(service: Service, content: bytes, temperature: float) -> dict[str, Any]:
    answer: dict[str, Any] = service.ask(f"/predict?temperature={temperature}", content, PNG).content
    return answer


def assert_bars_are(window: Browser, answer: dict[str, Any]) -> None:
    for column, model in enumerate((answer["teacher"], answer), start=1):
        prediction = model["predictions"][0]
        assert bars(window, column) == [percent(value) for value in prediction["softened"]]
        lengths = [lengths_of_bars(window, column, name) for name in ("--part", "--hard")]
        assert lengths[0] == pytest.approx(prediction["softened"], abs=1e-5)
        assert lengths[1] == pytest.approx(prediction["probabilities"], abs=1e-5), "on the same axis"


def lengths_of_bars(window: Browser, column: int, name: str) -> list[float]:
    """The lengths of a column's thick or thin bars, as parts of their tracks."""
    script = (
        "return [...document.querySelectorAll(`#bars td:nth-of-type(${arguments[0]}) i`)]"
        ".map((bar) => Number(bar.style.getPropertyValue(arguments[1])))"
    )
    lengths: list[float] = window.run(script, column, name)
    return lengths


def test_a_tap_leaves_a_dot(window: Browser, service: Service) -> None:
    opened(window, service, 1280)
    draw(window, [(0.5, 0.5)])
    opacity = window.run(
        "const pad = document.querySelector('#pad'); "
        "return pad.getContext('2d').getImageData(pad.width / 2, pad.height / 2, 1, 1).data[3]"
    )
    assert opacity == 255
    assert window.messages() == []


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
    assert window.texts("thead strong") == ["7", "7"]
    window.run("document.querySelector('#clear').click()")
    assert set(bars(window, 1)) == {""}
    draw(window, ONE, kind)
    assert window.text("thead .student strong") == "1"
    assert bars(window, 2) != before
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    assert window.messages() == []


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
    window.find_element(By.ID, "file").send_keys(str(tmp_path / "turned.png"))
    window.wait(f"{ANSWERED} && document.querySelector('#file').value === ''")
    assert_bars_are(window, answer_to(service, encoded(turned), 4))
    seen = window.run(
        "const pad = document.querySelector('#pixels'); return [pad.width, pad.height, "
        "...pad.getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    expected = service.ask("/predict?pixels", encoded(turned), PNG).content["pixels"][0][0]
    assert seen[:2] == [28, 28]
    assert seen[2::4] == [value for row in expected for value in row]


def test_file_that_cannot_be_read_is_reported_until_the_next_one(
    window: Browser, service: Service, photo: Image.Image
) -> None:
    opened(window, service)
    for content, name, kind in ((b"seven", "a.txt", "text/plain"), (b"\x89PNG", "a.png", "image/png")):
        drop(window, content, name, kind)
        assert "not an image" in window.text("#complaint").lower()
        assert set(bars(window, 1)) == {""}
    drop(window, encoded(photo))
    assert window.run("return document.querySelector('#complaint').hidden")
    window.messages()  # Chromium notes each answer of 422


def test_keyboard_is_enough(window: Browser, service: Service) -> None:
    opened(window, service)
    window.press(Keys.TAB)  # leads to the pad first
    assert window.run("return document.activeElement.id") == "pad"
    assert window.run("return !document.querySelector('#pen').hidden")
    window.press(f"{Keys.UP * 12} {Keys.DOWN * 24} ")  # up, the pen down, a stroke downwards, the pen up
    window.wait(ANSWERED)
    assert window.text("thead .student strong") == "1"
    reached = []
    for _ in range(3):
        window.press(Keys.TAB)
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
    (prediction,) = answer_to(pet_service, encoded(photo), 2.5)["predictions"]  # of the distillation
    assert bars(window, 1) == [percent(value) for value in prediction["probabilities"]]
    assert bars(window, 2) == [percent(value) for value in prediction["softened"]]
    assert window.texts("thead span") == ["T = 1", "T = 2.5"]
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    assert window.messages() == []


def test_page_sends_requests_to_its_service_only(
    window: Browser, service: Service, photo: Image.Image
) -> None:
    window.requests()
    opened(window, service)
    drop(window, encoded(photo))
    addresses = {address for address in window.requests() if not address.startswith(("data:", "blob:"))}
    assert all(address.startswith(service.address) for address in addresses)
    assert {"page.js", "pad.js", "page.css", "model"} <= {
        address.removeprefix(service.address) for address in addresses
    }
    assert window.title == "kdtrain"


def test_service_that_has_ended_is_reported(window: Browser, pets: Path, photo: Image.Image) -> None:
    with serve(pets) as service:
        opened(window, service)
        service.process.terminate()
        service.process.wait(20)
        drop(window, encoded(photo))
        assert "service" in window.text("#complaint")
    window.messages()
