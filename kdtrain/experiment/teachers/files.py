"""The files of teachers: checkpoints, ONNX files, tables of logits; the flags for what they leave open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.images.originals import own_form
from kdtrain.data.images.resize import InputConversion, InputForm
from kdtrain.data.npz import Header, Headers, read_arrays
from kdtrain.engine.teacher_network import GivenLogits, Logits, TeacherNetwork, check_views
from kdtrain.errors import DataError, UsageError, clipped, size_text
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.schema import DEFAULT_TEACHER, flag_of
from kdtrain.experiment.teachers.check import FirstLook, for_channels, normalization_text
from kdtrain.experiment.teachers.classes import match_classes, needs_classes
from kdtrain.metrics.probabilities import are_probabilities, probability_rows, to_logits
from kdtrain.models.registry import count_multiply_adds, count_parameters
from kdtrain.runtime import flow
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.value_checks import channel_values
from kdtrain.store.card import ModelCard, model_card, read_card
from kdtrain.store.checkpoint import SavedModel, fingerprint, load_model

if TYPE_CHECKING:
    from kdtrain.deploy.onnx.network import OnnxClassifier

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
        digest: identifies its outputs.
        saved: its checkpoint; None for an ONNX file and a table.
        is_table: whether it is a table of logits.
        parameters: number of its trainable values; 0 if unknown.
        multiply_adds: multiply-adds for one image; 0 if unknown.
        normalization: mean and standard deviation of the images that it takes; None for a table.
        seen: its logits for the images of the first look, (N, classes of the data) float32; None without one.
        given: the values of the settings in ``DESCRIBING`` that are for it.
    """

    path: Path
    arch: str
    build: Callable[[str], flow.nn.Module]
    digest: str
    saved: SavedModel | None = None
    is_table: bool = False
    parameters: int = 0
    multiply_adds: int = 0
    normalization: Normalization | None = None
    seen: Logits | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<TeacherFile {short_name(self.arch)} ({self.path})>"


@dataclass(frozen=True)
class Request:
    """What a teacher is for.

    Attributes:
        config: configuration of the command.
        dataset: the images of the students.
        flags: the settings that describe teachers.
        look: the images of the first look.
    """

    config: FitConfig
    dataset: Dataset
    flags: TeacherFlags
    look: FirstLook

    def asked_classes(self, names: Sequence[str] | None, path: Path) -> str | None:
        """Returns the value of --teacher-classes that is for a teacher with these names of classes."""
        if not needs_classes(self.dataset.classes, names):
            return None
        asked: str | None = self.flags.take("teacher_classes", path)
        return asked

    def better_order(self, outputs: Logits, names: Sequence[str]) -> str | None:
        """Returns a sentence with the order of classes that helps, unless the names of classes decide it."""
        return self.look.better_order(outputs, names) if needs_classes(self.dataset.classes, names) else None


def is_of(card: ModelCard, dataset: Dataset) -> bool:
    """Returns whether a model was trained on this data set."""
    return card.data == model_card(card.mode, card.arch, dataset).data


def load_saved_teacher(path: Path, request: Request) -> TeacherFile:
    """Returns the teacher in a checkpoint of kdtrain's or OneFlow's, after a first look at its accuracy.

    It gets images of the form that its card names. It is as good as its training has made it, so it is taken
    even if its accuracy is near chance, unless another order of its classes helps.

    Raises:
        UsageError: --teacher-classes names classes that it does not have.
        CheckpointError: the checkpoint cannot be read, or does not fit data or flags.
    """
    config, dataset = request.config, request.dataset
    saved = load_model(
        path,
        fallback=model_card("teacher", config.teacher_arch or DEFAULT_TEACHER, dataset),
        arch=config.teacher_arch,
        flag="--teacher-arch",
    )
    card = saved.card
    form = InputForm(card.image_shape, Normalization(card.mean, card.std))
    conversion = None if form == own_form(dataset) else InputConversion(own_form(dataset), form)
    asked = request.asked_classes(card.classes, path)
    classes = match_classes(dataset.classes, card.classes, len(card.classes), asked, str(path))
    network = saved.build("cpu")  # raises if the weights are not those of this architecture
    if conversion is not None:
        logger.info(
            f"{path} was trained on images of {size_text(card.image_shape)}, "
            f"{normalization_text(form.normalization)}: it gets the students' images in this form."
        )

    request.look.announce_size(card.image_shape)

    def build(device: str) -> flow.nn.Module:
        network = saved.build(device)
        if conversion is None and classes is None:
            return network
        return TeacherNetwork(network, conversion, classes).eval()

    seen = _look_at_saved(path, TeacherNetwork(network, conversion).eval(), card, classes, request)
    return TeacherFile(
        path,
        card.arch,
        build,
        fingerprint(saved.weights, [card.arch, repr(conversion), classes]),
        saved,
        parameters=count_parameters(network),
        multiply_adds=count_multiply_adds(network, card.image_shape),
        normalization=form.normalization,
        seen=seen,
    )


