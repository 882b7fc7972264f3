"""Distillation methods in real fits: combinations, checkpoints, modes, resuming, several processes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain import BatchEnd, Callback, Checkpoint, DistillationCallback, Loader, Run, Trainer, flow
from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.datasets import load_dataset
from kdtrain.data.views import views
from kdtrain.models.registry import build_model
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_model, load_tensors, snapshot
from plugins.attention import Attention
from plugins.ctkd import Ctkd
from plugins.dist import Dist
from plugins.dkd import Dkd
from plugins.fitnet import FitNet
from plugins.hard_labels import HardLabels
from plugins.label_smoothing import LabelSmoothing
from plugins.logit_mse import LogitMse
from plugins.logit_std import LogitStd
from plugins.nkd import Nkd
from plugins.norm_kd import NormKd
from plugins.pkt import Pkt
from plugins.review_kd import ReviewKd
from plugins.rkd import Rkd
from plugins.similarity import Similarity
from plugins.srrl import Srrl
from plugins.vid import Vid
from plugins.wsld import Wsld
from plugins.wttm import Wttm
from tests.cli.conftest import Call, untrained_teacher
from tests.cli.test_resume import KILLER
from tests.engine.fits import Notes, mlp
from tests.runs import assert_same_run, metrics
from tests.tools import write_tiles

SGD = partial(flow.optim.SGD, lr=0.01)
Distil = Callable[..., tuple[list[dict[str, float]], dict[str, Any]]]
Flags = tuple[str | Path, ...]


@pytest.fixture
def teacher() -> flow.nn.Module:
    return mlp(7)


@pytest.fixture
def distil(train: Loader, validation: Loader, tmp_path: Path, teacher: flow.nn.Module) -> Distil:
    """Distils a small student; returns each step's losses, and its weights."""

    def distil(
        *callbacks: Callback, train: Loader = train, epochs: int = 2
    ) -> tuple[list[dict[str, float]], dict[str, Any]]:
        model, notes = mlp(), Notes()
        distillation = DistillationCallback(teacher, 4.0, 0.5, cache_directory=tmp_path / "cache")
        trainer = Trainer(model, SGD, [distillation, *callbacks, notes])
        trainer.fit(train, validation, epochs=epochs, directory=tmp_path)
        return notes.losses, snapshot(model)

    return distil


ON_LOGITS: dict[str, Callback] = {
    **{"dkd": Dkd(), "dist": Dist(), "logit_std": LogitStd(), "logit_mse": LogitMse()},
    **{"hard_labels": HardLabels(), "nkd": Nkd(), "wttm": Wttm(), "wsld": Wsld(), "norm_kd": NormKd()},
    "ctkd": Ctkd(),
}
ON_LAYERS: dict[str, tuple[Callback, int]] = {
    "fitnet_fc1_fc2": (FitNet("fc1", "fc2", weight=1.0), 1),
    "rkd_fc2": (Rkd("fc2", "fc2"), 1),
    "similarity_fc2": (Similarity("fc2", "fc2"), 1),
    "pkt_fc2": (Pkt("fc2", "fc2"), 1),
    "vid_fc1_fc2": (Vid("fc1", "fc2"), 1),
    "srrl_fc2": (Srrl("fc2", "fc2"), 1 + 4),  # to find out what the teacher does before its last layer
    "review_kd": (ReviewKd("fc1+fc2", "fc1+fc2", warmup=0), 2),
}
"""Each with the number of images that it needs to find out the teacher's layers and their shapes."""


@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_LAYERS])
def test_each_method_teaches(name: str, distil: Distil, train: Loader, teacher: flow.nn.Module) -> None:
    runs: list[int] = []
    teacher.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    replaces = name in ON_LOGITS
    plugin, tried = (ON_LOGITS[name], 0) if replaces else ON_LAYERS[name]
    rows, _ = distil(plugin, epochs=3)
    assert list(rows[0]) == (["task", name, "total"] if replaces else ["task", "kd", name, "total"])
    first, last = (np.mean([row[name] for row in part]) for part in (rows[:4], rows[-4:]))
    assert last < first, "the term gets smaller"
    assert sum(runs) == tried + 16 + train.num_images, (
        "16 to know the teacher again; logits and features are computed once"
    )


