"""The model card of a checkpoint, from its own description and the files of its run."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdtrain.data.datasets import BUILT_IN
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.errors import CheckpointError, UsageError, clipped
from kdtrain.experiment.history.files import (
    COMPARISON,
    CONFIG,
    RESULT,
    RunFiles,
    at,
    is_run,
    number,
    text,
    whole,
)
from kdtrain.experiment.history.run import RUN_FOLDERS
from kdtrain.experiment.history.runs import run_directories
from kdtrain.metrics.statistics import proportion_interval
from kdtrain.models.zoo import PREFIX
from kdtrain.report.conditions import Conditions, Labels, Transfer, condition_sentences
from kdtrain.report.model_card import CardFacts, ComparedModel, ExportedFile, TestFigures, render_card
from kdtrain.runtime.files import write_text
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.regular_files import open_regular
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_card

logger = logging.getLogger(__name__)

_BEST = Path("checkpoints", "best.safetensors")
_MOST_HEADER = 1 << 27  # bytes
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
    text = render_card(_facts(path, load_card(path), license))
    if output is not None:
        write_text(Path(output), text)
    return text


def _facts(path: Path, description: ModelCard, license: str | None) -> CardFacts:
    dataset = short_name(description.dataset)
    with open_regular(path) as file:
        content = file.read()
    digest = hashlib.sha256(content).hexdigest()
    exported = tuple(_exported(path, digest))
    facts = _facts_of_run(path)
    if exported and facts.get("parameters") is None:
        facts["parameters"] = exported[0].parameters
    return CardFacts(
        file=path.name,
        size=len(content),
        sha256=digest,
        card=description,
        arch=short_name(description.arch),
        dataset=dataset,
        own_code=":" in description.arch and not description.arch.startswith(PREFIX),
        built_in=dataset in BUILT_IN,
        data_licence=_DATA_LICENCES.get(dataset, ""),
        license=license,
        exported=exported,
        **facts,
    )


def _facts_of_run(path: Path) -> dict[str, Any]:
    """Returns what the files of a model's run tell; empty if there is no run."""
    run = find_run(path)
    if run is None:
        logger.info(
            f"The run of {path} is not found, so the card has no settings and no test figures. To have them, "
            "give the model in its run directory: RUN_DIR/checkpoints/best.safetensors"
        )
        return {}
    files = RunFiles(run)
    config, result = files.toml(CONFIG), files.json(RESULT)
    comparison = _comparison_of(run)
    facts: dict[str, Any] = {"settings": _settings(config), "seed": whole(config, "seed")}
    if text(config, "mode") == "student_kd":
        teachers = list(_teachers(config, comparison, run))
        facts["teachers"] = tuple(_with_figures(teachers, at(result, "teachers")))
    if _header(path) != _header(run / _BEST):
        return facts  # other weights than those of the figures, such as those with raised biases
    facts |= {
        "parameters": whole(result, "parameters"),
        "best_epoch": whole(result, "best_epoch"),
        "seconds": number(result, "seconds"),
        "test": _test_figures(at(result, "test")),
        "test_chose": whole(config, "val_size") == 0,
        "copies": text(result, "copies"),
    }
    return facts | _comparison_facts(comparison)


