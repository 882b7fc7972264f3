"""Several teachers: which flags are for which, what each and their mean recognises, and what Python takes."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import kdtrain
from kdtrain.data.dataset import Dataset, Split
from kdtrain.data.datasets import load_dataset
from kdtrain.deploy.onnx.network import OnnxClassifier
from kdtrain.deploy.onnx.reader import Assumed
from kdtrain.engine.teacher_network import TeacherNetwork
from kdtrain.errors import CheckpointError, KdtrainError, UsageError
from kdtrain.experiment.loaders import validation_images
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.check import FirstLook
from kdtrain.experiment.teachers.find import TrainedTeacher, find_teacher
from kdtrain.metrics.names import ACCURACY
from kdtrain.models.registry import build_model
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import load_model, save_model, snapshot
from tests.cli.conftest import untrained_teacher
from tests.deploy.onnx.test_classifier import linear, saved
from tests.tools import ROOT, write_digits

FOREIGN = ROOT / "tests" / "deploy" / "onnx" / "foreign"
TORCH, KERAS, SKLEARN = (FOREIGN / f"{name}.onnx" for name in ("torch", "keras", "sklearn"))
LETTERS = tuple("abcdefghij")
BACKWARDS = tuple(range(9, -1, -1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits", mnist, 3000)


@pytest.fixture(scope="module")
def few(folder: Path) -> Dataset:
    """Some digits, of which 500 are held out."""
    return load_dataset(data_dir=folder)


def nearest_mean(
    path: Path, data: Dataset, order: tuple[int, ...] = tuple(range(10)), **changes: Any
) -> Path:
    """Writes a student_mlp that chooses the class whose mean image is nearest, about 80 % of the digits.

    Its output i is that of the class ``order[i]``; ``changes`` are those of its card.
    """
    pixels = data.train.images.reshape(len(data.train), -1) / 255
    means = np.stack([pixels[data.train.labels == digit].mean(axis=0) for digit in order])
    mean, std = (float(values[0]) for values in (data.normalization.mean, data.normalization.std))
    model = build_model("student_mlp", data.image_shape, 10)
    weights = {name: np.zeros_like(array) for name, array in snapshot(model).items()}
    weights["fc1.weight"][:10] = std * means
    # 1000 keeps the ReLU open; it is the same for all classes.
    weights["fc1.bias"][:10] = mean * means.sum(axis=1) - (means**2).sum(axis=1) / 2 + 1000
    weights["fc2.weight"][:10, :10] = weights["fc3.weight"][:, :10] = np.eye(10)
    card = dataclasses.replace(model_card("teacher", "student_mlp", data), **changes)
    save_model(path, weights, card)
    return path


def table(path: Path, logits: npt.NDArray[Any]) -> Path:
    np.savez(path, logits=logits.astype(np.float32))
    return path


def right(data: Dataset) -> npt.NDArray[Any]:
    outputs: npt.NDArray[Any] = np.eye(10)[data.train.labels] * 5
    return outputs


def found(data: Dataset, *paths: Path, **settings: Any) -> TrainedTeacher:
    teacher = find_teacher(FitConfig("student_kd", teacher_checkpoint=paths, **settings), data)
    assert teacher is not None
    return teacher


def accuracies(teacher: TrainedTeacher, data: Dataset) -> list[float]:
    look = FirstLook.at(data, *validation_images(data, FitConfig("student_kd"), 0))
    seen = [member.seen for member in teacher.members]
    return [look.accuracy(logits) for logits in seen if logits is not None]


def means(teacher: TrainedTeacher) -> list[float]:
    return [round(member.normalization.mean[0], 4) for member in teacher.members if member.normalization]


def test_flags_of_foreign_files_are_never_for_those_of_kdtrain(
    few: Dataset, folder: Path, tmp_path: Path
) -> None:
    own = nearest_mean(tmp_path / "own.safetensors", few)
    exported = tmp_path / "own.onnx"
    kdtrain.export(own, exported, data_dir=folder)
    alone = [accuracies(found(few, path), few)[0] for path in (own, exported)]
    settings: dict[str, Any] = {
        "teacher_mean": ("0.1307",),
        "teacher_std": ("0.3081",),
        "teacher_classes": (",".join(map(str, range(10))),),
    }
    both = found(few, own, TORCH, exported, allow_poor_teacher=True, **settings)
    of_own, of_torch, of_exported = accuracies(both, few)
    assert [of_own, of_exported] == alone
    assert alone[0] > 0.7
    assert of_torch > 0.9
    assert [sorted(member.given) for member in both.members] == [[], sorted(settings), []]
    form = OnnxClassifier(exported, Assumed(1, 28, 28, "nhwc", 5)).form
    assert (form.layout, form.shape, form.left_open) == ("nchw", (1, 28, 28), ())


def test_a_size_is_for_files_that_leave_it_open(few: Dataset, tmp_path: Path) -> None:
    rows = saved(tmp_path, linear(("N", 4)))
    orders = tuple(map(",".join, ("0123456789", "0120120120", "0123456789")))
    settings: dict[str, Any] = {"teacher_classes": orders, "allow_poor_teacher": True}
    teacher = found(few, TORCH, rows, TORCH, teacher_input_size=(2,), **settings)
    assert [member.given.get("teacher_input_size") for member in teacher.members] == [None, 2, None]
    network = teacher.members[1].build("cpu")
    assert isinstance(network, TeacherNetwork)
    assert network.conversion is not None
    assert network.conversion.target.shape == (1, 2, 2)


@pytest.mark.parametrize(
    "names", [("keras", "own", "torch"), ("torch", "keras", "own"), ("own", "torch", "keras")]
)
def test_the_nth_flag_is_for_the_nth_teacher_that_needs_it(
    names: tuple[str, ...], few: Dataset, tmp_path: Path
) -> None:
    own = nearest_mean(tmp_path / "own.safetensors", few)
    paths = {"keras": KERAS, "torch": TORCH, "own": own}
    scales = {"keras": ("0", "0.00392157"), "torch": ("0.1307", "0.3081")}
    mean, std = zip(*[scales[name] for name in names if name in scales], strict=True)
    teacher = found(few, *[paths[name] for name in names], teacher_mean=mean, teacher_std=std)
    expected = {"keras": 0.0, "torch": 0.1307, "own": round(few.normalization.mean[0], 4)}
    assert means(teacher) == [expected[name] for name in names]
    assert min(accuracies(teacher, few)) > 0.7
    again = teacher.named_in(FitConfig("student_kd", teacher_mean=mean, teacher_std=std))
    assert (again.teacher_mean, again.teacher_std) == (mean, std)


def test_one_flag_alone_is_for_all_that_need_it(few: Dataset, tmp_path: Path) -> None:
    own = nearest_mean(tmp_path / "own.safetensors", few)
    settings: dict[str, Any] = {"teacher_mean": ("0.2",), "allow_poor_teacher": True}
    teacher = found(few, TORCH, own, SKLEARN, **settings)
    assert means(teacher) == [0.2, round(few.normalization.mean[0], 4), 0.2]
    assert teacher.named_in(FitConfig("student_kd", **settings)).teacher_mean == ("0.2",)


@pytest.mark.parametrize(
    ("files", "settings", "reason"),
    [
        ((), {"teacher_mean": ("0.5",)}, "--teacher-mean is given 1 time, and no teacher needs it.* leave"),
        (("own",), {"teacher_classes": ("0,1",)}, "--teacher-classes is given 1 time, and no teacher"),
        (("torch", "own"), {"teacher_std": ("1", "0.5")}, r"1 teacher needs it.* --teacher-std 0\.5 out"),
        (("torch",) * 3, {"teacher_std": ("1", "0.5")}, "is given 2 times, and .*torch.onnx needs it too"),
        (("torch",), {"teacher_layout": ("nchw",)}, "--teacher-layout is given 1 time, and no teacher needs"),
        (("torch",), {"teacher_mean": ("0.1,0.2,0.3",)}, r"--teacher-mean 0\.1,0\.2,0\.3 has 3 numbers"),
    ],
)  # fmt: skip
def test_flags_without_a_teacher_and_teachers_without_a_flag_are_said(
    files: tuple[str, ...], settings: dict[str, Any], reason: str, few: Dataset, tmp_path: Path
) -> None:
    own = nearest_mean(tmp_path / "own.safetensors", few)
    paths = tuple(TORCH if name == "torch" else own for name in files)
    config = FitConfig(
        "student_kd", teacher_checkpoint=paths, allow_poor_teacher=True, logdir=tmp_path, **settings
    )
    with pytest.raises(UsageError, match=reason):
        find_teacher(config, few)


def test_the_first_look_says_what_each_and_the_mean_recognise(
    few: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = nearest_mean(tmp_path / "own.safetensors", few)
    given = table(tmp_path / "t.npz", right(few))
    with caplog.at_level(logging.INFO, "kdtrain"):
        teacher = found(few, own, TORCH, teacher_logits=given, teacher_weight=(1.0, 1.0, 2.0))
    said = [message for message in caplog.messages if "recognise" in message]
    expected = [f"{value:.2%}" for value in accuracies(teacher, few)]
    assert [re.findall(r"[\d.]+%", message) for message in said[:3]] == [[text] for text in expected]
    assert [message.partition(" recognises")[0] for message in said] == [
        *map(str, (own, TORCH, given)), "The mean of their probabilities"
    ]  # fmt: skip
    look = FirstLook.at(few, *validation_images(few, FitConfig("student_kd"), 0))
    odds = []
    for member in teacher.members:
        assert member.seen is not None
        powers = np.exp(member.seen - member.seen.max(axis=1, keepdims=True))
        odds.append(powers / powers.sum(axis=1, keepdims=True))
    mean = look.accuracy((odds[0] + odds[1] + 2 * odds[2]) / 4)
    assert said[3].endswith(f"recognises {mean:.2%} of {len(look.numbers):,} held-out images.")


def test_a_mean_far_below_its_best_member_is_refused(few: Dataset, tmp_path: Path) -> None:
    labels = np.where(np.arange(3000) % 2, few.train.labels, (few.train.labels + 1) % 10)
    half = table(tmp_path / "half.npz", np.eye(10)[labels] * 100)
    settings: dict[str, Any] = {
        "teacher_logits": half,
        "teacher_mean": ("0.1307",),
        "teacher_std": ("0.3081",),
    }
    with pytest.raises(
        CheckpointError,
        match=r"mean of the teachers' prob.* [45]\d\.\d\d% .*torch\.onnx alone 9\d.*--allow-poor",
    ):
        found(few, TORCH, **settings)
    assert found(few, TORCH, allow_poor_teacher=True, **settings)
    weighed = found(few, TORCH, teacher_weight=(2.0, 1.0), **settings)
    assert min(accuracies(weighed, few)) < 0.6, "its weight is small enough"


def test_some_names_on_both_sides_need_the_flag(few: Dataset, tmp_path: Path) -> None:
    pets = dataclasses.replace(few, classes=("cat", "dog", "fish", *LETTERS[3:]))
    own = nearest_mean(tmp_path / "own.safetensors", few, classes=("bird", "cat", "dog", *LETTERS[3:]))
    with pytest.raises(CheckpointError, match=r"it has no fish, but cat, dog, d.*--teacher-classes"):
        found(pets, own)
    classes = ",".join(("bird", "1", "dog", *LETTERS[3:]))
    assert accuracies(found(pets, own, teacher_classes=(classes,)), pets)[0] > 0.7


def test_a_json_list_is_the_teacher_s_own_names(few: Dataset, tmp_path: Path) -> None:
    lettered = dataclasses.replace(few, classes=LETTERS)
    logits = table(tmp_path / "t.npz", right(few)[:, ::-1])
    file = tmp_path / "names.json"
    file.write_text(json.dumps(LETTERS[::-1]))
    teacher = find_teacher(
        FitConfig("student_kd", teacher_logits=logits, teacher_classes=(str(file),)), lettered
    )
    assert teacher is not None
    assert accuracies(teacher, lettered) == [1.0]


@pytest.mark.parametrize("kind", ["a table", "an ONNX file", "a checkpoint"])
def test_another_order_of_the_classes_is_named_and_helps(kind: str, few: Dataset, tmp_path: Path) -> None:
    settings: dict[str, Any] = {}
    data = few
    if kind == "a table":
        settings = {"teacher_logits": table(tmp_path / "t.npz", right(few)[:, BACKWARDS])}
    elif kind == "a checkpoint":
        own = nearest_mean(tmp_path / "own.safetensors", few, BACKWARDS, classes=LETTERS)
        settings = {"teacher_checkpoint": (own,)}
    else:
        turned = Split(few.train.images, 9 - few.train.labels)
        data = dataclasses.replace(few, train=turned, classes=LETTERS)
        settings = {
            "teacher_checkpoint": (TORCH,), "teacher_mean": ("0.1307",), "teacher_std": ("0.3081",)
        }  # fmt: skip
    with pytest.raises(CheckpointError, match="near chance") as error:
        find_teacher(FitConfig("student_kd", **settings), data)
    hint = r"Its classes seem to be in another order: --teacher-classes ([\d,]+) gives ([\d.]+)%"
    [(classes, percent)] = re.findall(hint, str(error.value))
    assert classes == ",".join(map(str, BACKWARDS))
    teacher = find_teacher(FitConfig("student_kd", teacher_classes=(classes,), **settings), data)
    assert teacher is not None
    assert [f"{value:.2%}" for value in accuracies(teacher, data)] == [f"{percent}%"]


def test_an_untrained_network_has_no_better_order_of_classes(few: Dataset, tmp_path: Path) -> None:
    for arch in ("student_mlp", "student_cnn", "hinton_800"):
        path = untrained_teacher(tmp_path / f"{arch}.safetensors", few, arch)
        look = FirstLook.at(few, *validation_images(few, FitConfig("student_kd"), 0))
        assert look.better_order(look.logits(load_model(path).build())) is None


def test_an_untrained_checkpoint_is_said_to_be_near_chance_and_taken(
    few: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = untrained_teacher(tmp_path / "teacher.safetensors", few, "student_mlp")
    with caplog.at_level(logging.INFO, "kdtrain"):
        found(few, path)
    assert re.search(
        r"teacher\.safetensors recognises [\d.]+% of 500 held-out images, which is near", caplog.text
    )


@pytest.mark.parametrize(
    ("name", "value", "texts"),
    [
        ("teacher_mean", 0.5, ("0.5",)),
        ("teacher_mean", [0.485, 0.456, 0.406], ("0.485,0.456,0.406",)),
        ("teacher_std", np.array([0.5, 0.25, 0.25]), ("0.5,0.25,0.25",)),
        ("teacher_std", [[0.5, 0.25, 0.25], 1, "0.5"], ("0.5,0.25,0.25", "1", "0.5")),
        ("teacher_mean", "0.5", ("0.5",)),
        ("teacher_classes", [8, 7], ("8,7",)),
        ("teacher_classes", ("cat", "tench, Tinca tinca", 7), ('cat,"tench, Tinca tinca",7',)),
        ("teacher_classes", {"cat": "tabby", "dog": 7}, ('{"cat": "tabby", "dog": "7"}',)),
        ("teacher_classes", [[8, 7], {"cat": 1, "dog": 0}], ("8,7", '{"cat": "1", "dog": "0"}')),
        ("teacher_classes", ["8,7", "names.json"], ("8,7", "names.json")),
        ("teacher_classes", Path("names.json"), ("names.json",)),
        ("teacher_input_size", [32, 224], (32, 224)),
        ("teacher_layout", "nhwc", ("nhwc",)),
    ],
)
def test_python_takes_numbers_sequences_and_dicts(name: str, value: Any, texts: tuple[Any, ...]) -> None:
    for given in (value, texts):  # as in a file
        settings: dict[str, Any] = {name: given}
        assert getattr(kdtrain.config(recipe="none", **settings), name) == texts


def test_python_s_values_teach_as_the_flags_do(folder: Path, few: Dataset, tmp_path: Path) -> None:
    data = kdtrain.load_data(data_dir=folder)
    how: dict[str, Any] = {"teacher_mean": [0.1307], "teacher_std": 0.3081, "teacher_checkpoint": TORCH}
    backwards = {str(label): 9 - label for label in range(10)}
    teachers = [
        kdtrain.load_teacher(data, teacher_classes=classes, allow_poor_teacher=True, **how)
        for classes in (list(range(10)), BACKWARDS, backwards)
    ]
    first, *turned = [kdtrain.predict_logits(teacher, data.validation) for teacher in teachers]
    assert (first.argmax(axis=1) == data.validation.targets).mean() > 0.9
    for logits in turned:
        assert np.array_equal(logits, first[:, ::-1])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"teacher_mean": 2}, "teacher_mean is 2: it must be one number for all channels"),
        ({"teacher_mean": [0.1, 0.2]}, r"teacher_mean is 0\.1,0\.2: it must be one number for all"),
        ({"teacher_std": [0.1, 0.2, 0.3]}, r"teacher_std 0\.1,0\.2,0\.3 has 3 numbers"),
        ({"teacher_classes": [8, 7]}, "teacher_classes has 2 classes, and the data have 10"),
        ({"teacher_classes": {"cat": 1}}, "teacher_classes .*there is no class 'cat'"),
        ({"teacher_classes": [10**5000] * 10}, "teacher_classes: 'a number of thousands of digits' is no"),
        ({"teacher_input_size": 0}, "teacher_input_size is 0: it must be from 1"),
        ({"teacher_layout": ["nchw", "nhcw"]}, "teacher_layout: there is no .*'nhcw'"),
        ({"teacher_mean": [[0.5], [0.5]]}, r"teacher_mean is given 2 times, .*: leave teacher_mean 0\.5 out"),
        (
            {"teacher_classes": BACKWARDS},
            "near chance.* teacher_classes 0,1,2,.* allow_poor_teacher takes it",
        ),
    ],
)
def test_python_s_errors_name_the_argument(settings: dict[str, Any], reason: str, folder: Path) -> None:
    data = kdtrain.load_data(data_dir=folder)
    with pytest.raises(KdtrainError, match=reason) as error:
        kdtrain.load_teacher(data, teacher_checkpoint=TORCH, **settings)
    assert "--" not in str(error.value)


def test_load_teacher_says_nothing_of_a_run(
    folder: Path, few: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card: dict[str, Any] = {"metrics": {ACCURACY: 0.8}, "epochs": 1, "images": 100}
    own = nearest_mean(tmp_path / "own.safetensors", few, **card)
    with caplog.at_level(logging.INFO, "kdtrain"):
        kdtrain.load_teacher(kdtrain.load_data(data_dir=folder), teacher_checkpoint=own)
    assert caplog.messages[-1].endswith("1 epoch, 100 images, held-out accuracy 80.00%.")
    assert "run" not in caplog.text