def test_ctkd_trains_its_temperature_along_with_the_student_and_logs_it(
    distil: Distil, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Ctkd(epochs=1)
    with caplog.at_level("INFO", "kdtrain.ctkd"):
        distil(plugin, epochs=3)
    assert plugin.term.theta.item() != 1.0
    temperature = 1 + 20 / (1 + np.exp(-plugin.term.theta.item()))
    assert caplog.messages == [f"ctkd: the temperature is {temperature:.2f} at the end."]


def test_a_teacher_of_features_sees_exactly_what_the_student_sees(
    distil: Distil, train: Loader, teacher: flow.nn.Module
) -> None:
    """With new images in each epoch it runs at every step, once for all terms."""
    seen: list[bytes] = []
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numpy().tobytes()))

    class Watch(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            assert seen[-1] == event.batch.inputs.numpy().tobytes()

    shift = views("shift=2", Normalization((0.5,), (1.0,)), 0, 0)
    shifted = Loader(train.inputs, train.targets, 128, num_classes=10, seed=0, views=shift)
    distil(Similarity("fc1", "fc1"), FitNet("fc1", "fc1"), Dkd(), Watch(), train=shifted)
    assert len(seen) == 3 + 2 + 2 * len(shifted), "three terms, one run a step"


def test_several_plugins_combine_in_any_order(distil: Distil) -> None:
    ends = []
    for turn in (1, -1):
        plugins: list[Callback] = [Dkd(), FitNet("fc1", "fc1", weight=3.0), LabelSmoothing(0.2)]
        rows, weights = distil(*plugins[::turn], epochs=1)
        assert set(rows[0]) == {"task", "dkd", "fitnet_fc1", "total"}
        for row in rows:
            expected = 0.5 * row["task"] + 0.5 / 20 * row["dkd"] + 3 * row["fitnet_fc1"]
            assert row["total"] == pytest.approx(expected, rel=1e-5)
        ends.append(weights)
    for name, array in ends[0].items():
        np.testing.assert_allclose(array, ends[1][name], atol=1e-6)


def test_methods_between_convolutions_of_the_registry(make_loader: Any, tmp_path: Path) -> None:
    flow.manual_seed(7)
    teacher = build_model("teacher_cnn", (1, 28, 28), 10)
    model = build_model("teacher_cnn", (1, 28, 28), 10)
    few, notes = make_loader(32, batch_size=16), Notes()
    plugins = (
        *(Attention("conv1", "conv1"), Attention("conv2", "conv2"), FitNet("conv1", "conv2")),
        *(Vid("conv2", "conv2"), Srrl("conv2", "fc1"), ReviewKd("conv1+conv2", "conv2+fc1")),
    )
    trainer = Trainer(model, SGD, [DistillationCallback(teacher), *plugins, notes])
    trainer.fit(few, few, epochs=1, directory=tmp_path)
    features = ["attention_conv1", "attention_conv2", "fitnet_conv1_conv2"]
    features += ["vid_conv2", "srrl_conv2_fc1", "review_kd"]
    assert list(notes.losses[0]) == ["task", "kd", *features, "total"]
    assert all(np.isfinite(list(row.values())).all() for row in notes.losses)


def test_a_regressor_is_saved_for_resuming_and_nowhere_else(
    distil: Distil, tmp_path: Path, card: ModelCard
) -> None:
    distil(FitNet("fc1", "fc2", weight=1.0), Checkpoint(card))
    best, last = (load_tensors(tmp_path / f"checkpoints/{name}.safetensors")[0] for name in ("best", "last"))
    names = [f"{layer}.{kind}" for layer in ("fc1", "fc2", "fc3") for kind in ("bias", "weight")]
    assert sorted(best) == names
    regressor = {f"term/0/loss.regressor.1.{kind}" for kind in ("bias", "weight")}
    assert {name for name in last if not name.startswith("optimizer/")} == regressor | {
        f"model/{name}" for name in names
    }
    model = load_model(tmp_path / "checkpoints/last.safetensors").build("cpu")
    assert sorted(snapshot(model)) == names, "the file serves as a checkpoint of the student all the same"


def test_a_regressor_is_trained_and_starts_from_the_seed(
    train: Loader, validation: Loader, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    ends = []
    for seed in (0, 0, 1):
        model = mlp()
        flow.manual_seed(int(np.random.default_rng().integers(2**31)))  # whatever was drawn before
        first: list[Any] = []

        class First(Callback):
            def on_fit_start(self, run: Run) -> None:
                first.extend(snapshot(module) for module in run.objective.modules())  # noqa: B023
                self.modules = list(run.objective.modules())

        watch = First()
        distillation = DistillationCallback(teacher, cache_directory=tmp_path / "cache")
        trainer = Trainer(model, SGD, [distillation, FitNet("fc1", "fc2", weight=1.0), watch], seed=seed)
        trainer.fit(train, validation, epochs=1, directory=tmp_path)
        after = snapshot(watch.modules[0])
        assert all(not np.array_equal(array, after[name]) for name, array in first[0].items())
        ends.append(first[0]["loss.regressor.1.weight"])
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Flags:
    """Flags for small images and a teacher that has learnt nothing."""
    folder = tmp_path_factory.mktemp("tiles")
    data = write_tiles(folder / "data", mnist)
    teacher = untrained_teacher(folder / "teacher.safetensors", load_dataset("mnist", data))
    return (
        *("--recipe=none", f"--data-dir={data}", "--val-size=300", "--batch-size=64"),
        f"--teacher-checkpoint={teacher}",
    )


LAYERS = "student_layer=fc1,teacher_layer=fc1"
KILLED = {
    "loss.regressor.1.weight": (f"fitnet,{LAYERS}", "dkd,warmup=3"),
    "theta": (
        *("ctkd,epochs=4", f"vid,{LAYERS}", f"srrl,{LAYERS}"),
        "review_kd,student_layers=fc1+fc2,teacher_layers=fc1+fc2,warmup=4",
    ),
}
"""Plugins by the name of a weight of their first term that is a module."""


@pytest.mark.parametrize("weight", KILLED)
def test_a_killed_run_whose_terms_learn_ends_like_one_that_was_not(
    weight: str, tmp_path: Path, tiles: Flags, spawn: Call
) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    plugins = (*KILLED[weight], "killer.py:Killer")
    words = [word for plugin in plugins for word in ("--plugin", plugin)]
    flags = ("--mode", "student_kd", *tiles, "--epochs", "4", *words)
    killed = spawn.any_code("fit", *flags, cwd=tmp_path)
    assert "its process was ended by signal SIGKILL" in killed.stderr, killed.stderr
    run = tmp_path / "logs/student_kd/version_0"
    spawn("fit", "--resume", run, cwd=tmp_path)
    spawn("fit", *flags, cwd=tmp_path)
    assert_same_run(run, tmp_path / "logs/student_kd/version_1")
    tensors, _ = load_tensors(run / "checkpoints/last.safetensors")
    assert f"term/0/{weight}" in tensors


def test_in_a_comparison_a_method_is_for_distilled_student(tmp_path: Path, tiles: Flags, spawn: Call) -> None:
    flags = ("--mode", "compare", *tiles, "--epochs", "1", "--plugin", "dist")
    spawn("fit", *flags, cwd=tmp_path)
    runs = tmp_path / "logs/compare/version_0/seed_0"
    terms = {
        mode: {name for name in metrics(runs / mode)[0] if name.startswith("loss/")}
        for mode in ("student", "student_kd")
    }
    assert terms["student"] == {"loss/task", "loss/total"}
    assert terms["student_kd"] == {"loss/task", "loss/dist", "loss/total"}
    assert json.loads((runs / "student_kd/result.json").read_text())["status"] == "completed"


WRONG_USES = {
    "student dkd": ("--plugin dkd", "needs a teacher", "--mode student has none", "student_kd"),
    "student_kd fitnet,student_layer=fc9,teacher_layer=fc1": (
        "no layer of the student (StudentMlp) 'fc9'",
        "fc1, fc2, fc3",
    ),
}


@pytest.mark.parametrize("use", WRONG_USES)
def test_wrong_uses_end_in_one_line_that_explains_them(
    use: str, tmp_path: Path, tiles: Flags, spawn: Call
) -> None:
    mode, plugin = use.split()
    done = spawn.any_code("fit", "--mode", mode, *tiles, "--epochs", "1", "--plugin", plugin, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if not re.search("^The teacher is| recognises ", line)]
    assert len(lines) == 1, done.stderr
    for part in WRONG_USES[use]:
        assert part in lines[0]


def test_two_processes_distil_as_one_with_the_same_batches(tmp_path: Path, tiles: Flags, spawn: Call) -> None:
    """Also the regressor, which is no part of the student, and the limit on the norm of all gradients."""
    plugins = ("--plugin", "dkd,warmup=1", "--plugin", "fitnet,student_layer=fc1,teacher_layer=fc1")
    flags = ("--mode", "student_kd", *tiles, "--limit-train", "320", "--epochs", "1", *plugins)
    sgd = ("--optimizer", "sgd", "--lr", "0.01", "--clip-grad-norm", "0.5", "--weight-decay", "0.1")
    ends = []
    for processes, batch_size in (("1", "64"), ("2", "32")):
        words = (*flags, *sgd, "--batch-size", batch_size, "--nproc-per-node", processes)
        folder = tmp_path / processes
        folder.mkdir()
        spawn("fit", *words, cwd=folder)
        ends.append(load_tensors(folder / "logs/student_kd/version_0/checkpoints/last.safetensors")[0])
    alone, together = ends
    assert "term/0/loss.regressor.1.weight" in alone
    for name, array in alone.items():
        np.testing.assert_allclose(together[name].astype(float), array.astype(float), rtol=1e-4, atol=1e-5)