def _test_figures(test: Any) -> TestFigures | None:
    errors, images, accuracy = whole(test, "errors"), whole(test, "images"), number(test, "accuracy")
    if errors is None or images is None or accuracy is None or not 0 <= errors <= images or images == 0:
        return None
    low, high = proportion_interval(images - errors, images)
    cross_entropy, calibration_error = number(test, "cross_entropy"), number(test, "calibration_error")
    return TestFigures(accuracy, low, high, errors, images, cross_entropy, calibration_error)


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings of the training as texts: those that a network of this mode has."""
    if not config:
        return {}
    names: tuple[str, ...] = _SETTINGS
    mode, renamed = text(config, "mode"), {}
    if mode == "teacher":
        renamed = {"epochs": "teacher_epochs", "augment": "teacher_augment"}
    names += tuple(renamed) or _OF_STUDENTS
    names += _OF_DISTILLED if mode == "student_kd" else ()
    settings = {name: at(config, renamed.get(name, name)) for name in (*names, "seed")}
    if settings.get("transfer_data") is None:
        settings.pop("transfer_share", None)
    return {name: _value(name, value) for name, value in settings.items() if value not in (None, [], "")}


def _value(name: str, value: Any) -> str:
    items = value if isinstance(value, list) else [value]
    if name in _PATHS:
        items = [
            Path(item).name if "/" in str(item) and ".py" not in str(item) else short_name(str(item))
            for item in items
        ]
    return ", ".join(map(str, items))


def _teachers(config: Mapping[str, Any], comparison: Mapping[str, Any], run: Path) -> Iterator[str]:
    """Yields a text for each teacher: its network and its test accuracy, or the name of its file."""
    own = RunFiles(run / "teacher")
    several = at(comparison, "teachers")
    if isinstance(several, list) and several:
        for row in several:
            yield _teacher(text(row, "arch"), number(row, "test_accuracy_fraction"))
    elif teacher := at(comparison, "models", "teacher"):
        percent = number(teacher, "test_accuracy_percent", "mean")
        yield _teacher(text(teacher, "arch"), None if percent is None else percent / 100)
    elif is_run(own.directory):
        arch = text(own.toml(CONFIG), "teacher_arch")
        yield _teacher(arch and short_name(arch), number(own.json(RESULT), "test", "accuracy"))
    else:
        arch = text(config, "teacher_arch")
        for path in _paths(config, "teacher_checkpoint"):
            yield f"{Path(path).name}{f' ({short_name(arch)})' if arch else ''}"
        for path in _paths(config, "teacher_logits"):
            yield Path(path).name


def _with_figures(teachers: list[str], members: Any) -> Iterator[str]:
    """Yields the texts of teachers with held-out accuracy and normalisation, as result.json has them."""
    for index, teacher in enumerate(teachers):
        member = at(members, index)
        accuracy = number(member, "held_out_accuracy_fraction")
        if accuracy is not None and "accuracy" not in teacher:
            teacher += f", held-out accuracy {accuracy:.2%}"
        mean, std = (_numbers(at(member, name)) for name in ("mean", "std"))
        yield teacher + (f"; it takes pixels scaled to 0..1, minus {mean}, divided by {std}" * bool(mean))


def _paths(config: Mapping[str, Any], name: str) -> list[str]:
    """Returns the paths in a setting, which may be one path or a list of them; empty if it is not there."""
    value = at(config, name) or []
    return list(map(str, value if isinstance(value, list) else [value]))


def _numbers(values: Any) -> str:
    """Returns the numbers of channels as a text; empty if they are none."""
    if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
        return ""
    return ", ".join(f"{value:.4g}" for value in values)


def _teacher(arch: str | None, accuracy: float | None) -> str:
    return (arch or "unknown network") + ("" if accuracy is None else f", test accuracy {accuracy:.2%}")


def _comparison_of(run: Path) -> dict[str, Any]:
    """Returns the content of the compare.json that lists a run; empty without one."""
    for folder in list(run.parents)[:3]:
        figures = RunFiles(folder).json(COMPARISON)
        results = at(figures, "results")
        if isinstance(results, list) and str(run.relative_to(folder)) in [
            at(row, "directory") for row in results
        ]:
            return figures
    return {}


def _comparison_facts(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rows and the sentences of a comparison."""
    rows, models = [], at(figures, "models")
    for name, summary in models.items() if isinstance(models, Mapping) else ():
        accuracy = number(summary, "test_accuracy_percent", "mean")
        if accuracy is not None:
            low, high = (number(summary, "test_accuracy_percent", end) for end in ("low", "high"))
            seeds = whole(summary, "test_accuracy_percent", "n") or 1
            arch, parameters = text(summary, "arch") or "", whole(summary, "parameters") or 0
            rows.append(ComparedModel(name, arch, parameters, accuracy, low, high, seeds))
    sentences = [text(figures, name) for name in ("verdict", "evidence", "gap", "far_apart")]
    sentences += condition_sentences(_conditions(at(figures, "conditions")))
    return {"compared": tuple(rows), "sentences": tuple(filter(None, sentences))}


def _conditions(conditions: Any) -> Conditions:
    """Returns the conditions of a comparison, with names in the place of paths."""
    first, transfer = text(conditions, "student_checkpoint"), at(conditions, "transfer")
    numbers = [whole(conditions, "labels", name) for name in ("kept", "images", "held_out")]
    labels = Labels(*(number or 0 for number in numbers)) if None not in numbers else None
    images, share = whole(transfer, "images"), number(transfer, "share")
    unlabelled = None
    if images is not None and share is not None and 0 < share < 1:
        source, models = Path(text(transfer, "source") or "").name or None, at(transfer, "models")
        students = tuple(map(str, models)) if isinstance(models, list) else ()
        unlabelled = Transfer(source, images, share, students)
    return Conditions(None if first is None else Path(first).name, labels, unlabelled)


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
        for directory in (run, *RunFiles(run).parts()):
            if _header(directory / _BEST) == header:
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


def _exported(path: Path, digest: str) -> Iterator[ExportedFile]:
    """Yields the ONNX files beside a checkpoint that were exported from it, in float32 first."""
    for name in (path.with_suffix(".onnx"), path.with_suffix(".int8.onnx")):
        try:
            size = name.stat().st_size
            about = OnnxModel.load(name).about
        except (OSError, CheckpointError):
            continue  # none, or none that can be read: the card does without
        if at(about, "checkpoint_sha256") == digest:
            parameters = whole(about, "parameters") or 0
            yield ExportedFile(name.name, str(at(about, "precision")), size, parameters)
