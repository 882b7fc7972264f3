"""Teachers that kdtrain did not train: ONNX files, tables of logits, other data; and several of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset, Split
from kdtrain.data.datasets import load_dataset
from kdtrain.deploy.predict.predictor import OneFlowModel
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.teacher_network import GivenLogits
from kdtrain.errors import CheckpointError, DataError, KdtrainError, UsageError
from kdtrain.experiment.loaders import test_loader as loader_of_test_images
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import find_teacher
from kdtrain.store.checkpoint import load_model, save_model
from tests.cli.conftest import Call, Fitted, untrained_teacher
from tests.faults.limits import limited
from tests.runs import assert_same_tensors
from tests.tools import ROOT, files_in

FOREIGN = ROOT / "tests" / "deploy" / "onnx" / "foreign"
SCALE = ("--teacher-mean", "0.1307", "--teacher-std", "0.3081")
SHORT = ("--epochs=2", "--batch-size=64", "--val-size=200", "--recipe=none")


def weights(run: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return load_model(run / "checkpoints" / "best.safetensors").weights


def assert_same_weights(one: Path, other: Path) -> None:
    assert_same_tensors(*(run / "checkpoints" / "best.safetensors" for run in (one, other)))


def test_a_teacher_of_other_data_has_through_the_student_s_loader_the_accuracy_that_it_has_by_itself(
    mnist: Dataset, tmp_path: Path
) -> None:
    """The card's normalisation is another one, and its images are larger and in colour."""
    path = untrained_teacher(tmp_path / "teacher.safetensors", mnist, "hinton_800")
    own = load_model(path)
    card = dataclasses.replace(own.card, mean=(0.9,), std=(0.05,))
    save_model(path, own.weights, card)
    saved = load_model(path)
    teacher = find_teacher(FitConfig("student_kd", teacher_checkpoint=(path,)), mnist)
    assert teacher is not None
    few = dataclasses.replace(mnist, test=mnist.test.take(np.arange(500)))
    loader = loader_of_test_images(few, FitConfig(), "cpu", None)
    through = predict_logits(teacher.build(), loader)
    by_itself = OneFlowModel(saved).logits(few.test.images)
    np.testing.assert_allclose(through, by_itself, rtol=1e-3, atol=1e-3)
    labels = few.test.labels
    assert (through.argmax(1) == labels).mean() == (by_itself.argmax(1) == labels).mean()
    with_data_s_own = predict_logits(saved.build(), loader)
    assert not np.allclose(with_data_s_own, by_itself, rtol=0.1, atol=0.1), "the forms differ"


def test_a_teacher_of_larger_pictures_in_colour_teaches_small_grey_ones(
    digits: Path, tmp_path: Path, call: Call
) -> None:
    data = load_dataset("mnist", digits)
    images = np.repeat(np.repeat(np.repeat(data.train.images, 3, 1), 2, 2), 2, 3)
    large = dataclasses.replace(data, train=Split(images, data.train.labels))
    path = untrained_teacher(tmp_path / "teacher.safetensors", large, "hinton_800")
    done = call(*("fit", "--mode", "student_kd", "--data-dir", digits, "--teacher-checkpoint", path, *SHORT))
    assert "was trained on images of 3x56x56" in done.stderr
    assert "of 200 held-out images, which is near chance" in done.stderr


def test_an_onnx_file_teaches_as_its_logits_do(digits: Path, tmp_path: Path, call: Call) -> None:
    flags = ("fit", "--mode", "student_kd", "--data-dir", digits, *SHORT)
    onnx = ("--teacher-checkpoint", FOREIGN / "torch.onnx", *SCALE)
    done = call(*flags, *onnx)
    assert "takes images of 1x28x28 (nchw), mean 0.1307, std 0.3081." in done.stderr
    config = FitConfig(
        "student_kd",
        teacher_checkpoint=(FOREIGN / "torch.onnx",),
        teacher_mean=("0.1307",),
        teacher_std=("0.3081",),
        val_size=200,
    )
    data = load_dataset("mnist", digits)
    teacher = find_teacher(config, data)
    assert teacher is not None
    of_all = dataclasses.replace(data, test=data.train)
    logits = predict_logits(teacher.build(), loader_of_test_images(of_all, config, "cpu", None))
    np.savez(tmp_path / "logits.npz", logits=logits)
    call(*flags, "--teacher-logits", tmp_path / "logits.npz")
    runs = tmp_path / "logs" / "student_kd"
    assert_same_weights(runs / "version_0", runs / "version_1")


