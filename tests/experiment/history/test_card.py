"""``kdtrain card``: it says what the model's files say, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import kdtrain
from kdtrain.cli import main
from kdtrain.engine.predict import predict_logits
from kdtrain.errors import CheckpointError, UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import find_teacher
from kdtrain.store.checkpoint import load_card, load_model, save_model
from tests.cli.conftest import CallKdtrain
from tests.tools import ROOT, read_tested

TORCH = ROOT / "tests/deploy/onnx/foreign/torch.onnx"
BEST = "checkpoints/best.safetensors"
FEW = ("--val-size", "60", "--limit-train", "200", "--recipe", "none", "--teacher-arch", "student_cnn")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory, tiles: Path) -> Path:
    """The log directory of a comparison over two seeds."""
    logs = tmp_path_factory.mktemp("card") / "logs"
    words = (
        "--mode",
        "compare",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--data-dir",
        str(tiles),
        "--logdir",
        str(logs),
    )
    assert main(["fit", *words, *FEW]) == 0
    return logs


def student(logs: Path, seed: int = 1) -> Path:
    return logs / f"compare/version_0/seed_{seed}/student_kd"


def test_figures_are_those_of_the_run_and_of_its_comparison(logs: Path, tiles: Path) -> None:
    run = student(logs)
    text = kdtrain.card(run / BEST)
    test = read_tested(run)
    errors, images = test["test_errors"], test["test_images"]
    z = scipy.stats.norm.ppf(0.975)  # Wilson's interval, by its formula
    share = 1 - errors / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * (share * (1 - share) / images + z**2 / (4 * images**2)) ** 0.5
    interval = f"95 % interval {centre - half:.2%} to {centre + half:.2%}"
    assert f"| test accuracy | {share:.2%} ({interval}, by the choice of the {images} test images) |" in text
    assert f"| test errors | {errors} of {images} images |" in text
    assert f"| held-out accuracy | {load_card(run / BEST).accuracy:.2%}, which chose the epoch |" in text
    figures = json.loads((logs / "compare/version_0/compare.json").read_text())
    for model, summary in figures["summaries"].items():
        accuracy = summary["test_accuracy_percent"]
        assert f"| {model} | `{summary['arch']}` | {summary['parameters']:,} | {accuracy['mean']:.2f}" in text
    assert figures["verdict"] in text
    assert (
        f"student_cnn, test accuracy {figures['summaries']['teacher']['test_accuracy_percent']['mean']:.2f}%"
        in text
    )
    settings = dict(re.findall(r"^\| `(\w+)` \| `(.*)` \|$", text, re.MULTILINE))
    assert settings["temperature"] == "4.0"
    assert (settings["seed"], settings["epochs"], settings["limit_train"]) == ("1", "1", "200")
    assert str(tiles.parent) not in text, "paths are nobody's business"
    assert str(logs) not in text


def test_teachers_have_their_accuracy_and_normalisation(logs: Path, digits: Path, tmp_path: Path) -> None:
    own = load_card(logs / "compare/version_0/seed_0/teacher" / BEST)
    mean, std = (f"{values[0]:.4g}" for values in (own.mean, own.std))
    takes = f"; it takes pixels scaled to 0..1, minus {mean}, divided by {std}"
    assert re.search(
        rf"^student_cnn, test accuracy [\d.]+%{takes}$", kdtrain.card(student(logs) / BEST), re.M
    )
    labels = kdtrain.load_data(data_dir=digits).dataset.train.labels
    np.savez(tmp_path / "t.npz", logits=np.eye(10, dtype=np.float32)[labels])
    words = (
        "--data-dir",
        str(digits),
        "--val-size",
        "60",
        "--recipe",
        "none",
        "--logdir",
        str(tmp_path / "logs"),
    )
    onnx = ("--teacher-checkpoint", str(TORCH), "--teacher-mean", "0.2", "--teacher-std", "0.3")
    table = ("--teacher-logits", str(tmp_path / "t.npz"))
    assert main(["fit", "--mode", "student_kd", "--epochs", "1", *words, *onnx, *table]) == 0
    run = tmp_path / "logs/student_kd/version_0"
    config = FitConfig(
        "student_kd", val_size=60, teacher_checkpoint=(TORCH,), teacher_mean=("0.2",), teacher_std=("0.3",)
    )
    data = kdtrain.load_data(data_dir=digits, val_size=60)
    teacher = find_teacher(config, data.dataset)
    assert teacher is not None
    right = predict_logits(teacher.build(), data.validation).argmax(axis=1) == data.validation.targets
    form = "it takes pixels scaled to 0..1, minus 0.2, divided by 0.3"
    said = f"- torch.onnx, held-out accuracy {right.mean():.2%}; {form}\n"
    assert f"{said}- t.npz, held-out accuracy 100.00%\n" in kdtrain.card(run / BEST)


def test_front_matter_has_the_fields_of_the_hubs(logs: Path) -> None:
    text = kdtrain.card(student(logs) / BEST, license="mit")
    accuracy = read_tested(student(logs))["test_accuracy_fraction"]
    _, front, _ = text.split("---\n", 2)
    evaluation = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": "tiles", "name": "tiles", "split": "test"},
        "metrics": [{"type": "accuracy", "value": accuracy, "name": "Test accuracy"}],
    }
    assert (
        front
        == f"""\
