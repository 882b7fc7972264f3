"""The model card of a checkpoint in Markdown, from its own description and the files of its run."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtrain.data.datasets import BUILT_IN
from kdtrain.data.images.model_input import shows_ink
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.errors import CheckpointError, KdtrainError, UsageError, clipped
from kdtrain.experiment.history.run import RUN_FOLDERS, is_run, parts_of, read_config
from kdtrain.experiment.history.runs import run_directories
from kdtrain.metrics.statistics import proportion_interval
from kdtrain.models.zoo import PREFIX
from kdtrain.runtime.files import write_text
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.regular_files import open_regular
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_card
from kdtrain.store.record import BEST_WEIGHTS, RESULT, Comparison, FitRecord, ModelResult, R, read_record

logger = logging.getLogger(__name__)

_MOST_HEADER = 1 << 27  # bytes
_MOST_CLASSES = 100  # listed by name
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
_DATA_LICENCES = {"mnist": "CC BY-SA 3.0 (Yann LeCun and Corinna Cortes)"}  # as kdtrain/data/mnist/README.md
_SETTINGS = (
    *("recipe", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "clip_grad_norm"),
    *("early_stopping", "labels", "val_size", "limit_train", "omit_class", "image_size", "plugin"),
)
_OF_STUDENTS = ("epochs", "augment", "views", "student_checkpoint")
_OF_DISTILLED = (
    *("temperature", "alpha", "transfer_data", "transfer_share"),
    *("teacher_weight", "teacher_classes"),
)
_PATHS = {"student_checkpoint", "transfer_data", "plugin", "teacher_classes"}
_KINDS = {
    "student_kd": "An image classifier, trained by knowledge distillation: a small network (the student) "
    "learns from the labels and from the class probabilities of a teacher.",
    "student": "An image classifier: a small network, trained with labels and without a teacher.",
    "teacher": "An image classifier, trained with labels. It can be the teacher of a smaller network.",
}


@dataclass(frozen=True)
class _Exported:
    """An ONNX file that was exported from a checkpoint: its name, precision, bytes and trainable values."""

    name: str
    precision: str
    size: int
    parameters: int


def card(model: Path | str, *, license: str | None = None, output: Path | str | None = None) -> str:
    """Returns the model card of a checkpoint in Markdown, as ``kdtrain card`` writes it.

    The card says what is in the checkpoint, in the files of its run, and in ONNX files beside it that were
    exported from it. The run of a kept model is the one in the log directory with the same weights. Paths
    are reduced to names.

    Args:
        model: a .safetensors file of kdtrain's.
        license: identifier of the licence that you give the model, such as apache-2.0.
        output: a file to write the card to, too.

    Raises:
        UsageError: the licence is no identifier.
        KdtrainError: the model cannot be read, or the file cannot be written.
    """
    if license is not None and not _LICENCE.fullmatch(license):
        raise UsageError(
            f"--license is {clipped(license, repr)}: give an identifier of letters, digits, '.', '+' and "
            "'-', such as apache-2.0."
        )
    path = Path(model)
    if path.suffix == ".onnx" or path.is_dir():
        raise UsageError(f"{path}: the card is that of a checkpoint: give its .safetensors file.")
    text = _Card(path, load_card(path), license).text()
    if output is not None:
        write_text(Path(output), text)
    return text


class _Card:
    """The card of one model: a method for each of its sections.

    Args:
        path: the checkpoint.
        about: its own description.
        license: identifier of the licence that the user gives.
    """

    def __init__(self, path: Path, about: ModelCard, license: str | None) -> None:
        self.path, self.about, self.license = path, about, license
        with open_regular(path) as file:
            content = file.read()
        self.size, self.digest = len(content), hashlib.sha256(content).hexdigest()
        self.arch, self.dataset = short_name(about.arch), short_name(about.dataset)
        self.own_code = ":" in about.arch and not about.arch.startswith(PREFIX)
        self.exported = tuple(_exported(path, self.digest))
        self.config: dict[str, Any] = {}
        self.fit: FitRecord | None = None
        self.compared: Comparison | None = None
        self.run = find_run(path)
        self.result: ModelResult | None = None  # None also for other weights than those of the figures
        if self.run is None:
            logger.info(
                f"The run of {path} is not found, so the card has no settings and no test figures. To have "
                "them, give the model in its run directory: RUN_DIR/checkpoints/best.safetensors"
            )
            return
        self.config, self.fit, self.compared = _config(self.run), _fit(self.run), _comparison_of(self.run)
        if self.fit is not None and _header(path) == _header(self.run / BEST_WEIGHTS):
            self.result = self.fit.result

    def text(self) -> str:
        sections = (
            *(self._head(), self._data(), self._teacher(), self._training()),
            *(self._figures(), self._use(), self._limits(), self._licence()),
        )
        body = "\n\n".join(part for section in sections for part in section if part)
        return f"---\n{self._front_matter()}---\n\n{body}\n"

    def _front_matter(self) -> str:
        """Returns the YAML with the fields that model hubs document; a JSON value is one of YAML."""
        tags = ["image-classification", "oneflow"]
        tags += ["knowledge-distillation"] * (self.about.mode == "student_kd") + ["onnx"] * bool(
            self.exported
        )
        values: dict[str, Any] = {
            "license": self.license or "unknown",
            "library_name": "kdtrain",
            "pipeline_tag": "image-classification",
            "tags": tags,
        }
        if self.dataset in BUILT_IN:
            values["datasets"] = [self.dataset]
        if self.result is not None:
            accuracy = {"type": "accuracy", "value": self.result.accuracy, "name": "Test accuracy"}
            evaluation = {
                "task": {"type": "image-classification", "name": "Image Classification"},
                "dataset": {"type": self.dataset, "name": self.dataset, "split": "test"},
                "metrics": [accuracy],
            }
            name = f"{self.arch} for {self.dataset}"
            values |= {"metrics": ["accuracy"], "model-index": [{"name": name, "results": [evaluation]}]}
        return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())

    def _head(self) -> Iterator[str]:
        about, shape = self.about, " x ".join(map(str, self.about.image_shape))
        yield f"# {_cell(f'{self.arch} for {self.dataset}')}"
        yield _KINDS.get(about.mode, "An image classifier.")
        mean, std = (
            ", ".join(str(round(value, 4)) for value in values) for values in (about.mean, about.std)
        )
        if shows_ink(about.dataset, about.image_shape):
            files = (
                "`kdtrain infer` looks for the ink in them, and brings it to the size and place that it has "
                "in the training images"
            )
        else:
            files = (
                "upright, white where transparent, scaled with Pillow's `BILINEAR` filter until they just "
                f"cover {' x '.join(map(str, about.image_shape[1:]))}, cropped equally at both ends"
                + ", then grey by ITU-R BT.601"
                * (about.image_shape[0] == 1)
            )
        parameters = self.result.parameters if self.result else 0
        parameters = parameters or (self.exported[0].parameters if self.exported else 0)
        rows = {
            "network": _code(self.arch),
            **({"parameters": f"{parameters:,}"} if parameters else {}),
            "input": f"{shape} (channels x height x width), pixels scaled to 0..1, then minus {mean}, "
            f"divided by {std}",
            "image files": files,
            "output": f"logits of {len(about.classes)} classes",
            "file": f"{_code(self.path.name)}, {self.size:,} bytes, SHA-256 {_code(self.digest)}",
            "made with": ", ".join(f"{_cell(name)} {_cell(of)}" for name, of in about.versions.items()),
        }
        yield _table(("", ""), rows.items())
        if len(about.classes) <= _MOST_CLASSES:
            yield f"Classes, in the order of the logits: {', '.join(map(_code, about.classes))}."

    def _data(self) -> Iterator[str]:
        images, licence = self.about.images, _DATA_LICENCES.get(self.dataset)
        trained = f" The network was trained on {images:,} images." if images else ""
        yield "## Data"
        yield f"The data set is {_code(self.dataset)}.{trained}"
        told = f"The licence of the data is {licence}." if licence else None
        yield told or "The model's files do not tell the licence of the data."

    def _teacher(self) -> Iterator[str]:
        if self.about.mode != "student_kd":
            return
        teachers = [_cell(teacher) for teacher in self._teachers()]
        yield "## Teacher"
        told = "\n".join(f"{'- ' * (len(teachers) > 1)}{teacher}" for teacher in teachers)
        yield told or "The model's files do not tell the teacher."

    def _teachers(self) -> Iterator[str]:
        """Yields a text for each teacher: its network and its accuracy, and the images that it takes."""
        inputs = self.fit.teachers if self.fit else ()
        for index, text in enumerate(self._networks()):
            if index >= len(inputs):
                yield text
                continue
            teacher = inputs[index]
            if teacher.held_out_accuracy is not None and "accuracy" not in text:
                text += f", held-out accuracy {teacher.held_out_accuracy:.2%}"
            if teacher.mean:
                mean, std = (
                    ", ".join(f"{value:.4g}" for value in values) for values in (teacher.mean, teacher.std)
                )
                text += f"; it takes pixels scaled to 0..1, minus {mean}, divided by {std}"
            yield text

    def _networks(self) -> list[str]:
        """Returns a text for each teacher: its network and its test accuracy, or the name of its file."""
        if self.compared is not None:
            members, mean = self.compared.teachers, self.compared.summaries["teacher"]
            known = [(member.arch, member.accuracy) for member in members]
            known = known or [(mean.arch, mean.accuracy.mean / 100)]
            return [f"{arch or 'unknown network'}, test accuracy {share:.2%}" for arch, share in known]
        own = _fit(self.run / "teacher") if self.run else None
        if own is not None and own.result is not None:
            return [f"{own.result.arch}, test accuracy {own.result.accuracy:.2%}"]
        arch = f" ({short_name(self.config['teacher_arch'])})" if self.config.get("teacher_arch") else ""
        files = [f"{Path(path).name}{arch}" for path in _paths(self.config.get("teacher_checkpoint"))]
        return files + [Path(path).name for path in _paths(self.config.get("teacher_logits"))]

    def _training(self) -> Iterator[str]:
        yield "## Training"
        if settings := _settings(self.config):
            rows = [(_code(name), _code(value)) for name, value in settings.items()]
            yield _table(("setting", "value"), rows)
        elif self.about.epochs:
            told = "The model's files do not tell the other settings."
            yield f"The training had {self.about.epochs} epochs. {told}"
        else:
            yield "The model's files do not tell the settings."
        if self.result is not None:
            best = self.result.best_epoch
            weights = [f"The weights are those of epoch {best}."] if best else []
            yield " ".join([*weights, f"The training took {self.result.seconds:,.0f} seconds."])

    def _figures(self) -> Iterator[str]:
        held_out, result = self.about.accuracy_text, self.result
        yield "## Figures"
        if result is None:
            if held_out == "unknown":
                yield "The model's files have no figures."
                return
            told = "The model's files have no figures on a test set."
            yield f"The accuracy on held-out images, which chose the epoch, is {held_out}. {told}"
            return
        test_chose, images = self.config.get("val_size") == 0, f"{result.images:,}"
        low, high = proportion_interval(result.images - result.errors, result.images)
        interval = f"95 % interval {low:.2%} to {high:.2%}, by the choice of the {images} test images"
        rows = {
            "test accuracy": f"{result.accuracy:.2%} ({interval})",
            "test errors": f"{result.errors:,} of {images} images",
            "test cross-entropy": f"{result.cross_entropy:.4f} nats per image",
            "test calibration error": f"{result.calibration_error:.2%}",
        }
        if result.balanced_accuracy is not None and self.fit is not None and self.fit.conditions.uneven:
            rows["test balanced accuracy"] = f"{result.balanced_accuracy:.2%}, the mean over the classes"
        if held_out != "unknown" and not test_chose:
            rows["held-out accuracy"] = f"{held_out}, which chose the epoch"
        yield _table(("", ""), rows.items())
        if test_chose:
            yield (
                "No images were held out: the test images chose the epoch, so the test accuracy is "
                "optimistic."
            )
        if self.fit is not None and self.fit.conditions.copies is not None:
            yield self.fit.conditions.copies.sentence
        if self.compared is not None:
            yield from _compared(self.compared)

    def _use(self) -> Iterator[str]:
        file, shape = self.path.name, ", ".join(map(str, self.about.image_shape))
        arch = " --arch ARCH" if self.own_code else ""
        data = "" if self.dataset in BUILT_IN else " --dataset DATA"
        yield "## Use"
        yield "With kdtrain:"
        yield (
            f"```bash\nkdtrain infer IMAGE --checkpoint {file}{arch}\nkdtrain eval {file}{arch}{data}\n```"
        )
        yield (
            "```python\nimport kdtrain\n\n"
            f'model = kdtrain.load_model("{file}"{", arch=ARCH" * self.own_code})\n'
            f"network = model.build()  # takes normalised images, (N, {shape}) float32\n```"
        )
        if self.own_code:
            yield f"ARCH names the code of the network, which is not in this file: {_code(self.arch)}."
        if not self.exported:
            return
        yield "With onnxruntime, without kdtrain:"
        yield (
            "```python\nimport numpy as np\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{self.exported[0].name}")\n'
            'images = session.get_inputs()[0]  # "pixels": values from 0 to 255; '
            '"inputs": normalised images\n'
            f"batch = np.zeros((1, {shape}), np.float32)  # your images\n"
            "[logits] = session.run(None, {images.name: batch})\n```"
        )
        rows = [(_code(file.name), _cell(file.precision), f"{file.size:,}") for file in self.exported]
        yield _table(("file", "weights", "bytes"), rows)

    def _limits(self) -> Iterator[str]:
        channels, height, width = self.about.image_shape
        lines = [
            f"- The network takes images of {height} x {width} pixels in "
            f"{'grey' if channels == 1 else 'colour'}. It names one of its {len(self.about.classes)} classes "
            "for any image, also for an image that shows none of them."
        ]
        if self.result is not None:
            lines.append(
                "- The figures are those of the test set above. They say nothing about other images."
            )
        if omitted := _settings(self.config).get("omit_class"):
            lines.append(f"- The training had no images of {_code(omitted)}.")
        lines.append(
            "- The files tell no intended use, and no risk or bias. Describe them here before you share the "
            "model."
        )
        yield "## Limits"
        yield "\n".join(lines)

    def _licence(self) -> Iterator[str]:
        yield "## Licence"
        given = f"The model is shared under {_code(self.license)}." if self.license else None
        yield given or (
            "The model's files tell no licence. State one here and in the field `license` above before you "
            "share the model."
        )


def _compared(compared: Comparison) -> Iterator[str]:
    """Yields the table and the sentences of the comparison that a model was trained in."""
    yield (
        "The model is one of a comparison, in which all students saw the same images. Test accuracy, with "
        "the 95 % interval over the seeds:"
    )
    rows = []
    for name, model in compared.summaries.items():
        accuracy = model.accuracy
        low, high = accuracy.low, accuracy.high
        interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
        size = f"{model.parameters:,}" if model.parameters else "-"
        rows.append((name, _code(model.arch), size, f"{accuracy.mean:.2f}{interval}", accuracy.n))
    yield _table(("model", "network", "parameters", "test accuracy %", "seeds"), rows)
    far_apart = [] if compared.far_apart is None else [compared.far_apart]
    conditions = compared.conditions.without_folders().sentences
    for sentence in (compared.verdict, compared.evidence, compared.gap, *far_apart, *conditions):
        yield _cell(sentence)


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings of the training as texts: those that a network of this mode has."""
    if not config:
        return {}
    mode = config.get("mode")
    renamed = {"epochs": "teacher_epochs", "augment": "teacher_augment"} if mode == "teacher" else {}
    names = (*_SETTINGS, *(renamed or _OF_STUDENTS), *(_OF_DISTILLED if mode == "student_kd" else ()), "seed")
    settings = {name: config.get(renamed.get(name, name)) for name in names}
    if settings.get("transfer_data") is None:
        settings.pop("transfer_share", None)
    return {name: _value(name, value) for name, value in settings.items() if value not in (None, [], "")}


