"""A model card in Markdown, with the front matter that model hubs read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdtrain.data.images.model_input import shows_ink
from kdtrain.store.card import ModelCard

_MOST_CLASSES = 100  # listed by name


@dataclass(frozen=True)
class TestFigures:
    """A model's figures on the test set.

    Attributes:
        accuracy: fraction.
        low: lower end of the 95 % interval of the accuracy, fraction.
        high: upper end, fraction.
        errors: number of errors.
        images: number of test images.
        cross_entropy: nats per image; None if unknown.
        calibration_error: fraction; None if unknown.
    """

    __test__ = False  # no class of tests, whatever pytest makes of its name

    accuracy: float
    low: float
    high: float
    errors: int
    images: int
    cross_entropy: float | None
    calibration_error: float | None


@dataclass(frozen=True)
class ComparedModel:
    """A row of the table of a comparison.

    Attributes:
        model: its name in the comparison.
        arch: its network.
        parameters: number of trainable values; 0 if unknown.
        accuracy: test accuracy in percent, mean over the seeds.
        low: lower end of the 95 % interval over the seeds; None with one seed.
        high: upper end; None with one seed.
        seeds: number of seeds.
    """

    model: str
    arch: str
    parameters: int
    accuracy: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class ExportedFile:
    """An ONNX file of the model.

    Attributes:
        name: its file name.
        precision: float32 or int8.
        size: bytes.
        parameters: number of trainable values.
    """

    name: str
    precision: str
    size: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a model card says: nothing is added to it. Empty where the files do not tell.

    Attributes:
        file: the checkpoint's file name.
        size: its size in bytes.
        sha256: its checksum (hex).
        card: the checkpoint's own description.
        arch: the network, without folders.
        dataset: the data set, without folders.
        own_code: whether the network is made by the user's code.
        built_in: whether the data set is built in, and its name known to others.
        data_licence: the licence of the data, where kdtrain comes with them.
        license: identifier of the licence that the user gives; None if not given.
        seed: seed of the training.
        parameters: number of trainable values.
        best_epoch: the epoch of these weights.
        seconds: time of the training.
        test: figures on the test set.
        test_chose: whether the test set chose the epoch.
        copies: a sentence on images that are in several parts of the data; None if none is.
        settings: settings of the training, by name.
        teachers: the teachers of a distilled student, as texts.
        compared: the models of the comparison that it was trained in.
        sentences: what the comparison showed.
        exported: ONNX files of these weights.
    """

    file: str
    size: int
    sha256: str
    card: ModelCard
    arch: str
    dataset: str
    own_code: bool
    built_in: bool
    data_licence: str = ""
    license: str | None = None
    seed: int | None = None
    parameters: int | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    test: TestFigures | None = None
    test_chose: bool = False
    copies: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    teachers: Sequence[str] = ()
    compared: Sequence[ComparedModel] = ()
    sentences: Sequence[str] = ()
    exported: Sequence[ExportedFile] = ()

    @property
    def title(self) -> str:
        """The title of the card."""
        return f"{self.arch} for {self.dataset}"

    @property
    def shows_ink(self) -> bool:
        """Whether the data show bright ink on black, as MNIST does."""
        return shows_ink(self.card.dataset, self.card.image_shape)

    @property
    def listed_classes(self) -> tuple[str, ...]:
        """The names of the classes that the card lists."""
        return self.card.classes if len(self.card.classes) <= _MOST_CLASSES else ()


def render_card(facts: CardFacts) -> str:
    """Returns the text of the file: the front matter, then Markdown."""
    environment = Environment(
        loader=PackageLoader("kdtrain.report.page"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: ``code`` and ``cell`` make texts of files harmless
    )
    environment.filters |= {"code": _code, "cell": _cell}
    text = environment.get_template("model_card.md").render(facts=facts, card=facts.card)
    return f"---\n{front_matter(facts)}---\n\n" + re.sub(r"\n{3,}", "\n\n", text)


def front_matter(facts: CardFacts) -> str:
    """Returns the YAML between the two lines of dashes, with the fields that model hubs document."""
    tags = ["image-classification", "oneflow"]
    tags += ["knowledge-distillation"] * (facts.card.mode == "student_kd") + ["onnx"] * bool(facts.exported)
    values: dict[str, Any] = {
        "license": facts.license or "unknown",
        "library_name": "kdtrain",
        "pipeline_tag": "image-classification",
        "tags": tags,
    }
    if facts.built_in:
        values["datasets"] = [facts.dataset]
    if facts.test is not None:
        values |= {"metrics": ["accuracy"], "model-index": [_evaluation(facts, facts.test)]}
    return "".join(_yaml_lines(values, ""))


def _evaluation(facts: CardFacts, test: TestFigures) -> dict[str, Any]:
    """Returns the entry of ``model-index``: one task, one data set, the test accuracy as a fraction."""
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": facts.dataset, "name": facts.dataset, "split": "test"},
        "metrics": [{"type": "accuracy", "value": test.accuracy, "name": "Test accuracy"}],
    }
    return {"name": facts.title, "results": [result]}


def _yaml_lines(value: Any, indent: str) -> list[str]:
    """Returns the lines of an object or a list in YAML; each text is quoted as in JSON, which is YAML."""
    lines = []
    entries = value.items() if isinstance(value, Mapping) else [(None, item) for item in value]
    for key, item in entries:
        head = f"{indent}- " if key is None else f"{indent}{key}:"
        if not isinstance(item, (Mapping, list)):
            lines.append(f"{head}{'' if key is None else ' '}{json.dumps(item)}\n")
        elif key is None:
            inside = _yaml_lines(item, f"{indent}  ")
            lines += [head + inside[0].lstrip(), *inside[1:]]
        else:
            lines += [f"{head}\n", *_yaml_lines(item, f"{indent}  " if isinstance(item, Mapping) else indent)]
    return lines


def _code(text: object) -> str:
    """Returns text of a file as code, in which Markdown and HTML mean nothing."""
    return f"`{_cell(str(text).replace('`', chr(39)))}`"


def _cell(text: object) -> str:
    """Returns text for a cell of a table: on one line, with bars that end no cell."""
    return " ".join(str(text).split()).replace("|", "\\|")
