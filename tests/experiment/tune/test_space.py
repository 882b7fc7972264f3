"""The search space of `kdtrain tune`: each model's settings, their values, and the points among them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain.errors import UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.tune.space import Space, spaces


def space(model: Any = "student_kd", *searches: str, **settings: Any) -> Space:
    return spaces(FitConfig(**settings), searches)[model]


def column(of: Space, name: str, trials: int = 200) -> list[Any]:
    return [point[name] for point in of.points(trials, seed=0)[1:]]


def test_each_model_is_tuned_over_the_settings_that_affect_it() -> None:
    config = FitConfig(
        with_label_smoothing=True, with_hard_labels=True, augment="shift=1", plugin=("dkd", "max_norm")
    )
    by_model = spaces(config, [])
    common = {"lr", "weight_decay", "views"}
    assert {model: set(space.dimensions) for model, space in by_model.items()} == {
        "student_kd": {"temperature", "alpha", *common},
        "student": common,
        "student_ls": {"label_smoothing.epsilon", *common},
        "student_hard": {"alpha", *common},
    }


def test_an_argument_of_a_method_is_tuned_for_the_distilled_student_only() -> None:
    config = FitConfig(plugin=("dkd", "max_norm"))
    by_model = spaces(config, ["dkd.beta=1..10", "max_norm.limit=1..4"])
    assert {"dkd.beta", "max_norm.limit"} <= set(by_model["student_kd"].dimensions)
    assert "dkd.beta" not in by_model["student"].dimensions
    assert "max_norm.limit" in by_model["student"].dimensions


def test_without_augmentation_there_are_no_views_to_choose() -> None:
    assert "views" not in space().dimensions
    assert "views" in space(augment="flip").dimensions


def test_the_first_trial_is_the_configuration_itself() -> None:
    tuned = space(
        "student_kd", "dkd.beta=1..10", plugin=("dkd,beta=5",), optimizer="sgd", augment="flip", alpha=0.7
    )
    values = tuned.points(3, seed=0)[0]
    assert values == {
        "temperature": 4.0,
        "alpha": 0.7,
        "lr": 0.1,
        "weight_decay": 0.0,
        "views": "on",
        "dkd.beta": 5.0,
    }
    assert tuned.settings(values) == {
        "temperature": 4.0,
        "alpha": 0.7,
        "lr": 0.1,
        "weight_decay": 0.0,
        "augment": "flip",
        "plugin": ("dkd,beta=5.0",),
    }


def test_values_become_settings_and_arguments() -> None:
    tuned = space(
        "student_ls", "max_norm.limit=1..4", plugin=("max_norm",), with_label_smoothing=True, augment="flip"
    )
    values: dict[str, int | float | str] = {
        "lr": 0.002,
        "views": "off",
        "label_smoothing.epsilon": 0.2,
        "max_norm.limit": 2.0,
    }
    assert tuned.settings(values) == {
        "lr": 0.002,
        "augment": "none",
        "plugin": ("max_norm,limit=2.0", "label_smoothing,epsilon=0.2"),
    }


def test_fewer_trials_are_the_first_of_more_and_the_seed_decides_them() -> None:
    tuned = space()
    points = tuned.points(20, seed=3)
    assert tuned.points(7, seed=3) == points[:7]
    assert tuned.points(20, seed=4)[1:] != points[1:]
    assert len({tuple(point.items()) for point in points}) == 20


@given(
    st.lists(st.floats(0.5, 100), min_size=2, max_size=4, unique=True),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_each_combination_of_listed_values_is_a_point_once(
    temperatures: list[float], alphas: list[float]
) -> None:
    listed = {"temperature": temperatures, "alpha": alphas}
    tuned = space("student_kd", *(f"{name}={','.join(map(repr, values))}" for name, values in listed.items()))
    points = [(point["temperature"], point["alpha"]) for point in tuned.points(27, seed=0)]
    assert points[0] == (4.0, 0.9)
    assert len(points) == len(set(points))
    assert set(points) == {points[0], *itertools.product(temperatures, alphas)}


def test_listed_values_alone_are_the_whole_space() -> None:
    by_model = spaces(FitConfig(with_hard_labels=True), ["alpha=0.5,0.9", "temperature=2"])
    assert {model: list(space.dimensions) for model, space in by_model.items()} == {
        "student_kd": ["temperature", "alpha"],
        "student_hard": ["alpha"],
        "student": [],
    }
    assert by_model["student"].points(27, seed=0) == [{}]
    assert "lr" in space("student_kd", "temperature=2").dimensions, "a fixed value is no list"
    assert "lr" in space("student_kd", "temperature=2,4", "alpha=0.5..0.9").dimensions


def test_more_combinations_than_trials_are_sampled() -> None:
    tuned = space("student_kd", "temperature=1,2,3", "alpha=0.5,0.9")
    assert tuned.combinations(6) is None, "the configuration itself is one more"
    assert tuned.points(7, seed=0) == tuned.combinations(7)
    points = tuned.points(6, seed=0)
    assert points[:4] == tuned.points(4, seed=0)
    assert len({tuple(point.items()) for point in points}) == 6


@pytest.mark.parametrize(
    ("model", "searches", "digest"),
    [
        ("student_kd", [], "f4862c5c8aa9b4cc"),
        ("student", [], "e9e8c82fcf01333b"),
        ("student_ls", [], "ebd5e417060270e6"),
        ("student_hard", [], "331a07d2ea59657b"),
        ("student_kd", ["lr=1e-4..1e-2", "temperature=1,2,4"], "14e32601675405b0"),
        ("student_hard", ["dkd.warmup=1..5"], "95b8b2368f4815ae"),
    ],
)
def test_the_points_of_ranges_are_golden(model: Any, searches: list[str], digest: str) -> None:
    config = FitConfig(with_label_smoothing=True, with_hard_labels=True, augment="shift=1", plugin=("dkd",))
    points = json.dumps(spaces(config, searches)[model].points(60, seed=3))
    assert hashlib.sha256(points.encode()).hexdigest()[:16] == digest


def test_wide_ranges_are_sampled_on_a_log_scale_and_narrow_ones_evenly() -> None:
    wide = np.array(column(space("student", "lr=1e-4..1e-2"), "lr"))
    assert 0.45 < (wide < 1e-3).mean() < 0.55
    even = np.array(column(space("student_kd"), "alpha"))
    assert 0.45 < (even < 0.75).mean() < 0.55


def test_values_and_ranges_are_equally_likely() -> None:
    decay = np.array(column(space("student", "weight_decay=0,1e-3..1e-1"), "weight_decay"))
    assert 0.45 < (decay == 0).mean() < 0.55
    assert decay[decay > 0].min() >= 1e-3
    assert decay.max() <= 1e-1


def test_whole_arguments_stay_whole() -> None:
    values = column(space("student_kd", "dkd.warmup=1..5", plugin=("dkd",)), "dkd.warmup")
    assert set(values) == {1, 2, 3, 4, 5}
    assert {type(value) for value in values} == {int}


def test_a_plugin_in_a_file_is_named_by_its_class(tmp_path: Path) -> None:
    file = tmp_path / "mine, too.py"
    file.write_text(
        "from kdtrain import Callback\n\nclass Mine(Callback):\n    def __init__(self, size: float = 1.0):\n"
        "        self.size = size\n"
    )
    tuned = space("student", "Mine.size=2..4", plugin=(f"{file}:Mine",))
    assert tuned.settings({"Mine.size": 3.0})["plugin"] == (f"{file}:Mine,size=3.0",)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("temprature=1..8", "did you mean 'temperature'"),
        ("epochs=1..8", "there are: temperature, alpha, lr, weight_decay, views. An argument of"),
        ("temperature", "'' is not a number; give values, such as"),
        ("temperature=", "'' is not a number"),
        ("temperature=hot", "'hot' is not a number"),
        ("temperature=8..1", "8..1: the lower limit must be below the upper one"),
        ("temperature=0..8", "--temperature is 0.0: it must be above 0"),
        ("alpha=0.5..1.5", "--alpha is 1.5: it must be from 0 to 1"),
        ("lr=nan", "nan is not a finite number"),
        ("views=on", "without --augment there are no views"),
        ("max_norm.limit=1..4", "there is no --plugin max_norm in the command"),
        ("dkd.gamma=1..4", "there is no number among the arguments of dkd 'gamma'"),
        ("dkd.beta=-1..4", "neither may be below 0"),
        ("dkd.warmup=0.5..4", "'0.5' is not a whole number"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(search: str, message: str) -> None:
    with pytest.raises(UsageError, match="--search") as error:
        spaces(FitConfig(plugin=("dkd",)), [search])
    assert message in str(error.value)


def test_a_setting_is_searched_once() -> None:
    with pytest.raises(UsageError, match="lr has its values already"):
        spaces(FitConfig(), ["lr=1e-3,2e-3", "lr=1e-3..1e-2"])


@given(st.text())
def test_any_text_is_a_search_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        spaces(FitConfig(), [text])


@pytest.mark.parametrize("search", ["lr=", "views=on,", "max_norm.limit=", "lr=0.1..0.2,"])
def test_more_values_than_can_be_tried_are_refused_at_once(search: str) -> None:
    values = ",".join(["1"] * 100_000)
    with pytest.raises(UsageError, match=r"has 100,00\d values; it may have at most 1,000") as caught:
        space("student_kd", search + values, plugin=("max_norm",), augment="flip")
    assert len(str(caught.value)) < 300
