"""The search space of ``kdtrain tune``: the settings of each model, their values, and points among them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import qmc

from kdtrain.callbacks.plugins import load_plugin, numeric_arguments, plugin_name, with_arguments
from kdtrain.data.draws import derive_seed
from kdtrain.errors import UsageError, clipped, unknown_name_message
from kdtrain.experiment.modes import MODES, controls_of
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import load_config
from kdtrain.runtime.limits import MOST_TRIALS
from kdtrain.store.record import Model
from kdtrain.store.search_record import Value

VIEWS = "views"
"""The name in a search of a choice: ``on`` for the command's augmentation, ``off`` for none."""

_NUMBERS = ("temperature", "alpha", "lr", "weight_decay")
_SMOOTHING = "label_smoothing.epsilon"
_DEFAULTS = {
    "temperature": "1..8",
    "alpha": "0.5..1",
    "lr": "",  # around the command's
    "weight_decay": "0,1e-3..1e-2,1e-2..1e-1",
    VIEWS: "on,off",
    _SMOOTHING: "0.02..0.3",
}
_LR_FACTOR = 3.0  # the default range of the learning rate: a third to three times the command's
_LOG_FROM = 4.0  # smallest ratio of the ends for which a range is sampled on a log scale
_DIGITS = 3  # significant digits of sampled numbers
_DRAWS = 50  # points drawn for each trial, at most, while they repeat earlier ones
_RANGE = re.compile(r"(.+?)\.\.(.+)")
_EXAMPLE = "such as lr=1e-3..1e-2, temperature=1,2,4 or weight_decay=0,1e-3..1e-1"

