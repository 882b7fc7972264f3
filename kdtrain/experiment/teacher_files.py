"""The files of teachers: checkpoints, ONNX files of any program, and tables of logits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.npz import Header, Headers, read_arrays
from kdtrain.deploy.onnx_classifier import Assumed
from kdtrain.deploy.onnx_network import (
    OnnxClassifier,
    OnnxNetwork,
    are_probabilities,
    probability_rows,
    to_logits,
)
from kdtrain.engine.teacher_network import (
    GivenLogits,
    InputConversion,
    InputForm,
    Logits,
    TeacherNetwork,
    check_views,
)
from kdtrain.errors import DataError, UsageError, clipped, size_text
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.settings import DEFAULT_TEACHER
from kdtrain.experiment.teacher_check import FirstLook, for_channels, normalization_text, own_form
from kdtrain.experiment.teacher_classes import match_classes
from kdtrain.models.registry import count_multiply_adds, count_parameters
from kdtrain.runtime import flow
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.value_checks import channel_values
from kdtrain.store.card import ModelCard, model_card, read_card
from kdtrain.store.checkpoint import SavedModel, fingerprint, load_model

logger = logging.getLogger(__name__)

_PIXELS = Normalization((0.0,), (1 / 255,))  # of a network that takes pixels 0..255
_LARGEST_TABLE = 1 << 31  # bytes of all logits in a file


@dataclass(frozen=True, eq=False, repr=False)
class TeacherFile:
    """One teacher that exists.

    Attributes:
        path: its file or directory.
        arch: its architecture; of an ONNX file or a table, the file's name.
        build: returns its network, for the student's images and classes, on a device.
        digest: identifies its answers.
        saved: its checkpoint; None for an ONNX file and a table.
        is_table: whether it is a table of logits.
        parameters: number of its trainable values; 0 if unknown.
        multiply_adds: multiply-adds for one image; 0 if unknown.
    """

    path: Path
    arch: str
    build: Callable[[str], flow.nn.Module]
    digest: str
    saved: SavedModel | None = None
    is_table: bool = False
    parameters: int = 0
    multiply_adds: int = 0

    def __repr__(self) -> str:
        return f"<TeacherFile {short_name(self.arch)} ({self.path})>"


def saved_teacher(saved: SavedModel, config: FitConfig, dataset: Dataset) -> TeacherFile:
    """Returns the teacher in a checkpoint, which gets images of the form that its card names.

    Raises:
        UsageError: --teacher-classes names classes that it does not have.
        CheckpointError: its weights do not fit its architecture, or its classes do not match the data's.
    """
    card = saved.card
    form = InputForm(card.image_shape, Normalization(card.mean, card.std))
    conversion = None if form == own_form(dataset) else InputConversion(own_form(dataset), form)
    classes = match_classes(
        dataset.classes, card.classes, len(card.classes), config.teacher_classes, str(saved.path)
    )
    network = saved.build("cpu")  # raises if the weights are not those of this architecture
    if conversion is not None:
        logger.info(
            f"{saved.path} was trained on images of {size_text(card.image_shape)}, "
            f"{normalization_text(form.normalization)}: it gets the students' images in this form."
        )

    def build(device: str) -> flow.nn.Module:
        network = saved.build(device)
        if conversion is None and classes is None:
            return network
        return TeacherNetwork(network, conversion, classes).eval()

    return TeacherFile(
        saved.path,
        card.arch,
        build,
        fingerprint(saved.weights, [card.arch, repr(conversion), classes]),
        saved,
        parameters=count_parameters(network),
        multiply_adds=count_multiply_adds(network, card.image_shape),
    )


def load_saved_teacher(path: Path, config: FitConfig, dataset: Dataset) -> TeacherFile:
    """Returns the teacher in a checkpoint of kdtrain's or OneFlow's.

    Raises:
        UsageError: --teacher-classes names classes that it does not have.
        CheckpointError: the checkpoint cannot be read, or does not fit data or flags.
    """
    saved = load_model(
        path,
        fallback=model_card("teacher", config.teacher_arch or DEFAULT_TEACHER, dataset),
        arch=config.teacher_arch,
        flag="--teacher-arch",
    )
    return saved_teacher(saved, config, dataset)


def load_onnx_teacher(path: Path, config: FitConfig, dataset: Dataset) -> TeacherFile:
    """Returns the teacher in an ONNX file, after a first look at its accuracy.

    Raises:
        UsageError: --teacher-classes, --teacher-mean or --teacher-std does not fit the file.
        CheckpointError: the file cannot be used, its classes do not match, or its accuracy is near chance.
        KdtrainError: onnx is not installed.
    """
    channels, *sides = dataset.image_shape
    height, width = [config.teacher_input_size or side for side in sides]
    assumed = Assumed(channels, height, width, config.teacher_layout or "")
    classifier = OnnxClassifier(path, assumed)
    form = classifier.form
    card = read_card(form.about, path) if form.about else None
    names = None if card is None else card.classes
    classes = match_classes(dataset.classes, names, classifier.classes, config.teacher_classes, str(path))
    normalization = _normalization(config, form.shape[0], _PIXELS if form.raw else card)
    probabilities = _look_at(classifier, normalization, classes, config, dataset)
    conversion = InputConversion(own_form(dataset), InputForm(form.shape, normalization))

    def build(device: str) -> flow.nn.Module:
        network = OnnxNetwork(path, assumed, form, probabilities)
        return TeacherNetwork(network, conversion, classes).to(device).eval()

    digest = fingerprint({}, [form.digest, repr(conversion), classes, probabilities])
    return TeacherFile(
        path,
        path.name,
        build,
        digest,
        parameters=form.parameters,
        multiply_adds=form.multiply_adds,
    )


def _look_at(
    classifier: OnnxClassifier,
    normalization: Normalization,
    classes: tuple[int, ...] | None,
    config: FitConfig,
    dataset: Dataset,
) -> bool:
    """Logs what a network takes and how much it recognises; returns whether it gives probabilities.

    Raises:
        CheckpointError: its accuracy is near chance.
    """
    look, path, form = FirstLook.at(dataset, config), classifier.path, classifier.form
    outputs = look.outputs(classifier, normalization)
    probabilities = are_probabilities(outputs)
    given = "; it gives probabilities, whose logarithms are taken as logits" if probabilities else ""
    logger.info(
        f"{path} takes images of {size_text(form.shape)} ({form.layout}), {normalization_text(normalization)}"
        f"{given}."
    )
    look.check(
        path,
        outputs if classes is None else outputs[:, classes],
        lambda: look.better_normalization(classifier, classes),
        allowed=config.allow_poor_teacher,
    )
    return probabilities


def load_given_teacher(path: Path, config: FitConfig, dataset: Dataset) -> TeacherFile:
    """Returns the teacher of a table of logits, after a first look at its accuracy.

    Raises:
        UsageError: --teacher-classes does not fit the table, or the table has not the students' images.
        DataError: the file is missing or damaged, or its logits are not those of these images.
        CheckpointError: its classes do not match, or its accuracy is near chance.
    """
    tables = _read_tables(path, config, dataset)
    digest = fingerprint(tables, None)
    given = GivenLogits(path, list(tables.pop("logits")), digest, **tables)
    look = FirstLook.at(dataset, config)
    if look.split == "train" or given.validation is not None:
        look.check(
            path,
            given.of_split(look.split)[look.numbers],
            lambda: "Its rows have to be in the order of the images.",
            allowed=config.allow_poor_teacher,
        )
    return TeacherFile(path, path.name, lambda device: given, given.digest, is_table=True)


def _read_tables(path: Path, config: FitConfig, dataset: Dataset) -> dict[str, Logits]:
    """Returns the logits of the data's classes: (views, images, classes) as "logits", and of other splits.

    Nothing but headers is read of a file that is not of these images, views and classes.

    Raises:
        UsageError: --teacher-classes or the students' images do not fit the table.
        DataError: the file is missing or damaged, or its logits are not those of these images.
        CheckpointError: its classes do not match.
    """
    if dataset.transfer is not None:
        raise UsageError(
            f"--teacher-logits {path} has no answers about images without labels, which --labels and "
            "--transfer-data add: leave them out, or give the teacher's network."
        )
    chosen: Any = slice(None)

    def check(headers: Headers) -> None:
        nonlocal chosen
        views, _, number = (1, 1, 1, *headers["logits"].shape)[-3:]
        for name, header in headers.items():
            split = dataset.train if name == "logits" else dataset.split(name)
            _check_form(name, path, header, len(split), number)
        check_views(path, views, 1 if config.augment_for("student") == "none" else config.views)
        classes = match_classes(dataset.classes, None, number, config.teacher_classes, str(path))
        chosen = chosen if classes is None else list(classes)

    optional = ("test",) if dataset.validation is None else ("test", "validation")
    arrays = read_arrays(path, ("logits",), optional, _LARGEST_TABLE, check)
    tables = {name: _usable(f"{name} in {path}", array)[..., chosen] for name, array in arrays.items()}
    if tables["logits"].ndim == 2:
        tables["logits"] = tables["logits"][None]
    return tables


def _check_form(name: str, path: Path, header: Header, images: int, classes: int) -> None:
    """Raises DataError if an array is not of floats, (images, classes); "logits" may be one of each view."""
    has_views = name == "logits" and len(header.shape) == 3
    is_table = header.shape[has_views:] == (images, classes)
    if not is_table or 0 in header.shape or not np.issubdtype(header.dtype, np.floating):
        columns = "" if name == "logits" else f", of {classes} classes like `logits`"
        raise DataError(
            f"{name} in {path} is {header.dtype} of shape {clipped(header.shape)}: it must be floats, a row "
            f"for each of the {images:,} images{columns}."
        )


def _usable(source: str, array: npt.NDArray[Any]) -> Logits:
    """Returns a table, (..., images, classes), as float32 logits: of probabilities their logarithms.

    Raises:
        DataError: it holds NaN or infinity, or only some of its rows are probabilities.
    """
    table: Logits = array.astype(np.float32, copy=False)
    rows = table.reshape(-1, table.shape[-1])
    finite, probable = np.isfinite(rows).all(axis=1), probability_rows(rows)
    if probable.all():
        logger.info(f"{source} holds probabilities, whose logarithms are taken as logits.")
        return to_logits(table)
    for usable, fault in (
        (finite, "NaN or infinity"),
        (probable | (probable.mean() < 0.5), "no probabilities, as most others do"),
    ):
        if not usable.all():
            row = int(usable.argmin()) % table.shape[-2]
            raise DataError(f"{source} is not usable: row {row} holds {fault}.")
    return table


def _normalization(
    config: FitConfig, channels: int, noted: Normalization | ModelCard | None
) -> Normalization:
    """Returns the normalisation of an ONNX teacher's images: of the flags, or else as its file notes it."""
    noted = noted or Normalization((0.0,), (1.0,))
    numbers = []
    for name, own in (("teacher_mean", noted.mean), ("teacher_std", noted.std)):
        text = getattr(config, name)
        values = own if text is None else channel_values(text)
        if len(values) not in (1, channels):
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} {text} has {len(values)} numbers, and the teacher's images have {channels} channel"
                f"{'s' * (channels != 1)}."
            )
        numbers.append(values if len(values) == channels else values * channels)
    return for_channels(Normalization(*numbers), channels)
