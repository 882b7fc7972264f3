"""One fit: its specification, and its job: training, the test of the best weights, the run's files."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from kdtrain.cluster.ranks import OneFlowRanks, SharedFit
from kdtrain.data.dataset import Dataset
from kdtrain.data.draws import derive_seed
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.resume import load_state
from kdtrain.engine.teacher_network import mean_logits
from kdtrain.engine.trainer import Trainer, backward
from kdtrain.errors import DataError
from kdtrain.experiment.loaders import count_validation, test_loader, training_loader, validation_loader
from kdtrain.experiment.modes import MODES, architecture, callbacks_for, optimizer
from kdtrain.experiment.result import (
    FitResult,
    TestedModel,
    far_apart_sentence,
    file_results,
    model_result,
)
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import absolute_paths
from kdtrain.experiment.teachers.find import TrainedTeacher, member_logits
from kdtrain.experiment.warm_start import first_weights
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.models.registry import build_model, count_multiply_adds, count_parameters
from kdtrain.runtime import flow
from kdtrain.runtime.files import make_folder, temporary_folder, write_bytes, write_text
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import SavedModel, load_model, load_weights
from kdtrain.store.metrics_file import read_metrics
from kdtrain.store.record import BEST_WEIGHTS, Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSpec:
    """One fit.

    Attributes:
        mode: teacher, student or student_kd.
        seed: seed of initial weights, held-out images, order and dropout.
        directory: the run directory. A run that has begun there is resumed.
        teacher: teacher of a student_kd, which exists already.
        label: name in progress lines and errors; the mode by default.
        settings: settings that differ from the command's configuration.
        restarts: numbers of epochs after which the schedule of the learning rate begins anew.
    """

    mode: Model
    seed: int
    directory: Path
    teacher: TrainedTeacher | None = None
    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    restarts: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the fit in progress lines and errors."""
        return self.label or self.mode

    def config(self, command: FitConfig) -> FitConfig:
        """Returns the configuration with which ``kdtrain fit`` repeats this fit alone.

        Args:
            command: configuration of the command that the fit is a part of.
        """
        single: dict[str, Any] = {
            "seeds": 1,
            "data_seed": command.shared_data_seed,
            "teacher_per_seed": False,
            "teachers": 1,
            "with_label_smoothing": False,
            "with_hard_labels": False,
            "name": command.name if self.directory.name == command.name else None,
            "tuned": None,
            "omit_class": () if self.mode == "teacher" else command.omit_class,
            **self._transfer(command),
            "student_checkpoint": None if self.mode == "teacher" else command.student_checkpoint,
        }
        if self.teacher is None:
            single |= {"teacher_checkpoint": (), "teacher_weight": (), "teacher_logits": None}
        else:
            command = self.teacher.named_in(command)
        of_fit = {"mode": self.mode, "seed": self.seed, **self.settings}
        return dataclasses.replace(command, **single, **of_fit)

    def _transfer(self, command: FitConfig) -> dict[str, Any]:
        """Returns the settings of images without labels: none of a fit that has no teacher."""
        if self.mode == "student_kd":
            return {"transfer_data": command.transfer_data, "transfer_share": command.transfer_share}
        return {"transfer_data": None, "transfer_share": FitConfig.transfer_share}


@dataclass(frozen=True)
class Fit:
    """A fit with its data; the methods run in the process of a job.

    Attributes:
        spec: specification of the fit.
        config: configuration of this fit alone.
        dataset: the images.
        device: device of the network and the batches.
    """

    spec: FitSpec
    config: FitConfig
    dataset: Dataset
    device: str

    @property
    def arch(self) -> str:
        """Architecture of the network."""
        return architecture(self.spec.mode, self.config)

    def train(self, ranks: Ranks) -> FitResult:
        """Trains the network, or resumes its training, and returns its best weights.

        Rank 0 writes config.toml first: a run can be resumed from its first moment on. The seed and the
        kind of network decide the initial weights, so a student starts from the same weights with and
        without a teacher. With --student-checkpoint the weights are those of its file, which a resumed run
        does not need.

        Raises:
            DataError: the run was begun with other training images.
        """
        config, network = self.config, MODES[self.spec.mode].network
        with _run_directory(self.spec.directory, config, ranks) as directory:
            last = self.spec.directory / "checkpoints" / "last.safetensors"
            state = load_state(last) if last.exists() else None
            ranks.check_same("the checkpoints to go on from", last.read_bytes() if last.exists() else b"")
            train = training_loader(self.dataset, config, network, config.seed, self.device, ranks)
            validation = validation_loader(self.dataset, config, config.seed, self.device, ranks)
            ranks.check_same("the training images", train.fingerprint.encode())
            if state is not None and state.data != train.fingerprint:
                raise DataError(
                    f"the training images are not those that the run in {self.spec.directory} was begun with."
                )
            epochs = config.epochs_for(network)
            first = None
            if state is None and network == "student":
                first = first_weights(config, self.dataset, ranks)
            trainer = self._trainer(first, ranks)
            end = trainer.fit(train, validation, epochs=epochs, directory=directory, resume=state)
            if state is not None and end.epoch == state.end.epoch:
                logger.info(
                    f"{self.spec.name} is finished, after epoch {end.epoch}: it is only tested again, and "
                    "its files keep their figures."
                )
            best = load_model(directory / "checkpoints" / "best.safetensors", arch=self.arch)
            return FitResult(best, tuple(read_metrics(directory)))

    def test(self, fitted: FitResult, ranks: Ranks) -> TestedModel:
        """Tests the best weights on the test set, and files the results on rank 0."""
        spec, saved, dataset = self.spec, fitted.saved, self.dataset
        tested = test_model(
            spec.mode, spec.seed, saved, test_loader(dataset, self.config, self.device, ranks)
        )
        held_out = (saved.card.accuracy, count_validation(dataset, self.config))
        warning = far_apart_sentence(spec.mode, held_out, (tested.test.accuracy, tested.test.images))
        places = {"directory": ".", "checkpoint": BEST_WEIGHTS}
        model = dataclasses.replace(
            tested,
            result=replace(tested.result, **fitted.values(), **places),
            trained=fitted,
            directory=spec.directory,
            warnings=() if warning is None else (warning,),
        )
        if ranks.rank == 0:
            file_results(model, self.config, dataset, () if spec.teacher is None else spec.teacher.inputs)
        return model

    def train_and_test(self, ranks: Ranks) -> TestedModel:
        """Trains the network and tests its best weights."""
        return self.test(self.train(ranks), ranks)

    def _trainer(self, first: SavedModel | None, ranks: Ranks) -> Trainer:
        """Returns the trainer of the network, with the weights of ``first`` or newly drawn ones."""
        spec, config = self.spec, self.config
        flow.manual_seed(derive_seed(config.seed, "weights", MODES[spec.mode].network))
        model = build_model(self.arch, self.dataset.image_shape, self.dataset.num_classes)
        if first is not None:
            load_weights(model, first.weights, str(first.path))
        model = model.to(self.device)
        teacher = spec.teacher.build(self.device) if spec.teacher else None
        card = model_card(spec.mode, self.arch, self.dataset)
        callbacks = callbacks_for(config, card, spec.name, teacher, spec.restarts)
        shared = [SharedFit(ranks)] if isinstance(ranks, OneFlowRanks) else []
        return Trainer(
            model,
            optimizer(config),
            [*callbacks, *shared],
            seed=config.seed,
            clip_grad_norm=config.clip_grad_norm,
            backward=shared[0].backward if shared else backward,
        )