def _value(name: str, value: Any) -> str:
    items = _paths(value) if name in _PATHS else value if isinstance(value, list) else [value]
    if name in _PATHS:
        items = [Path(i).name if "/" in i and ".py" not in i else short_name(i) for i in items]
    return ", ".join(map(str, items))


def _paths(value: Any) -> list[str]:
    """Returns the texts of a setting, which may be one or a list of them; empty if it is not there."""
    return list(map(str, value if isinstance(value, list) else [value] if value else []))


def _config(run: Path) -> dict[str, Any]:
    try:
        return read_config(run)
    except KdtrainError:
        return {}  # the card does without


def _fit(run: Path) -> FitRecord | None:
    return _readable(run / RESULT, FitRecord)


def _readable(file: Path, kind: type[R]) -> R | None:
    try:
        return read_record(file, kind)
    except KdtrainError:
        return None  # the card does without


def _comparison_of(run: Path) -> Comparison | None:
    """Returns the comparison that lists a run."""
    for folder in list(run.parents)[:3]:
        compared = _readable(folder / Comparison.FILE, Comparison)
        if compared and str(run.relative_to(folder)) in [model.directory for model in compared.models]:
            return compared
    return None


def find_run(path: Path) -> Path | None:
    """Returns the directory of the run that a model comes from; None if it is not found.

    A kept model is looked for in the log directory that has its folder: the run's best weights are equal.

    Args:
        path: the checkpoint.
    """
    folder = path.absolute().parent
    if folder.name == "checkpoints" and is_run(folder.parent):
        return folder.parent
    root, header = folder.parent, _header(path)
    if not any((root / mode).is_dir() for mode in RUN_FOLDERS):
        return None
    for run in run_directories(root):
        for directory in (run, *parts_of(run)):
            if _header(directory / BEST_WEIGHTS) == header:
                return directory
    return None


