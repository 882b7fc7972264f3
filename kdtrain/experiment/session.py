"""Carries out ``kdtrain fit``: trains what the mode asks for, tests it, and files the results."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from kdtrain.callbacks.teacher_logits import logits_over
from kdtrain.data.datasets import load_dataset
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.resume import load_state
from kdtrain.engine.trainer import Trainer
from kdtrain.errors import DataError, UsageError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.config_file import absolute_paths
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.loaders import check_sizes, count_validation, prepare
from kdtrain.experiment.modes import (
    MODES,
    Setup,
    architecture,
    check_plugins,
    logit_cache,
    needs_whole_batch,
    optimizer,
)
from kdtrain.experiment.result import FitResult, TestedModel, file_results
from kdtrain.experiment.teacher import find_teacher, networks_to_train
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.models.registry import build_model, check_architecture, count_multiply_adds, count_parameters
from kdtrain.runtime import flow, launch
from kdtrain.runtime.files import ensure_writable, make_folder, temporary_folder, write_bytes, write_text
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import OneFlowRanks, Ranks
from kdtrain.runtime.seeds import derive_seed
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import SavedModel, fingerprint, load_model
from kdtrain.store.kept_models import keep_model
from kdtrain.store.metrics_file import read_metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_CORES = 4  # more have not been tried: adding up gradients takes longer with each
_FEWEST_IMAGES = 16  # per process and batch


class Session:
    """What the runs of one command share: the configuration, the device, the data.

    Whatever can be found wrong with them is found when it is made, before any work is done.

    Args:
        config: what is to be done.
        most_pictures: how many pictures of a folder are enough; all by default.
    """

    def __init__(self, config: FitConfig, most_pictures: int | None = None) -> None:
        self.config = config
        for arch in (*map(config.architecture_for, ("teacher", "student")), *config.assistant_arch):
            check_architecture(arch)
        check_plugins(config)
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
            most_pictures=most_pictures,
        )
        check_sizes(self.dataset, config)
        archs = [config.architecture_for(network) for network in networks_to_train(config, self.dataset)]
        for arch in (*archs, *config.assistant_arch):
            build_model(arch, self.dataset.image_shape, self.dataset.num_classes)
        if count_validation(self.dataset, config) == 0:
            if config.grid:
                raise UsageError(f"--grid chooses by held-out images, and {self.dataset.name} leaves none.")
            logger.info(
                "--val-size 0: the test set chooses the best epoch, so the test accuracy is optimistic."
            )

    def run(self, jobs: Sequence[Job[T]]) -> list[T]:
        """Runs jobs side by side on the CPU's cores, or here and one after another.

        The latter on a GPU, and where this process is one of several that train together.
        """
        if self.ranks.size == 1 and self.device == "cpu":
            return run_jobs(jobs, self.config.stall_timeout)
        return [job.work(self.ranks) for job in jobs]

    def keep(self, *trained: TestedModel) -> None:
        """Puts the best of a mode's networks by held-out accuracy into the model-save directory.

        It does so if --keep and what is there allow it, and says what it did. Of equals it takes the first.
        """
        if self.ranks.rank == 0 and self.config.keep != "never":
            best = max(trained, key=lambda one: one.saved.card.accuracy)
            said = keep_model(
                best.saved,
                best.mode,
                self.config.models,
                always=self.config.keep == "always",
                siblings=[one.saved.card for one in trained],
            )
            if said is not None:
                logger.info(said)

    def training(self, plan: FitSpec) -> Job[TestedModel]:
        """Returns the job that trains a network, tests its best weights, and files the results."""

        def work(ranks: Ranks, directory: Path) -> TestedModel:
            fitted, test = self._fit(plan, ranks, directory)
            return self._finish(plan, fitted, test, ranks)

        return self._job("training", plan, work)

    def fitting(self, plan: FitSpec) -> Job[FitResult]:
        """Returns the job that trains a network, and does not look at the test set."""
        return self._job("training", plan, lambda ranks, directory: self._fit(plan, ranks, directory)[0])

    def finishing(self, plan: FitSpec, fitted: FitResult) -> Job[TestedModel]:
        """Returns the job that tests what ``fitting`` has trained, and files the results."""

        def work(ranks: Ranks, directory: Path) -> TestedModel:
            return self._finish(plan, fitted, self._test_images(plan.mode, plan.seed, ranks), ranks)

        return self._job("testing", plan, work)

    def _job(self, what: str, plan: FitSpec, work: Callable[[Ranks, Path], T]) -> Job[T]:
        config = plan.config(self.config)
        if self.ranks.rank == 0:  # at once, so that the run can be resumed from its first moment on
            make_folder(plan.directory)
            write_text(plan.directory / "config.toml", absolute_paths(config).to_toml())

        def inside(ranks: Ranks) -> T:
            with _run_directory(plan.directory, ranks) as own:
                return work(ranks, own)

        whole = needs_whole_batch(plan.mode, config)
        cores = 1 if whole else self._cores(architecture(plan.mode, config), trained=True)
        return Job(f"{what} {plan.name}", inside, cores)

    def prepare_soft_labels(self, teachers: Mapping[int, SavedModel]) -> None:
        """Puts each seed's teacher's logits over the training images into the cache, on all cores."""
        if self.config.augment_for("student") == "none":
            self.run([self._soft_labels(seed, teacher) for seed, teacher in teachers.items()])

    def _soft_labels(self, seed: int, teacher: SavedModel) -> Job[None]:
        def work(ranks: Ranks) -> None:
            train = prepare(self.dataset, self.config, "student", seed, self.device, ranks).train
            logits_over(teacher.build(self.device), train, logit_cache(self.config))

        return Job("the teacher's soft labels", work, self._cores(teacher.card.arch))

    def testing(self, mode: str, seed: int, saved: SavedModel) -> Job[TestedModel]:
        """Returns the job that evaluates a model on the test set."""

        def work(ranks: Ranks) -> TestedModel:
            return self._test(mode, seed, saved, self._test_images(mode, seed, ranks))

        return Job(f"testing {mode}", work, self._cores(saved.card.arch))

    def _fit(self, plan: FitSpec, ranks: Ranks, directory: Path) -> tuple[FitResult, Loader]:
        """Trains a network in this process, alone or as one of several; returns the test images as well.

        Its first weights are drawn by seed and network, so a student starts from the same ones with
        and without a teacher.
        """
        config, mode = plan.config(self.config), MODES[plan.mode]
        last = plan.directory / "checkpoints" / "last.safetensors"
        state = load_state(last) if last.exists() else None
        ranks.check_same("the checkpoints to go on from", last.read_bytes() if last.exists() else b"")
        card = model_card(plan.mode, architecture(plan.mode, config), self.dataset)
        data = prepare(self.dataset, config, mode.network, config.seed, self.device, ranks)
        ranks.check_same("the training images", data.train.fingerprint.encode())
        flow.manual_seed(derive_seed(config.seed, "weights", mode.network, *[plan.draw] * bool(plan.draw)))
        model = build_model(card.arch, card.image_shape, len(card.classes)).to(self.device)
        setup = Setup(config, card, plan.name, plan.teacher.build(self.device) if plan.teacher else None)
        trainer = Trainer(model, optimizer(config), mode.callbacks(setup), seed=config.seed)
        epochs = config.epochs_for(mode.network)
        if state is not None and state.data != data.train.fingerprint:
            raise DataError(
                f"the training images are not those that the run in {plan.directory} was begun with."
            )
        trainer.fit(data.train, data.validation, epochs=epochs, directory=directory, resume=state)
        best = load_model(directory / "checkpoints" / "best.safetensors", arch=card.arch)
        return FitResult(best, tuple(read_metrics(directory))), data.test

    def _finish(self, plan: FitSpec, fitted: FitResult, test: Loader, ranks: Ranks) -> TestedModel:
        """Tests a network's best weights, and files the results."""
        trained = dataclasses.replace(
            self._test(plan.mode, plan.seed, fitted.saved, test),
            seconds=fitted.seconds,
            history=fitted.history,
            directory=plan.directory,
        )
        if ranks.rank == 0:
            file_results(trained, plan.directory, plan.config(self.config))
        return trained

    def _test_images(self, mode: str, seed: int, ranks: Ranks) -> Loader:
        return prepare(self.dataset, self.config, MODES[mode].network, seed, self.device, ranks).test

    def _test(self, mode: str, seed: int, saved: SavedModel, test: Loader) -> TestedModel:
        model = saved.build(self.device)
        logits = predict_logits(model, test, description=f"{mode} on the test set")
        evaluation = Evaluation.from_logits(logits, test.targets)
        multiply_adds = count_multiply_adds(saved.build("cpu"), saved.card.image_shape)
        return TestedModel(mode, seed, saved, count_parameters(model), multiply_adds, evaluation, logits)

    def find_teacher(self) -> SavedModel | None:
        """Returns the teacher that is there already, on all machines; None if there is none on any.

        Raises:
            CheckpointError: it cannot be read, or it does not fit.
            KdtrainError: the machines have different ones.
        """
        teacher = find_teacher(self.config, self.dataset)
        weights = fingerprint(teacher.weights, teacher.card.arch) if teacher is not None else ""
        self.ranks.check_same("the teachers", weights.encode())
        return teacher

    def _cores(self, arch: str, trained: bool = False) -> int:
        """Returns how many processes should share the work on a network.

        A convolution uses each weight once per pixel, so that computing takes far longer than adding
        up the processes' gradients. A fully connected network is faster on a core of its own. So is
        one with a batch normalisation trained: over a part of each batch it would be another one.
        """
        model = build_model(arch, self.dataset.image_shape, self.dataset.num_classes)
        if not any(isinstance(module, flow.nn.Conv2d) for module in model.modules()):
            return 1
        if trained and any(True for _ in model.buffers()):
            return 1
        validation = count_validation(self.dataset, self.config)
        sizes = (self.config.batch_size, self.config.limit_train, validation)
        images = min(size for size in (*sizes, len(self.dataset.test)) if size)
        return max(1, min(len(available_cores()), _MOST_CORES, images // _FEWEST_IMAGES))


@contextlib.contextmanager
def _run_directory(directory: Path, ranks: Ranks) -> Iterator[Path]:
    """Yields where a rank's callbacks write: rank 0's files stay, those of the others are copies."""
    if ranks.rank == 0:
        yield directory
        return
    with temporary_folder(Path(tempfile.gettempdir())) as copies:
        best = Path("checkpoints") / "best.safetensors"  # of a resumed run, if no later epoch is better
        if (directory / best).exists():
            make_folder((copies / best).parent)
            write_bytes(copies / best, (directory / best).read_bytes())
        yield copies
