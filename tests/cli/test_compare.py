"""``kdtrain fit --mode compare``: three models a seed, paired students, their figures, files and tables."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli
from PIL import Image

from kdtrain.data.datasets import load_dataset
from kdtrain.data.draws import derive_seed
from kdtrain.engine.predict import predict_logits
from kdtrain.experiment import fit
from kdtrain.experiment.loaders import prepare
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import member_logits
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.runtime.processes import available_cores
from kdtrain.store.checkpoint import load_model, load_tensors
from kdtrain.store.record import logits_key
from tests.cli.conftest import EPOCH, MODES, Call, Finished, Fitted, run, untrained_teacher
from tests.runs import metrics
from tests.tools import ROOT, read_scalars, read_tested
from tests.tools import read_result as result


@dataclass(frozen=True)
class Compared:
    folder: Path
    process: Finished

    @property
    def directory(self) -> Path:
        return self.folder / "logs/compare/version_0"

    @property
    def figures(self) -> Any:
        return json.loads((self.directory / "compare.json").read_text())


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Compared:
    """A comparison over two seeds, with defaults but for the size of everything."""
    folder = tmp_path_factory.mktemp("compare")
    flags = ("--data-dir", tiles, "--val-size", "300", "--epochs=2", "--batch-size=64", "--recipe=none")
    pictures = ("--image-save-dir", "pictures", "--image-save-name", "three models.png")
    finished = spawn("fit", "--mode", "compare", "--seeds", "2", *flags, *pictures, cwd=folder)
    return Compared(folder, finished)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Compared:
    """A comparison with all that can be asked for: teachers of their own and both controls."""
    folder = tmp_path_factory.mktemp("chosen")
    flags = (
        *(f"--data-dir={tiles}", "--recipe=none", "--val-size=300", "--epochs=1", "--batch-size=64"),
        "--seeds=2",
    )
    words = ("--teacher-per-seed", "--with-label-smoothing", "--with-hard-labels")
    spawn("fit", "--mode", "teacher", *flags[:-1], "--limit-train", "100", cwd=folder)
    finished = spawn("fit", "--mode", "compare", *flags, *words, cwd=folder)
    return Compared(folder, finished)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Compared:
    """The recipe and the spellings of OneFlow's sample."""
    folder = tmp_path_factory.mktemp("sample")
    recipe = "--recipe sample --epochs 2 --batch_size=64"
    spellings = "--model_type=compare --model_save_dir=output/models --image_save_name=output/images/c.png"
    words = f"{spellings} {recipe}".split()
    finished = spawn("fit", *words, f"--data_dir={tiles}", cwd=folder)
    return Compared(folder, finished)


def rows_of(compared: Compared, model: str, seed: int) -> Any:
    return [row for row in compared.figures["models"] if (row["model"], row["seed"]) == (model, seed)]


def best_by_held_out_images(compared: Compared, model: str) -> Path:
    """The weights of the seed with the highest accuracy on held-out images, of equals the first."""
    rows = [row for row in compared.figures["models"] if row["model"] == model]
    best = max(rows, key=lambda row: max(point["accuracy_fraction"] for point in row["held_out_history"]))
    path: Path = compared.directory / best["directory"] / "checkpoints/best.safetensors"
    return path


RUNS = [("teacher", 0), ("student_kd", 0), ("student", 0), ("student_kd", 1), ("student", 1)]


def test_two_runs_per_seed_and_one_teacher(two_seeds: Compared) -> None:
    folders = {path.relative_to(two_seeds.directory) for path in two_seeds.directory.glob("seed_*/*")}
    assert folders == {Path(f"seed_{seed}") / mode for mode, seed in RUNS}
    for mode, seed in RUNS:
        run = two_seeds.directory / f"seed_{seed}" / mode
        assert (result(run)["mode"], result(run)["seed"]) == (mode, seed)
        config = tomli.loads((run / "config.toml").read_text())
        assert (config["mode"], config["seed"], config["seeds"]) == (mode, seed, 1)
        assert {path.name for path in (run / "checkpoints").iterdir()} == {
            "best.safetensors", "last.safetensors"
        }  # fmt: skip
    config = tomli.loads((two_seeds.directory / "config.toml").read_text())
    assert (config["mode"], config["seeds"]) == ("compare", 2)


def test_students_start_from_the_same_weights_and_batch(two_seeds: Compared) -> None:
    first = {
        (seed, mode): read_scalars(two_seeds.directory / f"seed_{seed}" / mode)["loss/task"][1]
        for seed in (0, 1)
        for mode in ("student_kd", "student")
    }
    for seed in (0, 1):
        assert first[seed, "student_kd"] == first[seed, "student"]
    assert first[0, "student"] != first[1, "student"]