def _header(path: Path) -> bytes | None:
    """Returns the header of a model's file, which has the checksum of its weights; None without a file."""
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            return file.read(min(size, _MOST_HEADER))
    except OSError:
        return None


def _exported(path: Path, digest: str) -> Iterator[_Exported]:
    """Yields the ONNX files beside a checkpoint that were exported from it, in float32 first."""
    for name in (path.with_suffix(".onnx"), path.with_suffix(".int8.onnx")):
        try:
            size = name.stat().st_size
            about = OnnxModel.load(name).about
        except (OSError, CheckpointError):
            continue  # none, or none that can be read: the card does without
        if about.get("checkpoint_sha256") == digest:
            parameters = about.get("parameters")
            yield _Exported(
                name.name, str(about.get("precision")), size, parameters if type(parameters) is int else 0
            )


def _table(head: Sequence[str], rows: Any) -> str:
    """Returns a table in Markdown; its cells are harmless already."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    return "\n".join([lines[0].replace("|  |  |", "| | |"), "|---" * len(head) + "|", *lines[1:]])


def _code(text: object) -> str:
    """Returns text of a file as code, in which Markdown and HTML mean nothing."""
    return f"`{_cell(str(text).replace('`', chr(39)))}`"


def _cell(text: object) -> str:
    """Returns text for a cell of a table: on one line, with bars that end no cell."""
    return " ".join(str(text).split()).replace("|", "\\|")