license: "mit"
library_name: "kdtrain"
pipeline_tag: "image-classification"
tags: ["image-classification", "oneflow", "knowledge-distillation"]
metrics: ["accuracy"]
model-index: {json.dumps([{"name": "student_mlp for tiles", "results": [evaluation]}])}
"""
    )
    assert text.endswith("The model is shared under `mit`.\n")


def test_a_kept_model_has_the_figures_of_the_run_that_it_comes_from(
    logs: Path, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    kept = logs / "models/student_kd.safetensors"
    (run,) = {
        student(logs, seed)
        for seed in (0, 1)
        if (student(logs, seed) / BEST).read_bytes() == kept.read_bytes()
    }
    finished = call_kdtrain("card", kept, "--out", tmp_path / "README.md", cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    text = (tmp_path / "README.md").read_text()
    assert text.replace("student_kd.safetensors", "best.safetensors") == kdtrain.card(run / BEST)


def test_other_weights_get_no_figures_of_the_run(
    logs: Path, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(student(logs), tmp_path / "run"))
    saved = load_model(run / BEST)
    changed = {name: np.multiply(values, 2) for name, values in saved.weights.items()}
    save_model(run / "checkpoints/bias_labels.safetensors", changed, saved.card)
    text = kdtrain.card(run / "checkpoints/bias_labels.safetensors")
    assert "The model's files have no figures on a test set." in text
    assert "model-index" not in text
    assert "| `temperature` | `4.0` |" in text
    shutil.copy(run / BEST, tmp_path / "alone.safetensors")
    finished = call_kdtrain("card", "alone.safetensors", cwd=tmp_path)
    assert finished.stderr.startswith("The run of alone.safetensors is not found")
    assert "The model's files do not tell the teacher." in finished.stdout
    assert "The model's files tell no licence." in finished.stdout


def test_what_it_says_about_use_works(
    logs: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(student(logs) / BEST, "best.safetensors")
    assert "onnx" not in kdtrain.card("best.safetensors")
    kdtrain.export("best.safetensors", data_dir=tiles, quantize="int8", calibration_images=16)
    text = kdtrain.card("best.safetensors")
    assert re.search(r"\| `best\.onnx` \| float32 \| [\d,]+ \|\n\| `best\.int8\.onnx` \| int8 \| ", text)
    names: dict[str, object] = {}
    code = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    for block in code:
        exec(block, names)
    assert getattr(names["logits"], "shape", None) == (1, 4)
    saved = load_model("best.safetensors")
    save_model(Path("best.safetensors"), {n: np.multiply(v, 2) for n, v in saved.weights.items()}, saved.card)
    assert "onnx" not in kdtrain.card("best.safetensors"), "these files are of other weights"


def test_names_in_a_file_are_no_markup(logs: Path, tmp_path: Path) -> None:
    saved = load_model(student(logs) / BEST)
    names = ("<script>", "a|b", "`c`", "---")
    card = kdtrain.ModelCard(**{**vars(saved.card), "classes": names, "dataset": 'folder:/home/ada/x|y: "z"'})
    save_model(tmp_path / "net.safetensors", saved.weights, card)
    text = kdtrain.card(tmp_path / "net.safetensors")
    assert "`<script>`, `a\\|b`, `'c'`, `---`." in text
    assert text.startswith('---\nlicense: "unknown"\n')
    assert "/home/ada" not in text


def test_card_says_what_image_files_become(logs: Path, tmp_path: Path) -> None:
    """For pictures the filter, for digits in ink that they are looked for (as ``infer`` treats them)."""
    saved = load_model(student(logs) / BEST)
    assert "| image files | `kdtrain infer` looks for the ink in them" in kdtrain.card(student(logs) / BEST)
    card = kdtrain.ModelCard(**{**vars(saved.card), "dataset": "folder:/home/ada/pets"})
    save_model(tmp_path / "net.safetensors", saved.weights, card)
    assert (
        "| image files | upright, white where transparent, scaled with Pillow's `BILINEAR` filter until they "
        "just cover 12 x 12, cropped equally at both ends"
    ) in kdtrain.card(tmp_path / "net.safetensors")


def test_wrong_files_and_licences_are_explained(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--license is 'a: b'"):
        kdtrain.card(student(logs) / BEST, license="a: b")
    with pytest.raises(UsageError, match=r"give its \.safetensors file"):
        kdtrain.card(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        kdtrain.card(tmp_path / "net.safetensors")