def test_seed_of_a_run_decides_its_weights_order_and_dropout(chosen: Compared, tiles: Path) -> None:
    """The loss of the first step, worked out once more from the seed alone."""
    dataset = load_dataset(data_dir=tiles)
    for seed in (0, 1):
        flow.manual_seed(derive_seed(seed, "weights", "teacher"))
        teacher = build_model("teacher_cnn", dataset.image_shape, dataset.num_classes).train()
        data = prepare(dataset, FitConfig(val_size=300, batch_size=64), "teacher", seed, "cpu")
        batch = next(data.train.epoch(1))
        flow.manual_seed(derive_seed(seed, "dropout", 1, 0))
        loss = flow.nn.functional.cross_entropy(teacher(batch.inputs), batch.targets).item()
        logged = read_scalars(chosen.directory / f"seed_{seed}/teacher")["loss/task"][1]
        assert logged == pytest.approx(loss, rel=1e-6)


def test_the_students_of_a_seed_differ_in_the_objective_only(two_seeds: Compared) -> None:
    """The baseline has the budget, the schedule and the batches of the distilled student."""
    for seed in (0, 1):
        runs = [two_seeds.directory / f"seed_{seed}" / mode for mode in ("student_kd", "student")]
        distilled, plain = (tomli.loads((run / "config.toml").read_text()) for run in runs)
        assert "teacher_checkpoint" in distilled
        of_teachers = ("mode", "teacher_checkpoint", "teacher_arch")
        assert [{k: v for k, v in one.items() if k not in of_teachers} for one in (distilled, plain)] == [
            {k: v for k, v in plain.items() if k not in of_teachers}
        ] * 2
        assert result(runs[0])["steps"] == result(runs[1])["steps"] == 2 * 19
        rates = [read_scalars(run)["learning_rate"] for run in runs]
        assert rates[0] == rates[1]


def test_students_have_teacher_of_first_seed_or_of_their_own(two_seeds: Compared, chosen: Compared) -> None:
    for compared, seeds_of_teachers in ((two_seeds, (0, 0)), (chosen, (0, 1))):
        for seed, teacher_seed in enumerate(seeds_of_teachers):
            (row,) = rows_of(compared, "student_kd", seed)
            config = tomli.loads((compared.directory / row["directory"] / "config.toml").read_text())
            teacher = compared.directory / f"seed_{teacher_seed}/teacher/checkpoints/best.safetensors"
            assert compared.folder / config["teacher_checkpoint"] == teacher
    assert two_seeds.figures["summaries"]["teacher"]["test_accuracy_percent"]["sd"] is None
    assert chosen.figures["summaries"]["teacher"]["test_accuracy_percent"]["sd"] > 0
    assert "same teacher" in two_seeds.process.stdout
    assert "same teacher" not in chosen.process.stdout


def test_every_key_of_the_file_is_explained(chosen: Compared, sample: Compared) -> None:
    page = (ROOT / "docs/result-json.md").read_text()

    def keys(value: Any) -> set[str]:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = set(value) if isinstance(value, dict) else set()
        return own.union(*map(keys, parts))

    names = keys(chosen.figures) | keys(sample.figures)
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_a_student_with_smoothed_labels_differs_in_the_labels_only(chosen: Compared) -> None:
    for seed in (0, 1):
        (smoothed,), (plain,) = (rows_of(chosen, model, seed) for model in ("student_ls", "student"))
        runs = [chosen.directory / row["directory"] for row in (smoothed, plain)]
        configs = [tomli.loads((run / "config.toml").read_text()) for run in runs]
        assert configs[0].pop("plugin") == ["label_smoothing"]
        assert configs[1].pop("plugin") == []
        assert configs[0] == configs[1]
        losses = [read_scalars(run)["loss/task"][1] for run in runs]
        assert losses[0] != losses[1]
        assert losses[0] == pytest.approx(losses[1], rel=0.1)  # the same weights and images, other labels


def test_a_student_with_hard_labels_differs_from_the_distilled_one_in_the_targets_only(
    chosen: Compared,
) -> None:
    for seed in (0, 1):
        runs = [chosen.directory / f"seed_{seed}/{model}" for model in ("student_hard", "student_kd")]
        configs = [tomli.loads((run / "config.toml").read_text()) for run in runs]
        assert configs[0].pop("plugin") == ["hard_labels"]
        assert configs[1].pop("plugin") == []
        assert configs[0] == configs[1]
        first = [read_scalars(run)["loss/task"][1] for run in runs]
        assert first[0] == first[1], "the same weights and images"
        terms = [{name for name in metrics(run)[0] if name.startswith("loss/")} for run in runs]
        assert terms == [{"loss/task", f"loss/{term}", "loss/total"} for term in ("hard_labels", "kd")]