def test_the_outputs_of_an_onnx_file_are_kept(digits: Path, tmp_path: Path, call: Call) -> None:
    flags = ("fit", "--mode", "student_kd", "--data-dir", digits, *SHORT, "--augment=shift=2", "--views=2")
    onnx = ("--teacher-checkpoint", FOREIGN / "torch.onnx", *SCALE)
    cache = tmp_path / "logs" / "cache" / "teacher_logits"
    for _ in range(2):
        call(*flags, *onnx)
        assert len(files_in(cache)) == 2
    call(*flags, *onnx[:2], "--teacher-mean", "0.2")
    assert len(files_in(cache)) == 4, "another normalisation has other outputs"


@pytest.mark.parametrize("name", ["keras.onnx", "sklearn.onnx"])
def test_probabilities_are_recognised_and_said(
    name: str, mnist: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    std = ("0.00392157",) if name == "keras.onnx" else ()
    config = FitConfig("student_kd", teacher_checkpoint=(FOREIGN / name,), teacher_std=std)
    with caplog.at_level("INFO", "kdtrain"):
        assert find_teacher(config, mnist) is not None
    assert "it gives probabilities, whose logarithms are taken as logits" in caplog.text
    recognised = float(caplog.text.partition("recognises ")[2].partition("%")[0])
    assert recognised > 90


def test_a_teacher_that_recognises_nothing_is_refused_with_the_flags_that_help(mnist: Dataset) -> None:
    config = FitConfig("student_kd", teacher_checkpoint=(FOREIGN / "keras.onnx",))
    with pytest.raises(
        CheckpointError, match=r"near chance.*With --teacher-mean 0 --teacher-std 0\.003922 it rec"
    ):
        find_teacher(config, mnist)
    assert find_teacher(dataclasses.replace(config, allow_poor_teacher=True), mnist) is not None


def table(folder: Path, **arrays: object) -> Path:
    path = folder / "logits.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def right(labels: np.ndarray, classes: int = 10) -> np.ndarray:  # type: ignore[type-arg]
    logits: np.ndarray = 5.0 * np.eye(classes, dtype=np.float32)[labels]  # type: ignore[type-arg]
    return logits


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits[:-1], r"must be floats, a row for each of the [\d,]+ images"),
        (lambda logits: logits.argmax(1), "must be floats"),
        (lambda logits: logits.astype(np.int64), "must be floats"),
        (lambda logits: np.where(np.arange(len(logits))[:, None] == 7, np.nan, logits), "row 7 holds NaN"),
        (lambda logits: logits[:, :9], "has 9 classes, the data have 10"),
        (lambda logits: logits[::-1], "near chance.*in the order of the images"),
        (lambda logits: logits[0, 0], "must be floats"),
        (lambda logits: logits[None][:0], r"shape \(0, 1500, 10\)"),
        (lambda logits: logits / 5 * (np.arange(len(logits))[:, None] != 7), "row 7 holds no probabilities"),
    ],
)
def test_a_table_that_is_not_of_these_images_is_refused(
    change: object, reason: str, digits: Path, tmp_path: Path
) -> None:
    data = load_dataset("mnist", digits)
    assert callable(change)
    path = table(tmp_path, logits=change(right(data.train.labels)))
    with pytest.raises((DataError, CheckpointError), match=reason):
        find_teacher(FitConfig("student_kd", teacher_logits=path), data)