def _look_at_saved(
    path: Path, network: TeacherNetwork, card: ModelCard, classes: tuple[int, ...] | None, request: Request
) -> Logits:
    """Logs how much a checkpoint's network recognises; returns its logits for the images of the first look.

    Raises:
        CheckpointError: its accuracy is near chance, and better with its classes in another order.
    """
    outputs = request.look.logits(network)
    seen = outputs if classes is None else outputs[:, classes]
    remedy = partial(request.better_order, outputs, card.classes)
    request.look.check(path, seen, remedy, allowed=request.config.allow_poor_teacher)
    return seen


def load_onnx_teacher(path: Path, request: Request) -> TeacherFile:
    """Returns the teacher in an ONNX file, after a first look at its accuracy.

    Raises:
        UsageError: --teacher-classes, --teacher-mean or --teacher-std does not fit the file.
        CheckpointError: the file cannot be used, its classes do not match, or its accuracy is near chance.
        KdtrainError: onnx is not installed.
    """
    # Imported here: a fit whose teacher is a checkpoint needs nothing of deploy.
    from kdtrain.deploy.onnx.network import OnnxClassifier, OnnxNetwork
    from kdtrain.deploy.onnx.reader import LAYOUT, SIZE, Assumed

    dataset, flags = request.dataset, request.flags
    assumed = Assumed(*dataset.image_shape, flags.next(LAYOUT) or "", flags.next(SIZE) or 0)
    classifier = OnnxClassifier(path, assumed)
    form = classifier.form
    taken = {name: flags.take(name, path) for name in form.left_open}
    assumed = replace(assumed, layout=taken.get(LAYOUT) or "", side=taken.get(SIZE) or 0)
    card = read_card(form.about, path) if form.about else None
    names = None if card is None else card.classes
    asked = request.asked_classes(names, path)
    classes = match_classes(dataset.classes, names, classifier.classes, asked, str(path))
    if card is None:
        normalization = _given_normalization(flags, path, form.shape[0])
    else:
        normalization = _PIXELS if form.raw else Normalization(card.mean, card.std)
    normalization = for_channels(normalization, form.shape[0])
    probabilities, seen = _look_at(classifier, normalization, classes, card, request)
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
        normalization=normalization,
        seen=seen,
    )


def _look_at(
    classifier: OnnxClassifier,
    normalization: Normalization,
    classes: tuple[int, ...] | None,
    card: ModelCard | None,
    request: Request,
) -> tuple[bool, Logits]:
    """Logs what a network takes and how much it recognises.

    Returns:
        Whether it gives probabilities, and its logits for the images of the first look, (N, classes) float32.

    Raises:
        CheckpointError: its accuracy is near chance.
    """
    look, path, form = request.look, classifier.path, classifier.form
    outputs = look.outputs(classifier, normalization)
    probabilities = are_probabilities(outputs)
    given = "; it gives probabilities, whose logarithms are taken as logits" if probabilities else ""
    logger.info(
        f"{path} takes images of {size_text(form.shape)} ({form.layout}), {normalization_text(normalization)}"
        f"{given}."
    )
    look.announce_size(form.shape)
    logits = to_logits(outputs) if probabilities else outputs
    seen = logits if classes is None else logits[:, classes]
    look.check(
        path,
        seen,
        lambda: (
            request.better_order(outputs, card.classes) or f"It was trained on {short_name(card.dataset)}."
            if card
            else look.better_input(classifier, normalization, classes)
        ),
        allowed=request.config.allow_poor_teacher,
    )
    return probabilities, seen