def test_controls_are_compared_with_both_other_students_and_not_kept(chosen: Compared) -> None:
    pairs = [(one["model"], one["baseline"]) for one in chosen.figures["differences"]]
    assert pairs == [
        *(("student_kd", "student"), ("student_ls", "student"), ("student_kd", "student_ls")),
        *(("student_hard", "student"), ("student_kd", "student_hard")),
    ]
    models = {path.stem for path in (chosen.folder / "logs/models").iterdir()}
    assert models == set(MODES)


def test_models_of_the_best_seed_are_kept(two_seeds: Compared, chosen: Compared) -> None:
    for compared, mode in itertools.product((two_seeds, chosen), MODES):
        kept = compared.folder / "logs/models" / f"{mode}.safetensors"
        assert kept.read_bytes() == best_by_held_out_images(compared, mode).read_bytes()


def test_a_finished_comparison_keeps_its_figures_when_it_is_resumed(chosen: Compared, call: Call) -> None:
    before = chosen.figures
    finished = call("fit", "--resume", "logs/compare/version_0", cwd=chosen.folder)
    assert not [line for line in finished.stderr.splitlines() if EPOCH.fullmatch(line)]
    for ours, theirs in zip(chosen.figures["models"], before["models"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_test_set_is_read_once_per_model(
    fitted: Fitted, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"  # a file, because every fit is in a process of its own

    def logged(function: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            with log.open("a") as file:
                file.write("test\n")
            return function(*arguments, **options)

        return wrapper

    monkeypatch.setattr(fit, "predict_logits", logged(predict_logits))
    monkeypatch.setattr(fit, "member_logits", logged(member_logits))
    flags = (*fitted.flags, "--teacher-checkpoint", fitted.model("teacher"), "--epochs", "1")
    call("fit", "--mode", "compare", *flags)
    assert log.read_text().split() == ["test"] * 3


def test_figures_agree_with_the_runs(two_seeds: Compared) -> None:
    figures = two_seeds.figures
    assert [(row["model"], row["seed"]) for row in figures["models"]] == RUNS
    for row in figures["models"]:
        run = two_seeds.directory / f"seed_{row['seed']}" / row["model"]
        assert row["test_accuracy_fraction"] == read_tested(run)["test_accuracy_fraction"]
        assert row["test_cross_entropy_nats"] == read_tested(run)["test_cross_entropy_nats"]
        assert row["test_errors"] == read_tested(run)["test_errors"]
        assert row["test_calibration_error_fraction"] == read_tested(run)["test_calibration_error_fraction"]
        assert figures["summaries"][row["model"]]["parameters"] == read_tested(run)["parameters"]
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        seconds = sum(epoch["train_seconds"] + epoch["eval_seconds"] for epoch in epochs)
        assert row["seconds"] == pytest.approx(seconds)
        assert row["seconds"] <= result(run)["seconds"]
        assert row["held_out_history"] == [
            {
                "epoch": epoch["epoch"],
                "accuracy_fraction": epoch["val/accuracy"],
                "cross_entropy_nats": epoch["val/cross_entropy"],
            }
            for epoch in epochs
        ]


def test_logits_over_the_test_set_are_kept(two_seeds: Compared, tiles: Path) -> None:
    """What the file holds is what the saved weights make of the test images, in the data's order."""
    figures = two_seeds.figures
    logits, _ = load_tensors(two_seeds.directory / figures["files"]["test_logits"])
    labels = logits.pop("labels")
    dataset = load_dataset(data_dir=tiles)
    np.testing.assert_array_equal(labels, dataset.test.labels)
    assert logits.keys() == {logits_key(row["model"], row["seed"]) for row in figures["models"]}
    images = flow.tensor(dataset.test.normalized(dataset.normalization))
    for row in figures["models"]:
        assert logits[logits_key(row["model"], row["seed"])].dtype == np.float32
        own = logits[logits_key(row["model"], row["seed"])].astype(np.float64)
        best = load_model(two_seeds.directory / row["directory"] / "checkpoints/best.safetensors")
        np.testing.assert_allclose(own, best.build()(images).numpy(), atol=1e-5)
        assert (own.argmax(axis=1) != labels).sum() == row["test_errors"]


def test_gain_is_the_mean_difference_of_the_pairs(two_seeds: Compared) -> None:
    errors = {(row["model"], row["seed"]): row["test_errors"] for row in two_seeds.figures["models"]}
    gains = [(errors["student", seed] - errors["student_kd", seed]) / 3 for seed in (0, 1)]  # of 300, in %
    gain = two_seeds.figures["differences"][0]["gain_percentage_points"]
    assert gain["mean"] == pytest.approx(statistics.mean(gains))
    assert gain["sd"] == pytest.approx(statistics.stdev(gains))
    # Student's t with one degree of freedom is Cauchy's distribution, whose quantile is a tangent.
    half_width = math.tan(math.pi * (0.975 - 0.5)) * statistics.stdev(gains) / math.sqrt(2)
    assert gain["high"] - gain["mean"] == pytest.approx(half_width)
    assert gain["mean"] - gain["low"] == pytest.approx(half_width)


def test_fidelity_is_to_the_teacher(two_seeds: Compared) -> None:
    figures = two_seeds.figures
    logits, _ = load_tensors(two_seeds.directory / figures["files"]["test_logits"])
    z = {name: array.astype(np.float64) for name, array in logits.items()}
    p = {name: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for name, x in z.items() if name != "labels"}
    teacher = p["teacher/0"]
    for row in figures["models"]:
        if row["model"] == "teacher":
            assert row["test_agreement_fraction"] is row["test_kl_from_teacher_nats"] is None
            continue
        own = p[logits_key(row["model"], row["seed"])]
        divergence = (teacher * np.log(teacher / own)).sum(axis=1).mean()
        assert row["test_kl_from_teacher_nats"] == pytest.approx(divergence, rel=1e-6)
        assert row["test_agreement_fraction"] == (teacher.argmax(1) == own.argmax(1)).mean()
        scalars = read_scalars(two_seeds.directory / row["directory"])
        assert scalars["test/agreement"] == {38: pytest.approx(row["test_agreement_fraction"])}
        assert scalars["test/kl_from_teacher"] == {38: pytest.approx(divergence, rel=1e-6)}


def test_tables_verdict_and_paths_on_stdout(two_seeds: Compared) -> None:
    out, figures = two_seeds.process.stdout, two_seeds.figures
    for mode in MODES:
        test, cost = [line.split() for line in out.splitlines() if line.split()[:1] == [mode]][:2]
        model = figures["summaries"][mode]
        assert float(test[1]) == pytest.approx(model["test_accuracy_percent"]["mean"], abs=0.005)
        assert {f"{model['parameters']:,}", f"{model['multiply_adds']:,}"} <= set(cost)
    verdict, *_, evidence, gap, image, report, json_file, following, photo, own = out.splitlines()
    assert (verdict, evidence, gap) == (figures["verdict"], figures["evidence"], figures["gap"])
    assert following == "Next: open the report in a browser, or"
    assert photo.startswith("  classify a photo: kdtrain infer my_digit.jpg ")
    assert own == "  your own images:  kdtrain fit --mode compare --dataset folder:DIR"
    assert image.endswith(": pictures/three models.png")
    assert report.endswith(": logs/compare/version_0/report.html")
    assert json_file.endswith(": logs/compare/version_0/compare.json")
    lines = two_seeds.process.stderr.splitlines()
    said = [line for line in lines if not EPOCH.fullmatch(line)]
    assert [line.split()[0] for line in said] == ["Seeds", "Teacher:"]
    assert {line.split()[0] for line in lines if line not in said} == {f"{m}/{s}" for m, s in RUNS}
    assert len(lines) == len(said) + 5 * 2


def test_picture_is_large_enough_to_read_and_copied(two_seeds: Compared) -> None:
    picture = two_seeds.directory / "compare.png"
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        assert len(image.convert("L").getcolors(256) or ()) > 20  # not blank
    assert (two_seeds.folder / "pictures/three models.png").read_bytes() == picture.read_bytes()


def test_recipe_of_the_sample(sample: Compared) -> None:
    recipe, first, *epochs = sample.process.stderr.splitlines()
    assert recipe.startswith("Recipe: sample (")
    assert first.startswith("--val-size 0")
    assert "optimistic" in first
    assert len(epochs) == 3 * 2
    assert all(EPOCH.fullmatch(line) for line in epochs)
    config = tomli.loads((sample.directory / "seed_0/student_kd/config.toml").read_text())
    assert (config["optimizer"], config["lr"], config["schedule"]) == ("adadelta", 1.0, "constant")
    assert (config["temperature"], config["alpha"], config["batch_size"]) == (5.0, 0.7, 64)
    models = {path.name for path in (sample.folder / "output/models").iterdir()}
    assert models == {f"{mode}.safetensors" for mode in MODES}
    picture = (sample.directory / "compare.png").read_bytes()
    assert (sample.folder / "output/images/c.png").read_bytes() == picture


def test_without_held_out_images_the_test_set_is_what_chooses(sample: Compared) -> None:
    for mode in MODES:
        run = sample.directory / "seed_0" / mode
        assert read_tested(run)["test_accuracy_fraction"] == max(row["val/accuracy"] for row in metrics(run))
        assert result(run)["steps"] == 2 * 24  # all 1,500 images, in batches of 64


def test_one_seed_is_judged_by_its_test_images(sample: Compared) -> None:
    figures = sample.figures
    assert figures["differences"][0]["gain_percentage_points"]["low"] is None
    assert figures["outcome"] == "undecided"
    errors = {row["model"]: row["test_errors"] for row in figures["models"]}
    one = figures["differences"][0]["one_seed"]
    assert one["only_model_right"] - one["only_baseline_right"] == errors["student"] - errors["student_kd"]
    assert figures["verdict"] in sample.process.stdout


def test_given_teacher_is_tested_once_and_not_trained(fitted: Fitted, call: Call, tmp_path: Path) -> None:
    teacher = fitted.model("teacher")
    flags = ("--seeds", "2", "--teacher-checkpoint", teacher, "--epochs", "1")
    finished = call("fit", "--mode", "compare", *fitted.flags, *flags)
    assert str(teacher) in finished.stderr.splitlines()[0]
    compared = Compared(tmp_path, finished)
    rows = [(row["model"], row["seed"]) for row in compared.figures["models"]]
    students = [(mode, seed) for seed in (0, 1) for mode in ("student_kd", "student")]
    assert rows == [("teacher", 0), *students]
    tested = compared.figures["models"][0]
    assert tested["test_errors"] == read_tested(fitted.run("teacher"))["test_errors"]
    assert tested["held_out_history"] == []
    assert tested["directory"] is None
    logits, _ = load_tensors(compared.directory / compared.figures["files"]["test_logits"])
    assert set(logits) == {
        "labels",
        *(logits_key(row["model"], row["seed"]) for row in compared.figures["models"]),
    }
    assert {path.name for path in compared.directory.glob("seed_*/*")} == {"student_kd", "student"}
    assert not (tmp_path / "logs/models/teacher.safetensors").exists()


def test_early_stopping_ends_each_model_by_itself(fitted: Fitted, call: Call, tmp_path: Path) -> None:
    flags = ("--teacher-checkpoint", fitted.model("teacher"), "--epochs", "40", "--early-stopping", "1")
    finished = call("fit", "--mode", "compare", *fitted.flags, *flags)
    compared = Compared(tmp_path, finished)
    for mode in ("student_kd", "student"):
        ended = result(compared.directory / "seed_0" / mode)
        assert ended["status"] == "stopped"
        assert ended["epochs"] < 40
        (line,) = [line for line in finished.stderr.splitlines() if line.startswith(f"{mode}: ")]
        assert f"epoch {ended['epochs']}" in line
        assert ended["reason"] in line
    histories = {row["model"]: len(row["held_out_history"]) for row in compared.figures["models"]}
    assert histories["student_kd"] == result(compared.directory / "seed_0/student_kd")["epochs"]


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
def test_side_by_side_and_one_after_another_give_the_same_weights(
    tmp_path: Path, fitted: Fitted, tiles: Path
) -> None:
    """Of networks with one thread. The number of threads of others changes last bits."""
    teacher = untrained_teacher(tmp_path / "teacher.safetensors", load_dataset(data_dir=tiles), "student_mlp")
    folders = {"one": {available_cores()[0]}, "all": set(available_cores())}
    flags = [*fitted.flags, "--seeds", "2", "--teacher-checkpoint", teacher]
    for name, cores in folders.items():
        pinned = f"import os, sys; os.sched_setaffinity(0, {cores}); from kdtrain.cli import main; "
        program = ("-c", f"{pinned}sys.exit(main())")
        (tmp_path / name).mkdir()
        finished = run(sys.executable, *program, "fit", "--mode", "compare", *flags, cwd=tmp_path / name)
        assert finished.returncode == 0, finished.stderr
    one, every = (
        {
            path.relative_to(tmp_path / name): load_model(path).weights
            for path in (tmp_path / name).glob("logs/compare/*/*/*/checkpoints/best.safetensors")
        }
        for name in folders
    )
    assert len(one) == 4
    assert one.keys() == every.keys()
    for path, weights in one.items():
        assert all(np.array_equal(array, every[path][name]) for name, array in weights.items()), path
