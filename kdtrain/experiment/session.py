"""The session of one command: configuration, device and data, and the jobs that use them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

from kdtrain.callbacks.teacher_logits import logits_over
from kdtrain.data.datasets import load_dataset
from kdtrain.errors import DataError, UsageError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.fit import Fit, test_model
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.loaders import check_sizes, count_validation, test_loader, training_loader
from kdtrain.experiment.modes import check_plugins, logit_cache
from kdtrain.experiment.result import FitResult, TestedModel
from kdtrain.experiment.teacher import networks_to_train
from kdtrain.models.networks import ImageShape
from kdtrain.models.registry import build_model, check_architecture
from kdtrain.runtime import flow, launch
from kdtrain.runtime.files import ensure_writable
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import OneFlowRanks, Ranks
from kdtrain.store.checkpoint import SavedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_CORES = 4  # more were not tried: the all-reduce of the gradients takes longer with each
_FEWEST_IMAGES = 16  # per process and batch


class Session:
    """Configuration, device and data that the fits of one command share, and the maker of their jobs.

    The constructor checks configuration and data before any work is done. Making a job has no effect
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
        self.config = config
        for arch in (*map(config.architecture_for, ("teacher", "student")), *config.assistant_arch):
            check_architecture(arch)
        self.plugins = check_plugins(config)
        models = None if config.keep == "never" else config.models
        for folder in (config.logdir, models, config.image_save_dir):
            if folder is not None:
                ensure_writable(folder)
        self.device = resolve_device(config.device)
        self.ranks = Ranks() if launch.rank() is None else OneFlowRanks(self.device)
        self.dataset = load_dataset(
            config.dataset,
            config.data_dir,
            image_size=config.image_size,
            skip_corrupt=config.skip_corrupt,
            most_images=most_images,
        )
        check_sizes(self.dataset, config)
        if len(self.dataset.test) < self.ranks.size:
            raise DataError(
                f"{len(self.dataset.test)} test images cannot be shared by {self.ranks.size} processes: "
                "each needs one at least."
            )
        self._layers = functools.cache(
            partial(_layers, image_shape=self.dataset.image_shape, num_classes=self.dataset.num_classes)
        )
        archs = [config.architecture_for(network) for network in networks_to_train(config, self.dataset)]
        for arch in (*archs, *config.assistant_arch):
            self._layers(arch)
        if count_validation(self.dataset, config) == 0:
            if config.grid:
                raise UsageError(f"--grid chooses by held-out images, and {self.dataset.name} leaves none.")
            logger.info(
                "--val-size 0: the test set chooses the best epoch, so the test accuracy is optimistic."
            )

    def run(self, jobs: Sequence[Job[T]]) -> list[T]:
        """Runs jobs and returns their results in order.

        On a CPU they run side by side on its cores. On a GPU, and with --nproc-per-node, they run in
        this process, one after another.
        """
        if self.ranks.size == 1 and self.device == "cpu":
            return run_jobs(jobs, self.config.stall_timeout)
        return [job.work(self.ranks) for job in jobs]

    def fit_and_test_job(self, spec: FitSpec) -> Job[TestedModel]:
        """Returns the job that trains a network, tests its best weights and files the results."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        return Job(f"training {spec.name}", fit.train_and_test, self._cores(fit.arch, fit))

    def fit_job(self, spec: FitSpec) -> Job[FitResult]:
        """Returns the job that trains a network and does not read the test set."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        return Job(f"training {spec.name}", fit.train, self._cores(fit.arch, fit))

    def test_fitted_job(self, spec: FitSpec, fitted: FitResult) -> Job[TestedModel]:
        """Returns the job that tests the result of ``fit_job`` and files the results."""
        fit = Fit(spec, spec.config(self.config), self.dataset, self.device)
        return Job(f"testing {spec.name}", partial(fit.test, fitted), self._cores(fit.arch, fit))

    def test_job(self, mode: str, seed: int, saved: SavedModel) -> Job[TestedModel]:
        """Returns the job that tests a model that exists already; it writes no files."""

        def work(ranks: Ranks) -> TestedModel:
            test = test_loader(self.dataset, self.config, self.device, ranks)
            return test_model(mode, seed, saved, test)

        return Job(f"testing {mode}", work, self._cores(saved.card.arch))

    def soft_label_jobs(self, teachers: Mapping[int, SavedModel]) -> list[Job[None]]:
        """Returns the jobs that put teachers' logits over the training images into the cache.

        There are none with augmentation, because then each epoch has other images.

        Args:
            teachers: the teacher of each seed.
        """

        def work(ranks: Ranks, seed: int, teacher: SavedModel) -> None:
            train = training_loader(self.dataset, self.config, "student", seed, self.device, ranks)
            logits_over(teacher.build(self.device), train, logit_cache(self.config))

        if self.config.augment_for("student") != "none":
            return []
        return [
            Job(
                "the teacher's soft labels",
                partial(work, seed=seed, teacher=teacher),
                self._cores(teacher.card.arch),
            )
            for seed, teacher in teachers.items()
        ]

    def _cores(self, arch: str, fit: Fit | None = None) -> int:
        """Returns the number of processes that share the work on a network.

        A convolution uses each weight once per pixel, so its computation takes far longer than the
        all-reduce of the gradients. A fully connected network is faster on a single core.

        A fit takes a single core as well if its network has a batch normalisation, which would
        normalise over a part of each batch, or if a plugin relates the images of a batch.

        Args:
            arch: architecture of the network.
            fit: the fit that trains it; None if it is only evaluated.
        """
        convolutions, buffers = self._layers(arch)
        if not convolutions:
            return 1
        if fit is not None:
            plugins = [self.plugins[words] for words in fit.config.plugin]
            if fit.spec.teacher is None:
                plugins = [plugin for plugin in plugins if not plugin.needs_teacher]
            if buffers or any(plugin.needs_whole_batch for plugin in plugins):
                return 1
        validation = count_validation(self.dataset, self.config)
        sizes = (self.config.batch_size, self.config.limit_train, validation)
        images = min(size for size in (*sizes, len(self.dataset.test)) if size)
        return max(1, min(len(available_cores()), _MOST_CORES, images // _FEWEST_IMAGES))


def _layers(arch: str, image_shape: ImageShape, num_classes: int) -> tuple[bool, bool]:
    """Returns whether a network has convolutions, and whether it has buffers.

    Raises:
        UsageError: the images are too small for the network.
        KdtrainError: the code of a user's network raises.
    """
    model = build_model(arch, image_shape, num_classes)
    convolutions = any(isinstance(module, flow.nn.Conv2d) for module in model.modules())
    return convolutions, any(True for _ in model.buffers())