def test_model(mode: Model, seed: int, saved: SavedModel, test: Loader) -> TestedModel:
    """Returns a model with its figures on the test set.

    Args:
        mode: mode that trained it.
        seed: seed that it was trained with.
        saved: its weights.
        test: the test images, on the device to compute on.
    """
    model = saved.build(test.device)
    logits = predict_logits(model, test, description=f"{mode} on the test set")
    evaluation = Evaluation.from_logits(logits, test.targets)
    values = {
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(saved.build("cpu"), saved.card.image_shape),
    }
    result = model_result(mode, seed, saved.card.arch, evaluation, **values)
    return TestedModel(result=result, test=evaluation, logits=logits, trained=FitResult(saved))


def test_teacher(seed: int, teacher: TrainedTeacher, test: Loader) -> TestedModel:
    """Returns a teacher that existed already with its figures on the test set, and those of its members.

    Args:
        seed: the seed of the results.
        teacher: the teacher.
        test: the test images, on the device to compute on.

    Raises:
        UsageError: a member is a table of logits without those of the test images.
    """
    network = teacher.build(test.device)
    numbers = np.arange(len(test.targets))
    of_members = member_logits(network, test, "test", numbers, "teacher on the test set")
    members = []
    for file, logits in zip(teacher.members, of_members, strict=True):
        evaluation = Evaluation.from_logits(logits, test.targets)
        sizes = {"parameters": file.parameters, "multiply_adds": file.multiply_adds}
        result = model_result("teacher", seed, file.arch, evaluation, **sizes)
        members.append(TestedModel(result=result, test=evaluation, logits=logits))
    return members[0] if len(members) == 1 else together(members, teacher, test.targets)


def together(
    members: Sequence[TestedModel], teacher: TrainedTeacher, targets: npt.NDArray[np.int64]
) -> TestedModel:
    """Returns several teachers as one, whose probabilities are the mean of theirs.

    Args:
        members: the figures of each.
        teacher: the teachers.
        targets: (test images,) int64 labels.
    """
    shares = [weight / sum(teacher.weights) for weight in teacher.weights]
    logits = mean_logits([member.logits for member in members], shares)
    evaluation = Evaluation.from_logits(logits, targets)
    results = [member.result for member in members]
    trained = [member.directory for member in members]
    names = [
        path.name if run is None else f"{run.parent.name}/{run.name}"
        for path, run in zip(teacher.paths, trained, strict=True)
    ]
    result = model_result(
        "teacher",
        results[0].seed,
        teacher.arch,
        evaluation,
        parameters=sum(result.parameters for result in results),
        multiply_adds=sum(result.multiply_adds for result in results),
        seconds=sum(result.seconds for result in results),
        members=tuple(
            replace(result, name=name, share=share, history=(), directory=None, checkpoint=None)
            for result, name, share in zip(results, names, shares, strict=True)
        ),
    )
    return TestedModel(result=result, test=evaluation, logits=logits)


@contextlib.contextmanager
def _run_directory(directory: Path, config: FitConfig, ranks: Ranks) -> Iterator[Path]:
    """Yields the folder that a rank's callbacks write to: a temporary one for all ranks but 0."""
    if ranks.rank == 0:
        make_folder(directory)
        write_text(directory / "config.toml", absolute_paths(config).to_toml())
        yield directory
        return
    with temporary_folder(Path(tempfile.gettempdir())) as copies:
        best = Path("checkpoints") / "best.safetensors"  # the best of a resumed run, unless an epoch beats it
        if (directory / best).exists():
            make_folder((copies / best).parent)
            write_bytes(copies / best, (directory / best).read_bytes())
        yield copies
