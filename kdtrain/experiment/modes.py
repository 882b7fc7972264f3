"""The modes: the network that each trains, and its list of callbacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdtrain.callbacks import (
    Checkpoint,
    DistillationCallback,
    EarlyStopping,
    LearningRateSchedule,
    Progress,
    RunLog,
    StopOnNonFinite,
    TensorBoard,
    WeightDecay,
)
from kdtrain.callbacks.early_stopping import MonitorMode
from kdtrain.callbacks.plugins import load_plugin, replaces_soft_targets
from kdtrain.data.augment_spec import mixes
from kdtrain.engine.callback import Callback
from kdtrain.engine.trainer import OptimizerFactory
from kdtrain.errors import UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.nn import optimizers
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.record import CONTROLS, Model


@dataclass(frozen=True)
class Mode:
    """How a model is trained.

    Attributes:
        fit: the value of ``--mode`` that trains it.
        has_teacher: the network is distilled.
        plugins: plugins besides those of the command.
        setting: the setting that adds it to a comparison; without one it always takes part.
    """

    fit: Model
    has_teacher: bool = False
    plugins: tuple[str, ...] = ()
    setting: str | None = None

    @property
    def network(self) -> str:
        """``teacher`` or ``student``; decides architecture, epochs and augmentation."""
        return "teacher" if self.fit == "teacher" else "student"


LABEL_SMOOTHING = "label_smoothing"
"""Entry-point name of the plugin for label smoothing."""
HARD_LABELS = "hard_labels"
"""Entry-point name of the plugin for hard labels of the teacher."""

MODES: Mapping[str, Mode] = {
    "teacher": Mode("teacher"),
    "student_kd": Mode("student_kd", has_teacher=True),
    "student": Mode("student"),
    "student_ls": Mode("student", plugins=(LABEL_SMOOTHING,), setting="with_label_smoothing"),
    "student_hard": Mode("student_kd", True, (HARD_LABELS,), "with_hard_labels"),
}
"""The models that a fit or a comparison trains, by name.

The students of a seed start from the same weights and see the same batches.
"""


def callbacks_for(
    config: FitConfig,
    card: ModelCard,
    label: str,
    teacher: flow.nn.Module | None = None,
    restarts: tuple[int, ...] = (),
) -> list[Callback]:
    """Returns the callbacks of a fit: the common ones, distillation with a teacher, then the plugins.

    Plugins come last, so that their ``configure`` finds the teacher in the objective. Without a teacher
    those with ``needs_teacher`` are left out.

    Args:
        config: configuration of the fit.
        card: card of the checkpoints.
        label: beginning of the progress lines.
        teacher: teacher of mode student_kd.
        restarts: numbers of epochs after which the schedule of the learning rate begins anew.

    Raises:
        UsageError: a plugin is unknown, or its arguments are wrong.
    """
    monitor = f"val/{config.monitor}"
    mode: MonitorMode = "min" if monitor == CROSS_ENTROPY else "max"
    errors = 0.0 if config.labels is None or monitor != ACCURACY else 1.0
    if teacher is not None:
        card = dataclasses.replace(card, temperature=float(config.temperature))
    callbacks: list[Callback] = [
        RunLog(),  # starts first and ends last, so that result.json records errors of all others
        StopOnNonFinite(),
        LearningRateSchedule(config.schedule, config.peak_lr, restarts),
        Checkpoint(card, monitor, mode, standard_errors=errors),
        TensorBoard(config.to_toml()),
        Progress(label),
    ]
    if config.weight_decay > 0.0:
        callbacks.append(WeightDecay(config.weight_decay))
    if config.early_stopping is not None:
        callbacks.append(EarlyStopping(config.early_stopping, monitor=monitor, mode=mode))
    if teacher is not None:
        cache = logit_cache(config)
        # Mixed images have the teacher's outputs alone: mixed labels hurt a distilled student (Wang et al.
        # 2020, "Knowledge Distillation Thrives on Data Augmentation").
        alpha = 1.0 if mixes(config.augment_for("student")) else config.alpha
        callbacks.append(DistillationCallback(teacher, config.temperature, alpha, cache_directory=cache))
    plugins = [load_plugin(spec) for spec in config.plugin]
    return [*callbacks, *(plugin for plugin in plugins if teacher is not None or not plugin.needs_teacher)]


def controls_of(config: FitConfig) -> tuple[Model, ...]:
    """Returns the students that take part in a comparison as further controls, in its order."""
    return tuple(model for model in CONTROLS if getattr(config, str(MODES[model].setting)))


def check_plugins(config: FitConfig) -> None:
    """Makes each plugin of a command once.

    Raises:
        UsageError: a plugin cannot be made, or needs a teacher that the mode does not have, or two of them
            replace the soft targets.
    """
    names = [spec.split(",")[0] for spec in config.plugin]
    if config.with_label_smoothing and LABEL_SMOOTHING in names:
        raise UsageError(
            f"--plugin {LABEL_SMOOTHING} smooths the labels of every model, so "
            "--with-label-smoothing has no baseline: leave one of them out."
        )
    if config.with_hard_labels and HARD_LABELS in names:
        raise UsageError(
            f"--plugin {HARD_LABELS} replaces the soft targets of student_kd, so --with-hard-labels has "
            "nothing to compare with: leave one of them out."
        )
    controls = [plugin for model in controls_of(config) for plugin in MODES[model].plugins]
    for spec in (*controls, *config.plugin):
        if load_plugin(spec).needs_teacher and config.mode in ("teacher", "student"):
            raise UsageError(
                f"--plugin {spec}: it needs a teacher, and --mode {config.mode} has none: "
                "choose student_kd or compare."
            )
    methods = [f"--plugin {spec}" for spec in config.plugin if replaces_soft_targets(spec)]
    if config.with_hard_labels:
        methods.insert(0, "--with-hard-labels")
    if len(methods) > 1:
        raise UsageError(
            f"{' and '.join(methods)} take one place, that of the soft targets (the term kd): "
            "give one of them."
        )


def logit_cache(config: FitConfig) -> Path:
    """Returns the directory of the teachers' cached logits."""
    return config.logdir / "cache" / "teacher_logits"


def architecture(mode: str, config: FitConfig) -> str:
    """Returns the name of the network that ``mode`` trains."""
    return config.architecture_for(MODES[mode].network)


def optimizer(config: FitConfig) -> OptimizerFactory:
    """Returns the factory of the configured optimizer."""
    factories: dict[str, OptimizerFactory] = {
        "adam": partial(optimizers.Adam, lr=config.peak_lr),
        "adadelta": partial(optimizers.Adadelta, lr=config.peak_lr),
        "sgd": partial(optimizers.SGD, lr=config.peak_lr, momentum=0.9),
    }
    return factories[config.optimizer]
