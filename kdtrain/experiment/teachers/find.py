"""The teacher of a student: files that fit the data and the flags, one or several."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.teacher_network import Ensemble, GivenLogits, Logits, mean_logits, members_of
from kdtrain.errors import CheckpointError
from kdtrain.experiment.loaders import count_training, validation_images
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.check import FirstLook
from kdtrain.experiment.teachers.files import (
    DESCRIBING,
    Request,
    TeacherFile,
    TeacherFlags,
    is_of,
    load_given_teacher,
    load_onnx_teacher,
    load_saved_teacher,
)
from kdtrain.runtime import flow
from kdtrain.runtime.locations import absolute_name, short_name
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.checkpoint import SavedModel, fingerprint, load_card
from kdtrain.store.kept_models import kept_models
from kdtrain.store.record import TeacherInput

_FRAMEWORKS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt"), "PyTorch"),
    **dict.fromkeys((".keras", ".h5"), "Keras"),
    **dict.fromkeys((".pb", ".tflite"), "TensorFlow"),
}
"""The frameworks whose own files have these suffixes."""


@dataclass(frozen=True)
class TeacherFigures:
    """A teacher's figures on the held-out images of the run that it teaches in.

    Attributes:
        images: number of held-out images.
        accuracy: 0..1.
        calibration_error: the expected calibration error, 0..1.
        may_have_seen: the teacher may have been trained on these images, because its own held-out
            images were others or are unknown.
        members: the accuracy of each member, 0..1.
    """

    images: int
    accuracy: float
    calibration_error: float
    may_have_seen: bool
    members: tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class TrainedTeacher:
    """What teaches a student: a trained network, or several whose probabilities are averaged.

    Attributes:
        members: the files.
        weights: the weight of each.
        figures: figures on held-out images; None until they are measured.
    """

    members: tuple[TeacherFile, ...]
    weights: tuple[float, ...]
    figures: TeacherFigures | None = None

    def __repr__(self) -> str:
        return f"<TrainedTeacher {self.arch} ({', '.join(map(str, self.paths))})>"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The members' files."""
        return tuple(member.path for member in self.members)

    @property
    def arch(self) -> str:
        """The members' architectures as a text, such as ``2 x teacher_cnn + resnet20``."""
        counts = Counter(short_name(member.arch) for member in self.members)
        return " + ".join(arch if count == 1 else f"{count} x {arch}" for arch, count in counts.items())

    def build(self, device: str = "cpu") -> flow.nn.Module:
        """Returns the network, or an ``Ensemble``, in evaluation mode."""
        networks = [member.build(device) for member in self.members]
        return networks[0] if len(networks) == 1 else Ensemble(networks, self.weights).eval()

    def check_test(self) -> None:
        """Raises UsageError if a member is a table of logits without those of the test images."""
        for member in self.members:
            if member.is_table:
                member.build("cpu").of_split("test")

    def named_in(self, config: FitConfig) -> FitConfig:
        """Returns a configuration that names this teacher."""
        files = [member for member in self.members if not member.is_table]
        only = files[0].saved if len(files) == 1 else None
        changed: dict[str, Any] = {}
        for name in DESCRIBING:
            given = tuple(member.given[name] for member in self.members if name in member.given)
            changed[name] = getattr(config, name) if set(given) == set(getattr(config, name)) else given
        return dataclasses.replace(
            config,
            teacher_checkpoint=tuple(member.path for member in files),
            teacher_arch=config.teacher_arch if only is None else only.card.arch,
            teacher_logits=config.teacher_logits if len(files) < len(self.members) else None,
            teacher_weight=config.teacher_weight if len(config.teacher_weight) == len(self.members) else (),
            teachers=1,
            teacher_per_seed=False,
            **changed,
        )

    @property
    def inputs(self) -> tuple[TeacherInput, ...]:
        """Name, held-out accuracy and normalisation of each member, for ``result.json``."""
        accuracies = self.figures.members if self.figures else tuple(map(_own_accuracy, self.members))
        normalizations = [file.normalization or Normalization((), ()) for file in self.members]
        return tuple(
            TeacherInput(
                name=file.path.name,
                held_out_accuracy=accuracy,
                mean=normalization.mean,
                std=normalization.std,
            )
            for file, accuracy, normalization in zip(self.members, accuracies, normalizations, strict=True)
        )

    def without_table(self) -> TrainedTeacher:
        """Returns the members that are networks."""
        pairs = [pair for pair in zip(self.members, self.weights, strict=True) if not pair[0].is_table]
        return TrainedTeacher(tuple(file for file, _ in pairs), tuple(weight for _, weight in pairs))


