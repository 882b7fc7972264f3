"""Runs in TensorBoard, read from a real one over HTTP; and its event files on a full disk."""

from __future__ import annotations

import html
import io
import json
import re
import resource
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdtrain import EventFile, KdtrainError
from kdtrain.data.dataset import Dataset
from kdtrain.experiment.compare import run_comparison
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import FitConfig
from tests.tools import read_scalars, read_tested, wait_until, write_tiles

RUNS = {mode: f"compare/version_0/seed_0/{mode}" for mode in ("teacher", "student_kd", "student")}

EACH_EPOCH = ("val/accuracy", "val/cross_entropy", "images_per_second")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    """A comparison's run directories: two epochs of 75 steps."""
    folder = tmp_path_factory.mktemp("tensorboard")
    tiles = write_tiles(folder / "tiles", mnist)
    run_comparison(
        Session.open(FitConfig(epochs=2, batch_size=16, val_size=300, data_dir=tiles, logdir=folder / "logs"))
    )
    return folder / "logs"


class TensorBoard:
    """The HTTP interface of a running TensorBoard."""

    def __init__(self, address: str) -> None:
        self.address = address

    def raw(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.address}data/{path}", timeout=30) as response:
            content: bytes = response.read()
        return content

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.raw(f"{path}?{urllib.parse.urlencode(query)}"))

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.address}data/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read())

    def has_read_everything(self) -> bool:
        scalars = self.get("plugin/scalars/tags")
        pictures = self.get("plugin/images/tags")
        return "compare/version_0" in pictures and all(
            "test/accuracy" in scalars.get(r, ()) for r in RUNS.values()
        )


@pytest.fixture(scope="module")
def tensorboard(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorBoard]:
    """Starts TensorBoard on a port that is free, and waits until it has read all files."""
    printed = tmp_path_factory.mktemp("output") / "tensorboard.txt"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--load_fast=false"]
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", "0"], stdout=output, stderr=output
        )

    def addresses() -> list[str]:
        assert process.poll() is None, printed.read_text()
        return re.findall(r"http://127\.0\.0\.1:\d+/", printed.read_text())

    try:
        wait_until(addresses, seconds=90)
        board = TensorBoard(addresses()[0])
        wait_until(board.has_read_everything, seconds=90)
        yield board
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_runs_have_telling_names(tensorboard: TensorBoard) -> None:
    assert set(tensorboard.get("runs")) == {"compare/version_0", *RUNS.values()}


def test_scalars_of_each_run(tensorboard: TensorBoard) -> None:
    tested = {"test/accuracy", "test/cross_entropy", "test/calibration_error"}
    tested |= {f"{part}/{name}" for part in ("val", "test") for name in ("balanced_accuracy", "macro_f1")}
    of_classes = {f"val_class_accuracy/{digit}" for digit in range(4)}
    common = {"loss/task", "loss/total", "learning_rate", *EACH_EPOCH, *tested, *of_classes}
    of_students = {"test/agreement", "test/kl_from_teacher"}
    of_mode = {"teacher": set(), "student": of_students, "student_kd": {"loss/kd", *of_students}}
    tags = tensorboard.get("plugin/scalars/tags")
    for mode, run in RUNS.items():
        assert set(tags[run]) == common | of_mode[mode]


@pytest.mark.parametrize("mode", RUNS)
def test_curves_have_the_figures_of_the_run(tensorboard: TensorBoard, logs: Path, mode: str) -> None:
    def curve(tag: str) -> dict[int, float]:
        points = tensorboard.get("plugin/scalars/scalars", run=RUNS[mode], tag=tag)
        return {step: value for _, step, value in points}

    run = logs / RUNS[mode]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [75, 150]
    for tag in EACH_EPOCH:
        expected = {row["step"]: pytest.approx(row[tag], rel=1e-5, abs=0.06) for row in rows}
        assert curve(tag) == expected
    for tag in ("loss/task", "loss/total", "learning_rate"):
        assert list(curve(tag)) == [1, 50, 100, 150]  # the first step, then every 50th
    assert curve("learning_rate")[150] == pytest.approx(rows[-1]["learning_rate"])
    test = read_tested(run)
    assert curve("test/accuracy") == {150: pytest.approx(test["test_accuracy_fraction"])}
    assert curve("test/cross_entropy") == {150: pytest.approx(test["test_cross_entropy_nats"])}
    if mode == "student_kd":
        task, kd, total = (curve(f"loss/{name}")[50] for name in ("task", "kd", "total"))
        assert total == pytest.approx(0.1 * task + 0.9 * kd, rel=1e-5)


