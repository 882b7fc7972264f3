"""The names of held-out figures: old ones are read, from events and from files, and replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdtrain.callbacks.monitor import Monitor
from kdtrain.metrics.names import Metrics
from kdtrain.store.metrics_file import read_metrics, training_seconds


def test_an_old_name_gives_the_figure_and_a_warning() -> None:
    metrics = Metrics({"val/accuracy": 0.5, "loss/total": 2.0})
    with pytest.warns(DeprecationWarning, match="eval/accuracy is now called val/accuracy"):
        assert metrics["eval/accuracy"] == 0.5
    assert metrics["val/accuracy"] == 0.5  # no warning: it would be an error
    assert "eval/accuracy" in metrics
    assert "eval/loss" not in metrics
    assert dict(metrics) == {"val/accuracy": 0.5, "loss/total": 2.0}
    with pytest.raises(KeyError, match="val/acuracy"):
        metrics["val/acuracy"]


def test_what_an_evaluation_returns_has_no_prefix_and_answers_to_old_names() -> None:
    evaluation = Metrics({"accuracy": 0.5})
    with pytest.warns(DeprecationWarning, match="is now called accuracy"):
        assert evaluation["eval/accuracy"] == 0.5
    assert dict(evaluation.on_held_out_images()) == {"val/accuracy": 0.5}
    assert dict(Metrics({"eval/accuracy": 0.5}).on_held_out_images()) == {"val/accuracy": 0.5}


def test_a_monitor_takes_an_old_name() -> None:
    with pytest.warns(DeprecationWarning, match="is now called val/accuracy"):
        assert Monitor("eval/accuracy", "max").improved({"val/accuracy": 0.5})


def test_the_file_of_an_old_run_is_read_under_the_current_names(tmp_path: Path) -> None:
    row = {"epoch": 1, "step": 8, "eval/accuracy": 0.5, "eval/cross_entropy": 1, "train_seconds": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"eval_seconds": 0.0204}) + "\n")
    (read,) = read_metrics(tmp_path)
    assert (read["val/accuracy"], read["val/cross_entropy"]) == (0.5, 1)
    assert training_seconds([read, read]) == 0.241