def _own_accuracy(file: TeacherFile) -> float | None:
    """Returns the accuracy that a teacher's own training has measured; None if it is unknown."""
    accuracy = math.nan if file.saved is None else file.saved.card.accuracy
    return None if math.isnan(accuracy) else accuracy


def trained_here(*saved: SavedModel) -> TrainedTeacher:
    """Returns the teacher made of networks that this command has trained, on the data of its students."""
    files = [
        TeacherFile(
            model.path,
            model.card.arch,
            model.build,
            fingerprint(model.weights, model.card.arch),
            model,
            normalization=Normalization(model.card.mean, model.card.std),
        )
        for model in saved
    ]
    return TrainedTeacher(tuple(files), (1.0,) * len(files))


def find_teacher(config: FitConfig, dataset: Dataset, ranks: Ranks | None = None) -> TrainedTeacher | None:
    """Returns the teacher that the settings name, else one of these data that is kept, else None.

    Args:
        config: configuration of the command.
        dataset: the images of the student.
        ranks: the processes that train together; all must find the same teacher.

    Raises:
        UsageError: a flag does not fit a teacher.
        CheckpointError: a file cannot be read, or does not fit data or flags, or its accuracy is near chance.
        DataError: a table of logits cannot be used.
        KdtrainError: the ranks find different teachers.
    """
    paths = config.teacher_checkpoint
    if not config.has_teacher_files:
        kept = _kept_teacher(config, dataset)
        paths = () if kept is None else (kept,)
    flags = TeacherFlags(config)
    look = FirstLook.at(dataset, *validation_images(dataset, config, config.seed), config.device)
    request = Request(config, dataset, flags, look)
    loads = [(path, _loader_of(path)) for path in paths]
    if config.teacher_logits is not None:
        loads.append((config.teacher_logits, load_given_teacher))
    files = [dataclasses.replace(load(path, request), given=flags.taken()) for path, load in loads]
    flags.check_used()
    if ranks is not None:
        ranks.check_same("the teachers", "".join(file.digest for file in files).encode())
    if not files:
        return None
    teacher = TrainedTeacher(tuple(files), config.teacher_weight or (1.0,) * len(files))
    _check_mean(teacher, request)
    return teacher


def _check_mean(teacher: TrainedTeacher, request: Request) -> None:
    """Logs what the mean of several teachers recognises.

    Raises:
        CheckpointError: it is far less than the best of them.
    """
    seen = [(member.path, member.seen) for member in teacher.members if member.seen is not None]
    if 1 < len(seen) == len(teacher.members):
        shares = [weight / sum(teacher.weights) for weight in teacher.weights]
        mean = mean_logits([logits for _, logits in seen], shares)
        request.look.check_mean(seen, mean, allowed=request.config.allow_poor_teacher)


def member_logits(
    network: flow.nn.Module, images: Loader, split: str, numbers: npt.NDArray[np.int64], description: str
) -> list[Logits]:
    """Returns the logits of each member of a teacher, (N, classes) float32 each.

    Args:
        network: what ``TrainedTeacher.build`` returns.
        images: N images, not those of training.
        split: the split that they are from, in which a table of logits has them.
        numbers: (N,) int64, their positions in the split.
        description: text of a progress bar.

    Raises:
        UsageError: a table does not hold logits of this split.
    """
    return [
        member.of_split(split)[numbers]
        if isinstance(member, GivenLogits)
        else predict_logits(member, images, description=description)
        for member in members_of(network)
    ]