def load_given_teacher(path: Path, request: Request) -> TeacherFile:
    """Returns the teacher of a table of logits, after a first look at its accuracy.

    Raises:
        UsageError: --teacher-classes does not fit the table, or the table has not the students' images.
        DataError: the file is missing or damaged, or its logits are not those of these images.
        CheckpointError: its classes do not match, or its accuracy is near chance.
    """
    look = request.look
    tables, chosen = _read_tables(path, request)
    used = {name: table[..., chosen] for name, table in tables.items()}
    digest = fingerprint(used, None)
    given = GivenLogits(path, list(used.pop("logits")), digest, **used)
    seen = None
    if look.split == "train" or given.validation is not None:
        seen = given.of_split(look.split)[look.numbers]
        outputs = (tables["logits"][0] if look.split == "train" else tables[look.split])[look.numbers]
        look.check(
            path,
            seen,
            lambda: look.better_order(outputs) or "Its rows have to be in the order of the images.",
            allowed=request.config.allow_poor_teacher,
        )
    return TeacherFile(path, path.name, lambda device: given, given.digest, is_table=True, seen=seen)


def _read_tables(path: Path, request: Request) -> tuple[dict[str, Logits], Any]:
    """Returns the logits, (views, images, classes) as "logits" and of other splits, and the data's classes.

    Nothing but headers is read of a file that is not of these images, views and classes.

    Raises:
        UsageError: --teacher-classes or the students' images do not fit the table.
        DataError: the file is missing or damaged, or its logits are not those of these images.
        CheckpointError: its classes do not match.
    """
    config, dataset = request.config, request.dataset
    if dataset.transfer is not None:
        raise UsageError(
            f"--teacher-logits {path} has no logits of images without labels, which --labels and "
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
        asked = request.asked_classes(None, path)
        classes = match_classes(dataset.classes, None, number, asked, str(path))
        chosen = chosen if classes is None else list(classes)

    optional = ("test",) if dataset.validation is None else ("test", "validation")
    arrays = read_arrays(path, ("logits",), optional, _LARGEST_TABLE, check)
    tables = {name: _usable(f"{name} in {path}", array) for name, array in arrays.items()}
    if tables["logits"].ndim == 2:
        tables["logits"] = tables["logits"][None]
    return tables, chosen


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


def _given_normalization(flags: TeacherFlags, path: Path, channels: int) -> Normalization:
    """Returns the normalisation of the images of an ONNX teacher of another program, as flags have it."""
    numbers = []
    for name, default in (("teacher_mean", 0.0), ("teacher_std", 1.0)):
        text = flags.take(name, path)
        values = (default,) if text is None else channel_values(text)
        if len(values) not in (1, channels):
            raise UsageError(
                f"{flag_of(name)} {text} has {len(values)} numbers, and the images of {path} have {channels} "
                f"channel{'s' * (channels != 1)}."
            )
        numbers.append(values if len(values) == channels else values * channels)
    return Normalization(*numbers)


DESCRIBING = ("teacher_mean", "teacher_std", "teacher_input_size", "teacher_layout", "teacher_classes")
"""The settings that say what a teacher's file does not."""


class TeacherFlags:
    """The values of ``DESCRIBING``: the n-th is that of the n-th teacher which needs it, one is that of all.

    Args:
        config: the settings.
    """

    def __init__(self, config: FitConfig) -> None:
        self._values: dict[str, tuple[Any, ...]] = {name: getattr(config, name) for name in DESCRIBING}
        self._takers = dict.fromkeys(DESCRIBING, 0)
        self._taken: dict[str, Any] = {}

    def next(self, name: str) -> Any:
        """Returns the value for the next teacher that needs it; None if there is none."""
        values, number = self._values[name], self._takers[name]
        return values[0] if len(values) == 1 else values[number] if number < len(values) else None

    def take(self, name: str, path: Path) -> Any:
        """Returns the value for a teacher that needs it, which the next one does not get; None without any.

        Raises:
            UsageError: there are several values, and the teachers before this one have them.
        """
        value, values = self.next(name), self._values[name]
        if value is None and values:
            raise UsageError(
                f"{flag_of(name)} is given {len(values)} times, and {path} needs it too: give it once for "
                "all teachers that need it, or once for each of them, in their order."
            )
        self._takers[name] += 1
        if value is not None:
            self._taken[name] = value
        return value

    def taken(self) -> dict[str, Any]:
        """Returns the values that were taken since the last call."""
        taken, self._taken = self._taken, {}
        return taken

    def check_used(self) -> None:
        """Raises UsageError if a value is for no teacher."""
        for name, values in self._values.items():
            takers = self._takers[name]
            if takers < len(values):
                count = f"{len(values)} time{'s' * (len(values) > 1)}"
                teachers = f"{takers or 'no'} teacher{'s' * (takers > 1)} need{'s' * (takers < 2)}"
                raise UsageError(
                    f"{flag_of(name)} is given {count}, and {teachers} it, because kdtrain's files and "
                    f"graphs tell what they can: leave {flag_of(name)} {values[takers]} out."
                )
