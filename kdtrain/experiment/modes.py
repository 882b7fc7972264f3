"""The modes: which network each trains, and which callbacks make the difference."""

from __future__ import annotations

from collections.abc import Callable
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
)
from kdtrain.engine.callback import Callback
from kdtrain.engine.trainer import OptimizerFactory
from kdtrain.errors import UsageError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.plugin_loader import load_plugin
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard


@dataclass(frozen=True)
class Setup:
    """What callbacks are made from."""

    config: FitConfig
    card: ModelCard
    label: str
    teacher: flow.nn.Module | None = None


def common(setup: Setup) -> list[Callback]:
    """Returns what every mode has."""
    config = setup.config
    callbacks: list[Callback] = [
        RunLog(),  # begins first and ends last: whatever happens in between is in result.json
        StopOnNonFinite(),
        LearningRateSchedule(config.schedule, config.peak_lr),
        Checkpoint(setup.card),
        TensorBoard(config.to_toml()),
        Progress(setup.label),
    ]
    if config.early_stopping is not None:
        callbacks.append(EarlyStopping(config.early_stopping))
    return callbacks


def plugins(setup: Setup) -> list[Callback]:
    """Returns what --plugin asks for. They come last, so that they find the teacher in the objective."""
    return _plugins_for(setup.config, has_teacher=setup.teacher is not None)


def needs_whole_batch(mode: str, config: FitConfig) -> bool:
    """Returns whether a plugin forbids that processes share each batch of ``mode``."""
    plugins = _plugins_for(config, MODES[mode].has_teacher)
    return any(plugin.needs_whole_batch for plugin in plugins)


def _plugins_for(config: FitConfig, has_teacher: bool) -> list[Callback]:
    loaded = [load_plugin(spec) for spec in config.plugin]
    return [plugin for plugin in loaded if has_teacher or not plugin.needs_teacher]


def check_plugins(config: FitConfig) -> None:
    """Raises UsageError if a plugin cannot be made, or needs a teacher where the mode has none."""
    if config.with_label_smoothing:
        load_plugin(LABEL_SMOOTHING)
        if any(spec.split(",")[0] == LABEL_SMOOTHING for spec in config.plugin):
            raise UsageError(
                f"--plugin {LABEL_SMOOTHING} smooths the labels of every model, so there is nothing left "
                "for --with-label-smoothing to compare with: leave one of them out."
            )
    for spec in config.plugin:
        if load_plugin(spec).needs_teacher and config.mode in ("teacher", "student"):
            raise UsageError(
                f"--plugin {spec}: it needs a teacher, and --mode {config.mode} has none: "
                "choose student_kd or compare."
            )


def distillation(setup: Setup) -> list[Callback]:
    """Returns what makes a student learn from its teacher."""
    config = setup.config
    cache = logit_cache(config)
    return [DistillationCallback(setup.teacher, config.temperature, config.alpha, cache_directory=cache)]


def logit_cache(config: FitConfig) -> Path:
    """Returns where teachers' logits are kept."""
    return config.logdir / "cache" / "teacher_logits"


@dataclass(frozen=True)
class Mode:
    """One way of training a network."""

    network: str
    callbacks: Callable[[Setup], list[Callback]]
    has_teacher: bool = False


MODES = {
    "teacher": Mode("teacher", lambda setup: common(setup) + plugins(setup)),
    "student": Mode("student", lambda setup: common(setup) + plugins(setup)),
    "student_kd": Mode(
        "student", lambda setup: common(setup) + distillation(setup) + plugins(setup), has_teacher=True
    ),
}
COMPARE = ("teacher", "student_kd", "student", "student_ls")
"""What mode ``compare`` trains, in this order, the students on the same batches from the same weights.

``student_ls`` is a ``student`` with the plugin ``label_smoothing``, and only there if it is asked for.
"""
LABEL_SMOOTHING = "label_smoothing"
"""The plugin, by the name that it is installed under."""


def architecture(mode: str, config: FitConfig) -> str:
    """Returns the name of the network that ``mode`` trains."""
    return config.architecture_for(MODES[mode].network)


def optimizer(config: FitConfig) -> OptimizerFactory:
    """Returns what makes the optimizer that the configuration names."""
    factories: dict[str, OptimizerFactory] = {
        "adam": partial(flow.optim.Adam, lr=config.peak_lr),
        "adadelta": partial(flow.optim.Adadelta, lr=config.peak_lr),
        "sgd": partial(flow.optim.SGD, lr=config.peak_lr, momentum=0.9),
    }
    return factories[config.optimizer]
