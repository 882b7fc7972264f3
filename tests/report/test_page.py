"""``report.html``: its figures are those of compare.json, and a browser needs no other file to show it."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdtrain.data.dataset import Dataset
from kdtrain.errors import DataError, KdtrainError
from kdtrain.experiment.compare import run_comparison, write_page
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.store.checkpoint import load_tensors, save_tensors
from tests.browser import Browser
from tests.tools import write_tiles


class Page(HTMLParser):
    """What a page holds: its figures, the text of each element, and every attribute."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.figures: dict[str, list[tuple[str, str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._figure: dict[str, str | None] | None = None
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._figure = dict(attributes) if tag == "data" else None

    def handle_data(self, data: str) -> None:
        if self._figure is not None:
            texts = self.figures.setdefault(str(self._figure["data-of"]), [])
            texts.append((str(self._figure["value"]), data))
        self._figure = None

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attributes.get(name) for kind, attributes in self.tags if kind == tag]


@dataclasses.dataclass(frozen=True)
class Compared:
    directory: Path
    dataset: Dataset

    @property
    def page(self) -> Page:
        return Page(self.directory / "report.html")

    @property
    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads((self.directory / "compare.json").read_text())
        return figures

    def copy(self, folder: Path) -> Compared:
        """The files that the page is made of, elsewhere."""
        folder.mkdir()
        for name in ("compare.json", "config.toml", "test_logits.safetensors"):
            shutil.copy(self.directory / name, folder)
        return dataclasses.replace(self, directory=folder)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Compared:
    """Two seeds, five models."""
    folder = tmp_path_factory.mktemp("page")
    config = FitConfig(
        epochs=2,
        batch_size=64,
        limit_train=600,
        val_size=300,
        seeds=2,
        with_label_smoothing=True,
        with_hard_labels=True,
        data_dir=write_tiles(folder / "tiles", mnist),
        logdir=folder / "logs",
    )
    session = Session.open(config)
    return Compared(run_comparison(session)[1], session.dataset)