def test_a_table_of_probabilities_teaches_as_their_logarithms_do(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kdtrain")
    data = load_dataset("mnist", digits)
    odds = np.exp(right(data.train.labels))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    path = table(tmp_path, logits=probabilities, test=right(data.test.labels))
    teacher = find_teacher(FitConfig("student_kd", teacher_logits=path), data)
    assert teacher is not None
    assert f"logits in {path} holds probabilities, whose logarithms are taken as logits" in caplog.text
    given = teacher.build()
    assert isinstance(given, GivenLogits)
    np.testing.assert_allclose(np.exp(given.of_split("train")), probabilities, rtol=1e-5)
    np.testing.assert_array_equal(given.of_split("test"), right(data.test.labels))


@pytest.mark.parametrize(
    ("arrays", "settings", "reason"),
    [
        ({"logits": (2000, 1500, 10)}, {}, "2000 variants.* have 1 .*give --augment with --views 2000"),
        (
            {"logits": (1, 1500, 10)},
            {"augment": "flip", "views": 4},
            "have 4 .*give --augment none, or logits of 4",
        ),
        ({"logits": (1, 1500, 10)}, {"augment": "flip", "views": 0}, "images are new in each epoch"),
        ({"logits": (1501, 9000)}, {}, r"float32 of shape \(1501, 9000\).* each of the 1,500 images"),
        ({"logits": (1500, 13000)}, {}, "has 13000 classes, the data have 10"),
        ({"logits": (1500, 13000)}, {"teacher_classes": ("0,1,2,3,4,5,6,7,8,9",)}, "64 MiB .* unzips from"),
        (
            {"logits": (1500, 10), "test": (300, 60000)},
            {},
            r"test .* shape \(300, 60000\).*300 images, of 10 classes like `logits`",
        ),
        ({"logits": (1500, 10), "test": (60000, 10)}, {}, r"test .* shape \(60000, 10\).*the 300 images"),
        ({"logits": (1500, 10), "validation": (300, 60000)}, {}, "near chance"),  # of no use: not read
    ],
)
def test_a_table_is_refused_by_what_its_headers_state(
    arrays: dict[str, tuple[int, ...]], settings: dict[str, Any], reason: str, digits: Path, tmp_path: Path
) -> None:
    """Zeros are zipped to a thousandth."""
    data, path = load_dataset("mnist", digits), tmp_path / "logits.npz"
    np.savez_compressed(path, **{name: np.zeros(shape, np.float32) for name, shape in arrays.items()})
    config = FitConfig("student_kd", teacher_logits=path, **settings)
    with limited(seconds=2.0, megabytes=30.0), pytest.raises(KdtrainError, match=reason):
        find_teacher(config, data)


def test_a_table_that_lacks_images_without_labels_is_refused_before_any_training(
    digits: Path, tmp_path: Path, call: Call
) -> None:
    path = table(tmp_path, logits=right(load_dataset("mnist", digits).train.labels))
    flags = ("--data-dir", digits, *SHORT[:-2], "--labels", "100", "--recipe=none", "--teacher-logits", path)
    done = call.any_code("fit", "--mode", "compare", *flags)
    assert done.returncode == 2, done.stderr
    assert f"--teacher-logits {path} has no logits of images without labels" in done.stderr
    assert not list((tmp_path / "logs").glob("compare/*"))


def test_a_table_has_as_many_views_as_the_students(digits: Path, tmp_path: Path, call: Call) -> None:
    labels = load_dataset("mnist", digits).train.labels
    path = table(tmp_path, logits=np.stack([right(labels)] * 3))
    flags = ("fit", "--mode", "student_kd", "--data-dir", digits, *SHORT, "--teacher-logits", path)
    views = ("--augment=shift=1", "--views=3")
    call(*flags, *views)
    path = table(tmp_path, logits=right(labels))
    done = call.any_code(*flags, *views)
    assert done.returncode == 2, done.stderr
    assert "has logits of 1 variant of each image, and the students' images have 3" in done.stderr
    assert "give --augment none, or logits of 3." in done.stderr
    assert [run.name for run in (tmp_path / "logs/student_kd").iterdir()] == ["version_0"]
    path = table(tmp_path, logits=np.stack([right(labels)] * 2))
    done = call.any_code(*flags)
    assert "give --augment with --views 2, or logits of 1." in done.stderr


def test_a_comparison_needs_a_table_s_logits_of_test_images(digits: Path, tmp_path: Path, call: Call) -> None:
    data = load_dataset("mnist", digits)
    flags = ("fit", "--mode", "compare", "--data-dir", digits, *SHORT, "--teacher-logits")
    alone = table(tmp_path, logits=right(data.train.labels))
    done = call.any_code(*flags, alone)
    assert done.returncode == 2, done.stderr
    assert "has no array 'test'" in done.stderr
    assert "1/2" not in done.stderr, "it is refused before any training"
    both = table(tmp_path, logits=right(data.train.labels), test=right(data.test.labels))
    call(*flags, both)
    figures = json.loads((tmp_path / "logs/compare/version_0/compare.json").read_text())
    assert figures["summaries"]["teacher"]["test_errors"]["mean"] == 0


def test_several_teachers_are_shown_with_their_mean(digits: Path, tmp_path: Path, call: Call) -> None:
    files = ("torch.onnx", "sklearn.onnx")
    words = [word for name in files for word in ("--teacher-checkpoint", FOREIGN / name)]
    flags = ("--teacher-weight", "3", "--teacher-weight", "1")
    done = call(*("fit", "--mode", "compare", "--data-dir", digits, *SHORT, *words, *flags))
    run = tmp_path / "logs/compare/version_0"
    figures = json.loads((run / "compare.json").read_text())
    assert [(row["name"], row["share_fraction"]) for row in figures["models"][0]["members"]] == [
        ("torch.onnx", 0.75),
        ("sklearn.onnx", 0.25),
    ]
    assert "mean of their probabilities" in done.stdout
    page = (run / "report.html").read_text()
    assert all(name in page for name in (*files, "Teachers"))


def test_teachers_of_several_seeds_are_trained_for_a_comparison(
    digits: Path, tmp_path: Path, call: Call
) -> None:
    flags = ("--data-dir", digits, *SHORT, "--teacher-arch", "student_mlp", "--teacher-augment", "none")
    call("fit", "--mode", "compare", "--teachers", "2", *flags)
    run = tmp_path / "logs/compare/version_0"
    figures = json.loads((run / "compare.json").read_text())
    assert [row["name"] for row in figures["models"][0]["members"]] == ["seed_0/teacher", "seed_1/teacher"]
    assert figures["summaries"]["teacher"]["arch"] == "2 x student_mlp"
    files = [run / name / "checkpoints" / "best.safetensors" for name in ("seed_0/teacher", "seed_1/teacher")]
    words = [word for path in files for word in ("--teacher-checkpoint", path)]
    call("fit", "--mode", "student_kd", *flags[:6], *words)
    assert_same_weights(run / "seed_0/student_kd", tmp_path / "logs/student_kd/version_0")


def test_a_run_with_several_teachers_is_resumed(fitted: Fitted, tmp_path: Path, call: Call) -> None:
    teachers = (fitted.model("teacher"), fitted.model("student"))
    words = [word for path in teachers for word in ("--teacher-checkpoint", path)]
    call("fit", "--mode", "student_kd", *fitted.flags, *words)
    run = tmp_path / "logs/student_kd/version_0"
    before = weights(run)
    last = run / "checkpoints" / "last.safetensors"
    assert last.exists()
    call("fit", "--resume", run)
    assert all(np.array_equal(array, before[name]) for name, array in weights(run).items())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"teacher_weight": (1.0,)}, "given 1 times, and there are 2 teachers"),
        ({"teachers": 2, "mode": "compare"}, "--teachers trains teachers, but --teacher-checkpoint names"),
    ],
)
def test_settings_of_teachers_that_contradict_each_other_are_refused(
    settings: dict[str, object], reason: str
) -> None:
    given: dict[str, object] = {
        "mode": "student_kd",
        "teacher_checkpoint": (Path("a"), Path("b")),
        **settings,
    }
    with pytest.raises(UsageError, match=reason):
        FitConfig(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "framework"), [("net.pt", "PyTorch"), ("net.keras", "Keras")])
def test_a_framework_s_own_file_is_to_be_exported(
    name: str, framework: str, mnist: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=rf"is a file of {framework}: export the network there as ONNX"):
        find_teacher(FitConfig("student_kd", teacher_checkpoint=(path,)), mnist)
