"""Carries out ``kdtrain fit``: trains what the mode asks for, tests it, and files the results."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtrain.callbacks.tensorboard import write_results
from kdtrain.config import FitConfig
from kdtrain.console import note
from kdtrain.data.datasets import load_dataset
from kdtrain.data.prepare import RunData, check_sizes, prepare
from kdtrain.evaluation import Evaluation
from kdtrain.models.registry import build_model, check_architecture, count_parameters
from kdtrain.modes import MODES, Setup, architecture, optimizer
from kdtrain.plugin_loader import load_plugin
from kdtrain.predict import predict_logits
from kdtrain.runtime import derive_seed, flow, resolve_device
from kdtrain.store.atomic import ensure_writable, write_bytes, write_text
from kdtrain.store.checkpoint import SavedModel, load_model
from kdtrain.store.run_directory import claim_run_directory
from kdtrain.teachers import default_model_path, find_teacher, model_card
from kdtrain.trainer import Trainer


@dataclass(frozen=True)
class Trained:
    """A model, and how it did on the test set.

    Attributes:
        mode: how it was trained.
        seed: the seed it was trained with.
        saved: its best weights.
        parameters: how many values the network has.
        test: on the test set.
        seconds: what the fit took, evaluations included; 0 for a model that was there before.
        history: a row of figures per epoch, as in metrics.jsonl.
        directory: the run directory; None for a model that was there before.
    """

    mode: str
    seed: int
    saved: SavedModel
    parameters: int
    test: Evaluation
    seconds: float = 0.0
    history: tuple[dict[str, Any], ...] = ()
    directory: Path | None = None


class Session:
    """What the runs of one command share: the configuration, the device, the data.

    Whatever can be found wrong with them is found when it is made, before any work is done.
    """

    def __init__(self, config: FitConfig) -> None:
        self.config = config
        for arch in (config.teacher_arch, config.student_arch):
            check_architecture(arch)
        for spec in config.plugin:
            load_plugin(spec)
        for folder in (config.logdir, config.models, config.image_save_dir):
            if folder is not None:
                ensure_writable(folder)
        self.device = resolve_device(config.device)
        self.dataset = load_dataset(config.dataset, config.data_dir)
        check_sizes(self.dataset, config)
        for network in ("teacher", "student") if config.mode in ("student_kd", "compare") else (config.mode,):
            arch = architecture(network, config)
            build_model(arch, self.dataset.image_shape, self.dataset.num_classes)
        if config.val_size == 0:
            note("--val-size 0: the test set chooses the best epoch, so the test accuracy is optimistic.")

    def data(self, seed: int) -> RunData:
        """Returns the loaders for a seed."""
        return prepare(self.dataset, self.config, seed, self.device)

    def fit_one(self) -> Trained:
        """Trains the network of mode teacher, student or student_kd."""
        mode, seed = self.config.mode, self.config.seed
        data = self.data(seed)
        teacher = self._teacher_for_student(data) if MODES[mode].has_teacher else None
        return self.train(mode, seed, data, claim_run_directory(self.config.logdir, mode), teacher)

    def train(
        self, mode: str, seed: int, data: RunData, directory: Path, teacher: SavedModel | None = None
    ) -> Trained:
        """Trains a network, tests its best weights, and keeps a copy of them as the mode's model.

        Its first weights are drawn by seed and network, so a student starts from the same ones with
        and without a teacher.
        """
        config = dataclasses.replace(
            self.config, mode=mode, seed=seed, seeds=1, teacher_checkpoint=teacher.path if teacher else None
        )
        card = model_card(mode, architecture(mode, config), self.dataset)
        flow.manual_seed(derive_seed(seed, "weights", MODES[mode].network))
        model = build_model(card.arch, card.image_shape, len(card.classes)).to(self.device)
        setup = Setup(config, card, teacher.build(self.device) if teacher else None)
        trainer = Trainer(model, optimizer(config), MODES[mode].callbacks(setup), seed=seed)
        write_text(directory / "config.toml", config.to_toml())
        end = trainer.fit(
            data.train, data.validation, epochs=config.epochs_for(MODES[mode].network), directory=directory
        )

        best = directory / "checkpoints" / "best.safetensors"
        history = (directory / "metrics.jsonl").read_text().splitlines()
        trained = dataclasses.replace(
            self.test(mode, seed, load_model(best), data),
            seconds=end.seconds,
            history=tuple(json.loads(line) for line in history),
            directory=directory,
        )
        write_bytes(default_model_path(config.models, mode), best.read_bytes())
        _file_results(trained, directory, config, end.step)
        return trained

    def test(self, mode: str, seed: int, saved: SavedModel, data: RunData) -> Trained:
        """Evaluates a model on the test set."""
        model = saved.build(self.device)
        logits = predict_logits(model, data.test, description=f"{mode} on the test set")
        evaluation = Evaluation.from_logits(logits, data.test.targets)
        return Trained(mode, seed, saved, count_parameters(model), evaluation)

    def _teacher_for_student(self, data: RunData) -> SavedModel:
        """Returns the teacher that is there, or trains one."""
        teacher = find_teacher(self.config, self.dataset)
        if teacher is not None:
            note(f"The teacher is {teacher.path}.")
            return teacher
        note(f"There is no teacher in {self.config.models} yet: training one first.")
        directory = claim_run_directory(self.config.logdir, "teacher")
        return self.train("teacher", self.config.seed, data, directory).saved


def _file_results(trained: Trained, directory: Path, config: FitConfig, step: int) -> None:
    """Adds the test figures to result.json and to TensorBoard."""
    test = trained.test
    path = directory / "result.json"
    result = json.loads(path.read_text()) | {
        "mode": trained.mode,
        "seed": trained.seed,
        "parameters": trained.parameters,
        "best": trained.saved.card.metrics,
        "test": {
            "accuracy": test.accuracy,
            "cross_entropy": test.cross_entropy,
            "errors": test.errors,
            "images": test.images,
        },
    }
    write_text(path, json.dumps(result, indent=2) + "\n")
    metrics = {"test/accuracy": test.accuracy, "test/cross_entropy": test.cross_entropy}
    write_results(directory, _hyperparameters(trained, config), metrics, step)


def _hyperparameters(trained: Trained, config: FitConfig) -> dict[str, str | int | float]:
    """Returns what the HParams tab shows: the same names for every mode, and nothing that decides nothing."""
    mode = MODES[trained.mode]
    return {
        "mode": trained.mode,
        "arch": trained.saved.card.arch,
        "dataset": trained.saved.card.dataset,
        "val_size": config.val_size,
        "limit_train": config.limit_train or 0,
        "seed": trained.seed,
        "epochs": config.epochs_for(mode.network),
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "lr": config.peak_lr,
        "schedule": config.schedule,
        "alpha": config.alpha if mode.has_teacher else 0.0,  # without soft labels their weight is 0
        "temperature": config.temperature,
        "plugin": " ".join(config.plugin),
    }
