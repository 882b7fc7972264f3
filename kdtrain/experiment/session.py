"""The session of one command: configuration, device and data, and the jobs that use them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

from kdtrain.data.dataset import Dataset
from kdtrain.errors import DataError, UsageError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.data import read_data
from kdtrain.experiment.fit import Fit, test_teacher
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.loaders import (
    count_training,
    count_validation,
    test_loader,
    training_loader,
)
from kdtrain.experiment.modes import MODES, check_plugins, conditions_of
from kdtrain.experiment.recipe import NO_RECIPE, describe_recipe, read_recipe
from kdtrain.experiment.rehearsal import configured_distillation
from kdtrain.experiment.result import FitResult, Tested, TestedModel
from kdtrain.experiment.teacher import TrainedTeacher, networks_to_train
from kdtrain.experiment.teacher_files import TeacherFile
from kdtrain.experiment.tuned import tuned_settings
from kdtrain.models.own_layers import gains_by_cores
from kdtrain.models.registry import build_model, check_architecture
from kdtrain.report.conditions import data_sentences
from kdtrain.runtime import launch, onednn, time_left
from kdtrain.runtime.files import ensure_writable
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import OneFlowRanks, Ranks

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Session:
    """Configuration, device and data that the fits of one command share, and the maker of their jobs.

    The constructor checks configuration and data before any work is done, and decides the number of epochs
    where the number of images does. Making a job has no effect
    on the disk and loads no plugin; a network is built at most once per architecture, to find its
    layers. The work happens when ``run`` starts the job.

    Args:
        config: configuration of the command.
        most_images: limit on the images read of a folder; all by default.

    Raises:
        KdtrainError: configuration, plugins, networks or data do not fit together, or a folder is not
            writable.
    """

    def __init__(self, config: FitConfig, most_images: int | None = None) -> None:
        for arch in (*map(config.architecture_for, ("teacher", "student")), *config.assistant_arch):
            check_architecture(arch)
        check_plugins(config)
        time_left.set_plan(None)  # that of an earlier command of this process
        self.tuned = tuned_settings(config)
        models = None if config.keep == "never" else config.models
        for folder in (config.logdir, models, config.image_save_dir):
            if folder is not None:
                ensure_writable(folder)
        self.device = resolve_device(config.device)
        if self.device == "cpu":
            onednn.is_usable()  # the warning, if it is not, comes once, and not from each child
        self.ranks = Ranks() if launch.rank() is None else OneFlowRanks(self.device)
        self.dataset = read_data(config, most_images)
        if len(self.dataset.test) < self.ranks.size:
            raise DataError(
                f"{len(self.dataset.test)} test images cannot be shared by {self.ranks.size} processes: "
                "each needs one at least."
            )
        self.config = config = config.with_epochs(count_training(self.dataset, config))
        if config.recipe is not None and config.recipe != NO_RECIPE:
            logger.info(describe_recipe(config.recipe, config.chosen_recipe))
            if config.mode == "compare" and (expected := read_recipe(config.recipe).expected):
                logger.info(expected)
        for sentence in data_sentences(conditions_of(config, self.dataset)):
            logger.info(sentence)
        self._cores = functools.cache(partial(_cores, dataset=self.dataset))
        archs = [config.architecture_for(network) for network in networks_to_train(config, self.dataset)]
        for arch in (*archs, *config.assistant_arch):
            self._cores(arch)
        if count_validation(self.dataset, config) == 0:
            if config.grid:
                raise UsageError(f"--grid chooses by held-out images, and {self.dataset.name} leaves none.")
            logger.info(
                "--val-size 0: the test set chooses the best epoch, so the test accuracy is optimistic."
            )

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
        results = []
        for job in jobs:
            with time_left.carrying_out(job.key):
                results.append(job.work())
        return results

    def plan(
        self, stages: Sequence[Sequence[FitSpec]], begun: Sequence[int] = (), deadline: float | None = None
    ) -> None:
        """Announces the fits to come, so that the time left can be estimated.

        A plan takes the place of the one before; what has been measured is kept.

        Args:
            stages: the fits of each stage; those of a stage run side by side. They need no teacher yet.
            begun: number of epochs that the fits of each stage have behind them when it starts; 0 by default.
            deadline: value of ``time.monotonic()`` at which the command ends in any case.
        """
        is_parallel = self.ranks.size == 1 and self.device == "cpu"
        cores = len(available_cores()) if is_parallel else 1
        planned = [
            [self._planned(spec, max(1, cores // len(stage)), epochs) for spec in stage]
            for stage, epochs in zip(stages, begun or [0] * len(stages), strict=True)
        ]
        at_most = self.config.early_stopping is not None
        plan = time_left.Plan(planned, cores, at_most=at_most, deadline=deadline, paces=time_left.paces())
        time_left.set_plan(plan)

    def _planned(self, spec: FitSpec, cores: int, begun: int) -> time_left.PlannedFit:
        config, network = spec.config(self.config), MODES[spec.mode].network
        plugins = [plugin.partition(",")[0] for plugin in config.plugin]
        arch, augment = config.architecture_for(network), config.augment_for(network)
        return time_left.PlannedFit(
            key=str(spec.directory),
            kind=" ".join((spec.mode, arch, augment, *plugins)),
            epochs=config.epochs_for(network),
            cores=min(cores, self._cores(arch)),
            begun=begun,
        )

    def cores(self, arch: str) -> int:
        """Returns the number of cores for the work on a network, training or evaluation."""
        return self._cores(arch)

    def teacher_cores(self, teacher: TrainedTeacher) -> int:
        """Returns the number of cores for the work of a teacher: all for a network of another program."""

        def cores(member: TeacherFile) -> int:
            if member.is_table:
                return 1
            card = None if member.saved is None else member.saved.card
            same = card is not None and card.image_shape == self.dataset.image_shape
            return self._cores(member.arch) if same else len(available_cores())

        return max(map(cores, teacher.members))

    def fit_and_test_job(self, spec: FitSpec) -> Job[TestedModel]:
        """Returns the job that trains a network, tests its best weights and files the results."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        work, cores = partial(fit.train_and_test, self.ranks), self._cores(fit.arch)
        return Job(f"training {spec.name}", work, cores, str(spec.directory))

    def fit_job(self, spec: FitSpec) -> Job[FitResult]:
        """Returns the job that trains a network and does not read the test set."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        work, cores = partial(fit.train, self.ranks), self._cores(fit.arch)
        return Job(f"training {spec.name}", work, cores, str(spec.directory))

    def test_fitted_job(self, spec: FitSpec, fitted: FitResult) -> Job[TestedModel]:
        """Returns the job that tests the result of ``fit_job`` and files the results."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        work = partial(fit.test, fitted, self.ranks)
        return Job(f"testing {spec.name}", work, self._cores(fit.arch))

    def test_teacher_job(self, seed: int, teacher: TrainedTeacher) -> Job[Tested]:
        """Returns the job that tests a teacher that exists already; it writes no files."""

        def work() -> Tested:
            test = test_loader(self.dataset, self.config, self.device, self.ranks)
            return test_teacher(seed, teacher, test)

        return Job("testing the teacher", work, self.teacher_cores(teacher))

    def soft_label_jobs(
        self, teachers: Mapping[int, TrainedTeacher], student_arch: str | None = None
    ) -> list[Job[None]]:
        """Returns the jobs that put teachers' outputs for the training images into the cache.

        These are the logits, and the layers that plugins compare. There are no jobs with new variants in each
        epoch. Seeds with one teacher share a job, because they share the files of the cache.

        Args:
            teachers: the teacher of each seed.
            student_arch: the students' architecture, where it is not that of the configuration.
        """
        config = dataclasses.replace(self.config, data_seed=self.config.shared_data_seed)

        def work(teacher: TrainedTeacher, seeds: Sequence[int]) -> None:
            network, arch = teacher.build(self.device), student_arch or config.student_arch
            distillation = configured_distillation(config, arch, self.dataset, network, self.device)
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


def _cores(arch: str, dataset: Dataset) -> int:
    """Returns the number of cores for the work on a network, training or evaluation.

    Raises:
        UsageError: the images are too small for the network.
        KdtrainError: the code of a user's network raises.
    """
    model = build_model(arch, dataset.image_shape, dataset.num_classes)
    return len(available_cores()) if gains_by_cores(model) else 1