@pytest.fixture(scope="module")
def one_seed(compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A single seed whose teacher was trained elsewhere, with nothing held out."""
    given = compared.directory / "seed_0/teacher/checkpoints/best.safetensors"
    config = FitConfig(
        epochs=1,
        limit_train=300,
        val_size=0,
        teacher_checkpoint=(given,),
        data_dir=compared.directory.parents[2] / "tiles",
        logdir=tmp_path_factory.mktemp("one") / "logs",
    )
    session = Session.open(config)
    return Compared(run_comparison(session)[1], session.dataset)


def figure_at(figures: Any, place: str) -> Any:
    for key in place.split("/"):
        figures = figures[int(key)] if isinstance(figures, list) else figures[key]
    return figures


@pytest.mark.parametrize("case", ["compared", "one_seed"])
def test_every_figure_is_that_of_compare_json(case: str, request: pytest.FixtureRequest) -> None:
    made: Compared = request.getfixturevalue(case)
    shown, figures = made.page.figures, made.figures
    for place, written in shown.items():
        value = figure_at(figures, place)
        for exact, text in written:
            assert float(exact) == value, place
            scaled = 100 * value if place.endswith("_fraction") else value
            decimals = len(text.partition(".")[2])
            assert float(text.replace(",", "")) == pytest.approx(scaled, abs=0.5001 * 10**-decimals), place
    for model, summary in figures["summaries"].items():
        for key, value in summary.items():
            place = f"summaries/{model}/{key}"
            if isinstance(value, dict):
                assert f"{place}/mean" in shown
                assert (f"{place}/sd" in shown) == (value["sd"] is not None)
            elif isinstance(value, (int, float)):
                assert place in shown
            elif value is not None:
                assert value in made.page.source.replace("<wbr>", "")
    for number, difference in enumerate(figures["differences"]):
        assert f"differences/{number}/gain_percentage_points/mean" in shown or difference["one_seed"]
        for pair in range(len(difference["gains"])):
            assert f"differences/{number}/gains/{pair}/percentage_points" in shown
    for number, row in enumerate(figures["models"]):
        assert (f"models/{number}/test_errors" in shown) == (row["model"] != "teacher")
    source = made.page.source.replace("&#39;", "'")
    for name in ("evidence", "gap"):
        assert figures[name] in source


@pytest.mark.parametrize("case", ["compared", "one_seed"])
def test_the_first_text_of_the_page_is_the_verdict(case: str, request: pytest.FixtureRequest) -> None:
    made: Compared = request.getfixturevalue(case)
    body = made.page.source.partition("To the content</a>")[2]
    text = " ".join(html.unescape(re.sub("<[^>]*>", " ", body)).split())
    assert text.startswith(made.figures["verdict"] + " ")
    assert f'<h1 class="verdict">{made.figures["headline"]}</h1>' in html.unescape(body)


def test_the_page_says_that_held_out_images_disagree_only_where_that_changes_the_verdict(
    compared: Compared, tmp_path: Path
) -> None:
    again = compared.copy(tmp_path / "elsewhere")
    for changes in (False, True):
        figures = compared.figures | {"disagreement": "They differ.", "disagreement_changes_verdict": changes}
        (again.directory / "compare.json").write_text(json.dumps(figures))
        write_page(again.directory, again.dataset)
        assert ("They differ." in again.page.source) == changes
        assert ("Held-out and test images disagree." in again.page.source) == changes


def test_interval_of_one_seed_is_that_of_its_pair(one_seed: Compared, compared: Compared) -> None:
    pair = {f"differences/0/one_seed/{name}" for name in ("low_percentage_points", "high_percentage_points")}
    seeds = {f"differences/0/gain_percentage_points/{name}" for name in ("low", "high")}
    assert pair <= one_seed.page.figures.keys()
    assert not seeds & one_seed.page.figures.keys()
    assert seeds <= compared.page.figures.keys()
    assert "differences/0/one_seed/mcnemar_p" in one_seed.page.figures


def test_page_states_which_images_chose_the_best_epochs(one_seed: Compared, compared: Compared) -> None:
    assert "optimistic" in one_seed.page.source
    assert "held-out" not in one_seed.page.source
    assert "optimistic" not in compared.page.source


def test_page_can_be_written_again_from_the_directory_alone(compared: Compared, tmp_path: Path) -> None:
    again = compared.copy(tmp_path / "elsewhere")
    assert write_page(again.directory, again.dataset) == again.directory / "report.html"
    assert (again.directory / "report.html").read_bytes() == (compared.directory / "report.html").read_bytes()


def test_page_needs_no_other_file(compared: Compared) -> None:
    page = compared.page
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    references = [value for _, tag in page.tags for name in ("src", "href") if (value := tag.get(name))]
    assert references
    for reference in references:
        assert reference.startswith(("#", "data:image/png;base64,"))
        if reference.startswith("#"):
            assert f'id="{reference[1:]}"' in page.source
    assert not re.search(r"url\(|@import|https?:|\bon\w+=", page.source)
    assert len(page.source.encode()) < 300_000


def test_images_are_those_that_the_students_classify_differently(compared: Compared) -> None:
    logits, _ = load_tensors(compared.directory / "test_logits.safetensors")
    labels = logits.pop("labels")
    right = [
        np.sum([logits[f"{model}/{seed}"].argmax(axis=1) == labels for seed in (0, 1)], axis=0)
        for model in ("student_kd", "student")
    ]
    ahead = right[0] - right[1]
    images = [attributes for tag, attributes in compared.page.tags if tag == "img"]
    shown = [int(re.findall(r"test image (\d+),", str(image["alt"]))[0]) for image in images]
    assert len(set(shown)) == len(shown)
    better, worse = min(8, int((ahead > 0).sum())), min(8, int((ahead < 0).sum()))
    assert better + worse == len(shown) > 0
    assert sorted(ahead[shown[:better]]) == sorted(np.sort(ahead)[::-1][:better])
    assert sorted(ahead[shown[better:]]) == sorted(np.sort(ahead)[:worse])
    for index, image in zip(shown, images, strict=True):
        png = base64.b64decode(str(image["src"]).partition(",")[2])
        with Image.open(io.BytesIO(png)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), compared.dataset.test.images[index, 0])
        assert str(image["alt"]).endswith(compared.dataset.classes[int(labels[index])])


def test_names_of_classes_are_text_and_not_markup(compared: Compared, tmp_path: Path) -> None:
    evil = ("<script>alert(1)</script>", '" onmouseover="alert(2)', "{{ 7 * 7 }}", "</style><b>&amp;")
    renamed = dataclasses.replace(compared.dataset, classes=evil, name="<img src=x onerror=alert(3)>")
    elsewhere = compared.copy(tmp_path / "elsewhere")
    page = Page(write_page(elsewhere.directory, renamed))
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "49" not in page.source or "{{ 7 * 7 }}" in page.source
    titles = [attributes["title"] for tag, attributes in page.tags if tag == "th" and "title" in attributes]
    assert set(titles) == set(evil)
    assert all(str(source).startswith("data:image/png") for source in page.attributes("img", "src"))


def test_many_classes_have_their_most_frequent_confusions(compared: Compared, tmp_path: Path) -> None:
    elsewhere = compared.copy(tmp_path / "elsewhere")
    logits, _ = load_tensors(elsewhere.directory / "test_logits.safetensors")
    padded = {
        name: array if name == "labels" else np.pad(array, ((0, 0), (0, 96)), constant_values=-50)
        for name, array in logits.items()
    }
    save_tensors(elsewhere.directory / "test_logits.safetensors", padded, {})
    many = dataclasses.replace(compared.dataset, classes=tuple(f"class {number}" for number in range(100)))
    page = Page(write_page(elsewhere.directory, many))
    assert "most frequent" in page.source
    assert 'class="matrix' not in page.source
    assert len(page.source) < 300_000


def test_test_images_of_other_data_are_refused(compared: Compared, mnist: Dataset, tmp_path: Path) -> None:
    elsewhere = compared.copy(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="mnist"):
        write_page(elsewhere.directory, mnist)
    (elsewhere.directory / "compare.json").unlink()
    with pytest.raises(KdtrainError, match=r"compare\.json"):
        write_page(elsewhere.directory, mnist)


def test_page_has_names_of_folders_and_no_path_to_them(compared: Compared, tmp_path: Path) -> None:
    again = compared.copy(tmp_path / "elsewhere")
    write_page(again.directory, dataclasses.replace(again.dataset, name="folder:/home/ada/pictures"))
    text = html.unescape(re.sub("<[^>]*>", "", again.page.source))
    assert "300 test images of folder:pictures;" in text
    assert not re.search(r"""(^|[\s"'=:(])/\w""", text)
    assert 'data_dir = "tiles"' in text
    assert "kdtrain fit --config config.toml" in text
    assert 'logdir = "logs"' in text


WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
LONG_NAMES = ("golden_retriever", "labrador_retriever", "siberian-husky", "long-haired persian cat")
_BROKEN_WORDS = """
const broken = [];
const walk = document.createTreeWalker(document.querySelector('.page'), NodeFilter.SHOW_TEXT);
while (walk.nextNode()) for (const word of walk.currentNode.data.matchAll(/[\\p{L}\\d]+/gu)) {
  const range = document.createRange();
  range.setStart(walk.currentNode, word.index);
  range.setEnd(walk.currentNode, word.index + word[0].length);
  if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(word[0]);
}
return broken;
"""
_CUT_NAMES = "return [...document.querySelectorAll('dt')].filter(n => n.scrollWidth > n.clientWidth).length"


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_of_classes_and_files_are_shown_whole_and_broken_between_their_words(
    width: int, one_seed: Compared, window: Browser, tmp_path: Path
) -> None:
    elsewhere = one_seed.copy(tmp_path / "elsewhere")
    files = tuple(f"test/a_folder_of_pictures/photograph_{n:05d}_of_the_archive.png" for n in range(300))
    test = dataclasses.replace(elsewhere.dataset.test, names=files)
    named = dataclasses.replace(elsewhere.dataset, classes=LONG_NAMES, test=test)
    window.open(write_page(elsewhere.directory, named).as_uri(), width)
    assert "photograph_00" in window.text(".card small")
    assert window.run(_BROKEN_WORDS) == []
    assert window.run(_CUT_NAMES) == 0
    flags = "return [...document.querySelectorAll('pre.wrap span')].map(s => s.getClientRects().length)"
    assert set(window.run(flags)) == {1}


def test_table_of_three_models_fits_a_phone(one_seed: Compared, window: Browser) -> None:
    window.open((one_seed.directory / "report.html").as_uri(), 390)
    assert len(window.texts(".models thead th")) == 3
    assert (
        window.run(
            "const box = document.querySelector('.models').parentElement;"
            "return box.scrollWidth - box.clientWidth"
        )
        == 0
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", ["compared", "one_seed"])
def test_browser_shows_the_page(
    case: str, width: int, scheme: str, window: Browser, request: pytest.FixtureRequest
) -> None:
    made: Compared = request.getfixturevalue(case)
    address = (made.directory / "report.html").as_uri()
    window.open("about:blank")
    window.requests()
    window.messages()
    window.open(address, width, dark=scheme == "dark")
    assert window.messages() == []
    assert [sent for sent in window.requests() if not sent.startswith("data:image/png")] == [address]
    assert window.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert window.run("return [...document.images].every(image => image.naturalWidth > 0)")
    paper = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 384) == (scheme == "light")
    assert window.run(_POOR_CONTRAST) == []
    # What is wider than the phone scrolls inside its own box, which the keyboard reaches.
    assert window.run(
        "return [...document.querySelectorAll('.scroll, pre')]"
        ".every(box => box.scrollWidth <= box.clientWidth || box.tabIndex === 0)"
    )


def test_page_and_its_parts_have_titles_and_labels(compared: Compared, window: Browser) -> None:
    window.open((compared.directory / "report.html").as_uri())
    assert window.run("return document.title") == "student_kd and student on tiles: kdtrain comparison"
    assert window.run("return document.documentElement.lang") == "en"
    assert window.run(
        "return [...document.querySelectorAll('svg:not([aria-hidden]), .scroll, section, img')].every("
        "part => part.ariaLabel || part.alt || part.getAttribute('aria-labelledby'))"
    )
    assert window.run(
        "return [...document.querySelectorAll('table')].every(t => t.querySelector('th[scope]'))"
    )
    levels = window.run("return [...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


_POOR_CONTRAST = """
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = colour => {
  const [r, g, b] = colour.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = rgb(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
};
const poor = [];
const texts = 'p, th, td:not(.miss, .none), dt, dd, li, small, a, h1, h2, h3, h4, code, figcaption';
for (const element of document.querySelectorAll(texts)) {
  if (!element.innerText.trim() || element.classList.contains('skip')) continue;
  const [one, two] = [rgb(getComputedStyle(element).color), behind(element)].map(light).sort((a, b) => b - a);
  if ((one + .05) / (two + .05) < 4.5) poor.push(element.outerHTML.slice(0, 80));
}
return poor;
"""
"""WCAG 2.1, success criterion 1.4.3: texts whose contrast with what is behind them is below 4.5."""