Values = dict[str, Value]
"""The values of a trial by the names of a search."""


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; ``whole`` for whole numbers only."""

    low: float
    high: float
    whole: bool = False

    def at(self, share: float) -> Value:
        """Returns the number at ``share``, 0 to 1, of the way; on a log scale where the range is wide."""
        if self.low > 0 and self.high / self.low >= _LOG_FROM:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        value = round(value) if self.whole else float(f"{value:.{_DIGITS}g}")
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Dimension:
    """The values of one setting: single ones and ranges, each of these parts equally likely."""

    parts: tuple[Value | Range, ...]

    @property
    def values(self) -> list[Value]:
        """The values, each once; empty if one of the parts is a range."""
        values = [part for part in dict.fromkeys(self.parts) if not isinstance(part, Range)]
        return values if len(values) == len(set(self.parts)) else []

    def at(self, share: float) -> Value:
        """Returns the value at ``share``, 0 to below 1."""
        number, rest = divmod(share * len(self.parts), 1.0)
        part = self.parts[min(int(number), len(self.parts) - 1)]
        return part.at(rest) if isinstance(part, Range) else part


@dataclass(frozen=True)
class Space:
    """The search space of one model.

    Attributes:
        model: its name in a comparison.
        config: configuration of the command.
        dimensions: by the names of a search.
    """

    model: Model
    config: FitConfig
    dimensions: Mapping[str, Dimension]

    @property
    def plugins(self) -> tuple[str, ...]:
        """The plugins of the model, as --plugin takes them."""
        return (*self.config.plugin, *MODES[self.model].plugins)

    def current(self) -> Values:
        """Returns the values that the command's own configuration has."""
        return {name: self._current(name) for name in self.dimensions}

    def combinations(self, most: int) -> list[Values] | None:
        """Returns the configuration itself and all combinations of the values, each once.

        Returns:
            None if a value is a range, or if there are more than ``most``.
        """
        lists = [dimension.values for dimension in self.dimensions.values()]
        if not all(lists) or math.prod(map(len, lists)) > most:
            return None
        current = self.current()
        points = [dict(zip(self.dimensions, values, strict=True)) for values in itertools.product(*lists)]
        points = [current, *(point for point in points if point != current)]
        return points if len(points) <= most else None

    def points(self, trials: int, seed: int) -> list[Values]:
        """Returns the values of so many trials, the configuration itself first, and none twice.

        They are all combinations if there are so few. The others are a scrambled Halton sequence, so fewer
        trials are the first ones of more.

        Args:
            trials: number of trials.
            seed: seed of the sequence.
        """
        if (combinations := self.combinations(trials)) is not None:
            return combinations
        points = [self.current()]
        sequence = qmc.Halton(len(self.dimensions), seed=derive_seed(seed, "tune", self.model) % 2**32)
        draws: list[list[float]] = sequence.random(_DRAWS * trials).tolist()
        for shares in draws:
            if len(points) == trials:
                break
            pairs = zip(self.dimensions.items(), shares, strict=True)
            point = {name: dimension.at(share) for (name, dimension), share in pairs}
            if point not in points:
                points.append(point)
        return points

    def settings(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """Returns the settings of a fit with these values; ``plugin`` has all plugins of the model."""
        settings: dict[str, Any] = {name: value for name, value in values.items() if name in _NUMBERS}
        if VIEWS in values:
            settings["augment"] = "none" if values[VIEWS] == "off" else self.config.augment
        plugins = []
        for spec in self.plugins:
            prefix = f"{plugin_name(spec)}."
            arguments = {
                name.removeprefix(prefix): value
                for name, value in values.items()
                if name.startswith(prefix) and not isinstance(value, str)
            }
            plugins.append(with_arguments(spec, arguments) if arguments else spec)
        return settings | {"plugin": tuple(plugins)}

    def _current(self, name: str) -> Value:
        if name == VIEWS:
            return "on"
        if name == "lr":
            return self.config.peak_lr
        if name in _NUMBERS:
            return float(getattr(self.config, name))
        spec, argument = _plugin_of(name, self.plugins, name)
        return numeric_arguments(spec)[argument]


def spaces(config: FitConfig, searches: Sequence[str]) -> dict[Model, Space]:
    """Returns the search space of each student of a comparison.

    Every model is tuned over all settings that affect it. Searches that list values, without a range, are
    the whole space: the other settings keep the command's values.

    Args:
        config: configuration of the command.
        searches: texts such as ``lr=1e-3..1e-2``; each replaces the default of its setting.

    Raises:
        UsageError: a text names no setting that can be tuned, or values that it cannot have.
    """
    models: list[Model] = ["student_kd", "student", *controls_of(config)]
    plugins = (*config.plugin, *(spec for model in models for spec in MODES[model].plugins))
    texts = _DEFAULTS | {"lr": f"{config.peak_lr / _LR_FACTOR:.3g}..{config.peak_lr * _LR_FACTOR:.3g}"}
    if config.augment_for("student") == "none":
        del texts[VIEWS]
    if not config.with_label_smoothing:
        del texts[_SMOOTHING]
    given: set[str] = set()
    for search in searches:
        name, _, text = search.partition("=")
        if name in given:
            raise UsageError(f"--search {clipped(search)}: {clipped(name)} has its values already.")
        if name == VIEWS and VIEWS not in texts:
            raise UsageError(f"--search {search}: without --augment there are no views to turn on or off.")
        given.add(name)
        texts[name] = text
    dimensions = {name: _dimension(name, text, plugins) for name, text in texts.items()}
    lengths = [len(dimensions[name].values) for name in given]
    if all(lengths) and max(lengths, default=1) > 1:
        dimensions = {name: dimension for name, dimension in dimensions.items() if name in given}
    return {
        model: Space(
            model, config, {name: d for name, d in dimensions.items() if _affects(name, model, config)}
        )
        for model in models
    }


def _affects(name: str, model: Model, config: FitConfig) -> bool:
    """Returns whether a setting has an effect on a model."""
    mode = MODES[model]
    if name == "temperature":
        return model == "student_kd"  # hard labels have none
    if name == "alpha":
        return mode.has_teacher
    if "." not in name:
        return True
    specs = [spec for spec in (*config.plugin, *mode.plugins) if plugin_name(spec) == name.rpartition(".")[0]]
    return any(mode.has_teacher or not load_plugin(spec).needs_teacher for spec in specs)


def _dimension(name: str, text: str, plugins: Sequence[str]) -> Dimension:
    """Returns the values that a text spells, each checked as a flag is.

    Raises:
        UsageError: there is nothing of this name to tune, or the setting cannot have one of the values.
    """
    where, words = f"--search {name}={clipped(text)}", text.split(",")
    spec, argument = ("", "") if name in (*_NUMBERS, VIEWS) else _plugin_of(name, plugins, where)
    if len(words) > MOST_TRIALS:
        raise UsageError(f"{where} has {len(words):,} values; it may have at most {MOST_TRIALS:,}.")
    if name == VIEWS:
        if not set(words) <= {"on", "off"}:
            raise UsageError(f"{where}: views are on, off, or on,off.")
        return Dimension(tuple(dict.fromkeys(words)))
    whole = bool(spec) and isinstance(numeric_arguments(spec)[argument], int)
    parts = tuple(_part(word, whole, where) for word in words)
    ends = [(part.low, part.high) if isinstance(part, Range) else (part,) for part in parts]
    for value in itertools.chain.from_iterable(ends):
        try:
            if spec:
                load_plugin(with_arguments(spec, {argument: value}))
            else:
                load_config({name: value})
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    return Dimension(parts)


def _plugin_of(name: str, plugins: Sequence[str], where: str) -> tuple[str, str]:
    """Returns the plugin that ``PLUGIN.ARGUMENT`` names, as --plugin takes it, and the argument.

    Raises:
        UsageError: there is no such plugin, or no such number among its arguments.
    """
    plugin, dot, argument = name.rpartition(".")
    if not dot:
        raise UsageError(
            f"{where}: {unknown_name_message('setting to tune', name, [*_NUMBERS, VIEWS])} "
            "An argument of a plugin is written PLUGIN.ARGUMENT."
        )
    spec = next((spec for spec in plugins if plugin_name(spec) == plugin), None)
    if spec is None:
        raise UsageError(f"{where}: there is no --plugin {plugin} in the command.")
    if argument not in (numbers := numeric_arguments(spec)):
        raise UsageError(
            f"{where}: {unknown_name_message(f'number among the arguments of {plugin}', argument, numbers)}"
        )
    return spec, argument


def _part(word: str, whole: bool, where: str) -> int | float | Range:
    match = _RANGE.fullmatch(word)
    numbers = [_number(text, whole, where) for text in (match.groups() if match else (word,))]
    if len(numbers) == 1:
        return numbers[0]
    low, high = numbers
    if not low < high:
        raise UsageError(f"{where}: {low:g}..{high:g}: the lower limit must be below the upper one.")
    return Range(low, high, whole)


def _number(text: str, whole: bool, where: str) -> int | float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{where}: {clipped(text, repr)} is not {kind}; give values, {_EXAMPLE}.") from None
    if not math.isfinite(value):
        raise UsageError(f"{where}: {clipped(text)} is not a finite number.")
    return value