def combined(network: flow.nn.Module, logits: Sequence[Logits]) -> Logits:
    """Returns the logits of the only member, or the logarithms of the members' mean probabilities."""
    return mean_logits(logits, network.shares) if isinstance(network, Ensemble) else logits[0]


def describe_teacher(
    teacher: TrainedTeacher, config: FitConfig, dataset: Dataset, *, in_run: bool = True
) -> str:
    """Returns sentences that name each teacher, and how its training differs from one in this run.

    Args:
        teacher: the teacher.
        config: configuration of the command.
        dataset: the images of the student.
        in_run: whether there is a run, which would train a teacher if there were none.
    """
    if len(teacher.members) == 1:
        return _describe(teacher.members[0], config, dataset, in_run)
    weights = (
        "" if len(set(teacher.weights)) == 1 else ", weights " + ", ".join(f"{w:g}" for w in teacher.weights)
    )
    sentences = [_describe(member, config, dataset, in_run) for member in teacher.members]
    number = len(teacher.members)
    return " ".join([f"{number} teachers; the mean of their probabilities teaches{weights}.", *sentences])


def _describe(member: TeacherFile, config: FitConfig, dataset: Dataset, in_run: bool) -> str:
    """Returns a sentence that names a teacher, and how its training differs from one in this run.

    Differences are other data, fewer epochs and fewer images. The training is not recorded in a checkpoint
    without metrics, which comes from elsewhere, an ONNX file and a table.
    """
    number = len(config.teacher_checkpoint) + (config.teacher_logits is not None)
    sentence = f"{'The' if number < 2 else 'A'} teacher is {member.path}"
    if member.saved is None:
        return f"{sentence}."
    card = member.saved.card
    epochs, images = config.epochs_for("teacher"), count_training(dataset, config)
    other_data = not is_of(card, dataset)
    if not other_data and (not card.metrics or (card.epochs >= epochs and card.images >= images)):
        return f"{sentence}."
    same_name = absolute_name(card.dataset) == absolute_name(dataset.name)
    other_images = " (other images)" if other_data and same_name else ""
    here = f" This run would train one on {dataset.name}, {_training(epochs, images)}." * in_run
    return (
        f"{sentence}: trained on {card.dataset}{other_images}, {_training(card.epochs, card.images)}, "
        f"held-out accuracy {card.accuracy_text}.{here}"
    )


def networks_to_train(config: FitConfig, dataset: Dataset) -> list[str]:
    """Returns the networks that a command trains: ``teacher``, unless one exists already, and ``student``."""
    if config.mode in ("teacher", "student"):
        return [config.mode]
    exists = config.has_teacher_files
    if config.mode == "student_kd":
        exists = exists or _kept_teacher(config, dataset) is not None
    return ["student"] if exists else ["teacher", "student"]


def _kept_teacher(config: FitConfig, dataset: Dataset) -> Path | None:
    """Returns the first kept teacher of these data, and of --teacher-arch if that is given."""
    for path in kept_models(config.models, "teacher"):
        card = load_card(path)
        if is_of(card, dataset) and config.teacher_arch in (None, card.arch):
            return path
    return None


def _training(epochs: int, images: int) -> str:
    if not epochs:
        return "epochs and images not recorded"
    return f"{epochs:,} epoch{'s' * (epochs != 1)}, {images:,} image{'s' * (images != 1)}"


def _loader_of(path: Path) -> Callable[[Path, Request], TeacherFile]:
    """Returns the function that loads a teacher's file, whose name tells its kind.

    Raises:
        CheckpointError: the file is another framework's own.
    """
    framework = _FRAMEWORKS.get(path.suffix.lower())
    if framework is not None and path.is_file():
        raise CheckpointError(
            f"{path} is a file of {framework}: export the network there as ONNX, and give the .onnx file "
            "(docs/teachers.md shows how)."
        )
    return load_onnx_teacher if path.suffix.lower() == ".onnx" else load_saved_teacher
