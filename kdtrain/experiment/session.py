"""The session of one command: configuration, device and data, and the jobs that use them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from kdtrain.callbacks import DistillationCallback
from kdtrain.cluster.ranks import OneFlowRanks
from kdtrain.data.dataset import Dataset
from kdtrain.engine.callback import CallbackList
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Recorder
from kdtrain.errors import DataError
from kdtrain.experiment.fit import Fit, FitSpec, test_teacher
from kdtrain.experiment.loaders import (
    count_training,
    count_validation,
    read_data,
    test_loader,
    training_loader,
    validation_images,
    validation_loader,
)
from kdtrain.experiment.modes import callbacks_for, check_plugins
from kdtrain.experiment.result import FitResult, TestedModel, conditions_of
from kdtrain.experiment.settings.config import FitConfig, describe_recipe, read_recipe
from kdtrain.experiment.settings.load import tuned_settings
from kdtrain.experiment.settings.schema import NO_RECIPE
from kdtrain.experiment.teachers.files import TeacherFile
from kdtrain.experiment.teachers.find import (
    TeacherFigures,
    TrainedTeacher,
    combined,
    member_logits,
    networks_to_train,
)
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.models.registry import build_model, check_architecture
from kdtrain.nn import onednn
from kdtrain.nn.own_layers import gains_by_cores
from kdtrain.runtime import flow
from kdtrain.runtime.files import ensure_writable
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import Ranks, rank
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import fingerprint

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Configuration, data and device that the fits of one command share, and the maker of their jobs.

    Making a job has no effect on the disk and loads no plugin; a network is built at most once per
    architecture, to find its layers. The work happens when ``run`` starts the job.

    Attributes:
        config: configuration of the command, with the number of epochs.
        dataset: the images.
        device: device of networks and batches.
        ranks: the processes that train together.
    """

    config: FitConfig
    dataset: Dataset
    device: str
    ranks: Ranks
    _cores: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, config: FitConfig, most_images: int | None = None) -> Session:
        """Returns the session of a command, after all checks of its configuration and its data.

        Args:
            config: configuration of the command.
            most_images: limit on the images read of a folder; all by default.

        Raises:
            KdtrainError: configuration, plugins, networks or data do not fit together, or a folder is not
                writable.
        """
        device = _check(config)
        ranks = Ranks() if rank() is None else OneFlowRanks(device)
        dataset = read_data(config, most_images)
        if len(dataset.test) < ranks.size:
            raise DataError(
                f"{len(dataset.test)} test images cannot be shared by {ranks.size} processes: each needs one "
                "at least."
            )
        config = config.with_epochs(count_training(dataset, config))
        session = cls(config, dataset, device, ranks)
        _announce(config, dataset)
        for network in networks_to_train(config, dataset):
            session.cores(config.architecture_for(network))
        if count_validation(dataset, config) == 0:
            logger.info(
                "--val-size 0: the test set chooses the best epoch, so the test accuracy is optimistic."
            )
        return session

    def with_config(self, config: FitConfig) -> Session:
        """Returns the session of another configuration for the same data."""
        return dataclasses.replace(self, config=config)

    def run(self, jobs: Sequence[Job[T]], peers: int = 0) -> list[T]:
        """Runs jobs and returns their results in order.

        On a CPU they run in child processes, side by side while there are cores for them. Several jobs
        divide the cores: two networks with one thread each are done sooner than one after the other with
        two. On a GPU, and with --nproc-per-node, they run in this process, one after another.

        Args:
            jobs: the jobs.
            peers: number of jobs that divide the cores, where it is larger than that of ``jobs`` because some
                are done already. The number of threads changes the last bits of weights, so a command that
                was resumed has to give it.
        """
        if self.ranks.size == 1 and self.device == "cpu":
            share = max(1, len(available_cores()) // max(peers, len(jobs), 1))
            divided = [dataclasses.replace(job, cores=min(job.cores, share)) for job in jobs]
            return run_jobs(divided, self.config.stall_timeout)
        return [job.work() for job in jobs]

    def cores(self, arch: str) -> int:
        """Returns the number of cores for the work on a network, training or evaluation.

        Raises:
            UsageError: the images are too small for the network.
            KdtrainError: the code of a user's network raises.
        """
        if arch not in self._cores:
            model = build_model(arch, self.dataset.image_shape, self.dataset.num_classes)
            self._cores[arch] = len(available_cores()) if gains_by_cores(model) else 1
        return self._cores[arch]

    def teacher_cores(self, teacher: TrainedTeacher) -> int:
        """Returns the number of cores for the work of a teacher: all for a network of another program."""

        def cores(member: TeacherFile) -> int:
            if member.is_table:
                return 1
            card = None if member.saved is None else member.saved.card
            same = card is not None and card.image_shape == self.dataset.image_shape
            return self.cores(member.arch) if same else len(available_cores())

        return max(map(cores, teacher.members))

    def fit_and_test_job(self, spec: FitSpec) -> Job[TestedModel]:
        """Returns the job that trains a network, tests its best weights and files the results."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        work, cores = partial(fit.train_and_test, self.ranks), self.cores(fit.arch)
        return Job(f"training {spec.name}", work, cores)

    def fit_job(self, spec: FitSpec) -> Job[FitResult]:
        """Returns the job that trains a network and does not read the test set."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        work, cores = partial(fit.train, self.ranks), self.cores(fit.arch)
        return Job(f"training {spec.name}", work, cores)

    def test_fitted_job(self, spec: FitSpec, fitted: FitResult) -> Job[TestedModel]:
        """Returns the job that tests the result of ``fit_job`` and files the results."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        work = partial(fit.test, fitted, self.ranks)
        return Job(f"testing {spec.name}", work, self.cores(fit.arch))

    def test_teacher_job(self, seed: int, teacher: TrainedTeacher) -> Job[TestedModel]:
        """Returns the job that tests a teacher that exists already; it writes no files."""

        def work() -> TestedModel:
            test = test_loader(self.dataset, self.config, self.device, self.ranks)
            return test_teacher(seed, teacher, test)

        return Job("testing the teacher", work, self.teacher_cores(teacher))

    def soft_label_jobs(self, teachers: Mapping[int, TrainedTeacher]) -> list[Job[None]]:
        """Returns the jobs that put teachers' outputs for the training images into the cache.

        These are the logits, and the layers that plugins compare. There are no jobs with new variants in each
        epoch. Seeds with one teacher share a job, because they share the files of the cache.

        Args:
            teachers: the teacher of each seed.
        """
        config = dataclasses.replace(self.config, data_seed=self.config.shared_data_seed)

        def work(teacher: TrainedTeacher, seeds: Sequence[int]) -> None:
            network = teacher.build(self.device)
            distillation = _configured_distillation(config, self.dataset, network, self.device)
            for seed in seeds:
                train = training_loader(self.dataset, config, "student", seed, self.device, self.ranks)
                distillation.compute_outputs(train, config.epochs_for("student"))

        if config.augment_for("student") != "none" and config.views == 0:
            return []
        seeds: dict[int, list[int]] = {}
        for seed, teacher in teachers.items():
            seeds.setdefault(id(teacher), []).append(seed)
        return [
            Job(
                "the teacher's soft labels",
                partial(work, teachers[first], (first, *others)),
                self.teacher_cores(teachers[first]),
            )
            for first, *others in seeds.values()
        ]


def _check(config: FitConfig) -> str:
    """Checks networks, plugins and folders of a configuration; returns the device.

    Raises:
        KdtrainError: something does not fit, or a folder is not writable.
    """
    for arch in map(config.architecture_for, ("teacher", "student")):
        check_architecture(arch)
    check_plugins(config)
    tuned_settings(config)
    models = None if config.keep == "never" else config.models
    for folder in (config.logdir, models, config.image_save_dir):
        if folder is not None:
            ensure_writable(folder)
    device = resolve_device(config.device)
    if device == "cpu":
        onednn.is_usable()  # the warning, if it is not, comes once, and not from each child
    return device


def _announce(config: FitConfig, dataset: Dataset) -> None:
    """Logs the recipe, uneven classes, and which images have labels."""
    if config.recipe is not None and config.recipe != NO_RECIPE:
        logger.info(describe_recipe(config.recipe, config.chosen_recipe))
        if config.mode == "compare" and (expected := read_recipe(config.recipe).expected):
            logger.info(expected)
    conditions = conditions_of(config, dataset)
    for sentence in [*filter(None, [conditions.uneven]), *conditions.data_sentences]:
        logger.info(sentence)


def _configured_distillation(
    config: FitConfig, dataset: Dataset, teacher: flow.nn.Module, device: str
) -> DistillationCallback:
    """Returns the distillation of a student's fit; its teacher records the layers that plugins compare.

    Args:
        config: configuration of the command.
        dataset: the images that the networks are for.
        teacher: the teacher.
        device: the device of teacher and student.
    """
    arch = config.student_arch
    network = build_model(arch, dataset.image_shape, dataset.num_classes).to(device)
    callbacks = callbacks_for(config, model_card("student_kd", arch, dataset), "student_kd", teacher)
    student = Recorder(network, "student", flow.zeros(1, *dataset.image_shape).to(device))
    CallbackList(callbacks).configure(Objective.task().with_student(student))
    [distillation] = (callback for callback in callbacks if isinstance(callback, DistillationCallback))
    return distillation


def measured(session: Session, teacher: TrainedTeacher) -> TrainedTeacher:
    """Returns a teacher with its figures on the held-out images of this run, and logs them.

    The test set is not read. There are no figures without held-out images, and on ranks other than 0.

    Args:
        session: configuration, data and jobs.
        teacher: the teacher, trained; the first seed's in a comparison.
    """
    if count_validation(session.dataset, session.config) == 0:
        return teacher
    work = partial(_evaluate, session, teacher)
    [figures] = session.run([Job("the teacher on held-out images", work, session.teacher_cores(teacher))])
    if session.ranks.rank != 0:
        return teacher
    logger.info(
        f"Teacher: {100 * figures.accuracy:.2f} % of {figures.images:,} held-out "
        f"image{'s' * (figures.images != 1)}, calibration error {100 * figures.calibration_error:.1f} %."
    )
    if figures.may_have_seen:
        logger.info("It may have been trained on some of these images, so its accuracy may be too high.")
    return dataclasses.replace(teacher, figures=figures)


def _evaluate(session: Session, teacher: TrainedTeacher) -> TeacherFigures:
    config = session.config
    images = validation_loader(session.dataset, config, config.seed, session.device, session.ranks)
    split, numbers = validation_images(session.dataset, config, config.seed)
    network = teacher.build(session.device)
    of_members = member_logits(network, images, split, numbers, "teacher on held-out images")
    evaluation = Evaluation.from_logits(combined(network, of_members), images.targets)
    held_out = fingerprint({"labels": images.targets}, images.fingerprint)  # as in a card
    return TeacherFigures(
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        calibration_error=evaluation.calibration_error,
        may_have_seen=any(
            member.saved is None or member.saved.card.held_out != held_out for member in teacher.members
        ),
        members=tuple(float((logits.argmax(axis=1) == images.targets).mean()) for logits in of_members),
    )