def test_configuration_is_shown_as_text(tensorboard: TensorBoard, logs: Path) -> None:
    for run in RUNS.values():
        (tag,) = tensorboard.get("plugin/text/tags")[run]
        (shown,) = tensorboard.get("plugin/text/text", run=run, tag=tag)
        lines = html.unescape(re.sub(r"<[^>]+>", "", shown["text"])).strip()
        assert lines == (logs / run / "config.toml").read_text().strip()


def test_comparison_is_among_the_images(tensorboard: TensorBoard, logs: Path) -> None:
    (shown,) = tensorboard.get("plugin/images/images", run="compare/version_0", tag="comparison", sample="0")
    png = tensorboard.raw(f"plugin/images/individualImage?{shown['query']}")
    with Image.open(io.BytesIO(png)) as image, Image.open(logs / "compare/version_0/compare.png") as file:
        assert np.array_equal(np.asarray(image), np.asarray(file.convert("RGB")))


def test_hyperparameters_stand_beside_the_final_metrics(tensorboard: TensorBoard, logs: Path) -> None:
    table = tensorboard.post(
        "plugin/hparams/session_groups",
        experimentName="",
        allowedStatuses=["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        colParams=[],
        startIndex=0,
        sliceSize=100,
    )
    rows = {row["name"]: row for row in table["sessionGroups"]}
    assert set(rows) == set(RUNS.values())
    figures = json.loads((logs / "compare/version_0/compare.json").read_text())
    for mode, run in RUNS.items():
        hparams = rows[run]["hparams"]
        assert hparams["mode"] == mode
        assert hparams["arch"] == ("teacher_cnn" if mode == "teacher" else "student_mlp")
        assert (hparams["dataset"], hparams["lr"], hparams["seed"]) == ("tiles", 0.003, 0)
        assert hparams["alpha"] == (0.9 if mode == "student_kd" else 0)
        assert not {"logdir", "data_dir", "model_save_dir"} & hparams.keys()
        test = read_tested(logs / run)
        agreement = {row["model"]: row["test_agreement_fraction"] for row in figures["models"]}[mode]
        metrics = {metric["name"]["tag"]: metric["value"] for metric in rows[run]["metricValues"]}
        assert metrics == {
            "test/accuracy": pytest.approx(test["test_accuracy_fraction"]),
            "test/cross_entropy": pytest.approx(test["test_cross_entropy_nats"]),
            "test/calibration_error": pytest.approx(test["test_calibration_error_fraction"]),
            "test/balanced_accuracy": pytest.approx(test["test_balanced_accuracy_fraction"]),
            "test/macro_f1": pytest.approx(test["test_macro_f1_fraction"]),
            **({} if mode == "teacher" else {"test/agreement": pytest.approx(agreement)}),
        }
    names = tensorboard.post("plugin/hparams/experiment", experimentName="")["hparamInfos"]
    assert {info["name"] for info in names} == set(rows[RUNS["student"]]["hparams"])


def test_curve_can_be_followed_while_the_run_goes_on(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.add_scalars({"loss": 0.5}, 1)
    file.flush()
    assert read_scalars(tmp_path) == {"loss": {1: 0.5}}
    file.close()


def write_until_full(file: EventFile) -> None:
    for step in range(1000):
        file.add_scalars({"loss": 0.5}, step)
    file.flush()


def test_full_disk_is_an_error_where_it_is_met(tmp_path: Path) -> None:
    threads = threading.active_count()
    file = EventFile(tmp_path)
    assert threading.active_count() == threads
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))  # stands in for the disk
    try:
        with pytest.raises(KdtrainError, match=rf"cannot write TensorBoard's file in {tmp_path}: .* large"):
            write_until_full(file)
        with pytest.raises(KdtrainError, match="cannot write"):
            file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
