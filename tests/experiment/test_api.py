"""The commands as Python functions: the command line's bits, the same errors, and nothing printed."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdtrain
from kdtrain import KdtrainError, UsageError, flow
from kdtrain.data.dataset import Dataset
from kdtrain.engine.teacher_network import Ensemble
from tests.cli.conftest import CallKdtrain, Fitted, run_python, untrained_teacher
from tests.runs import assert_same_files
from tests.tools import ROOT, read_tested

FOREIGN = ROOT / "tests" / "deploy" / "onnx" / "foreign"
FEW: dict[str, Any] = {
    "recipe": "none",
    "val_size": 100,
    "limit_train": 300,
    "epochs": 2,
    "teacher_arch": "student_mlp",
}

HALF: Any = 2.5
HOT: Any = "hot"


def flags_of(settings: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def test_command_and_function_give_the_same_bits(
    tiles: Path, tmp_path: Path, call_kdtrain: CallKdtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**FEW, "data_dir": tiles, "augment": "shift=1", "views": 2, "seed": 3}
    by_command, by_function = tmp_path / "command", tmp_path / "function"
    for folder in (by_command, by_function):
        folder.mkdir()
    for mode in ("teacher", "student_kd", "compare"):
        finished = call_kdtrain("fit", "--mode", mode, *flags_of(settings), cwd=by_command)
        assert finished.returncode == 0, finished.stderr
    monkeypatch.chdir(by_function)
    flow.manual_seed(99)  # neither this nor the operation changes the fits
    assert flow.ones(64, 64).matmul(flow.rand(64, 64)).sum().item() > 0
    teacher, student = (kdtrain.fit(mode, **settings) for mode in ("teacher", "student_kd"))
    comparison = kdtrain.compare(**settings)
    assert_same_files(by_command / "logs", by_function / "logs")
    assert teacher.path == teacher.directory / "checkpoints/best.safetensors"  # type: ignore[operator]
    assert read_tested(student.path.parents[1])["test_errors"] == student.test.errors
    content = json.loads(comparison.figures.read_text())
    assert [result["test_errors"] for result in content["models"]] == [
        result.errors for result in comparison.results
    ]
    assert comparison.report.is_file()
    assert comparison.picture.is_file()
    assert comparison.checkpoint("student").is_file()
    with pytest.raises(UsageError, match="there is no trained model 'student_ls'"):
        comparison.checkpoint("student_ls")


def test_other_seed_gives_other_bits(tiles: Path, tmp_path: Path) -> None:
    settings = {**FEW, "epochs": 1, "data_dir": tiles, "logdir": tmp_path}
    first, second = (kdtrain.fit("student", **settings, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.logits, second.logits)


def test_interrupted_fit_is_resumed(tiles: Path, tmp_path: Path) -> None:
    settings = {**FEW, "data_dir": tiles, "logdir": tmp_path, "schedule": "constant"}
    begun = kdtrain.fit("student", **settings)
    resumed = kdtrain.fit("student", resume=True, logdir=tmp_path, epochs=np.int64(3))
    assert resumed.directory == begun.directory
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]
    with pytest.raises(UsageError, match=r"mode teacher: the run in .* was begun with student"):
        kdtrain.fit("teacher", resume=begun.directory)


def test_search_chooses_settings_for_a_comparison(tiles: Path, tmp_path: Path) -> None:
    settings = {**FEW, "data_dir": tiles, "logdir": tmp_path}
    tuned = kdtrain.tune(budget=2, search="temperature=2..8", **settings)
    assert tuned.settings.keys() == {"student_kd", "student"}
    assert 2 <= tuned.settings["student_kd"]["temperature"] <= 8
    assert all(path.is_file() for path in (tuned.best, tuned.report, tuned.figures))
    assert kdtrain.config(config=tuned.best).tuned == tuned.figures
    assert json.loads(tuned.figures.read_text())["searches"] == ["temperature=2..8"]
    with pytest.raises(UsageError, match="budget: a resumed search keeps its own"):
        kdtrain.tune(budget="20m", resume=tuned.directory)


def test_check_leaves_no_file(tiles: Path, tmp_path: Path) -> None:
    (student,) = kdtrain.check("student", **FEW, data_dir=tiles, logdir=tmp_path, plugin="csv")
    assert student.arch == "student_mlp"
    assert "Csv" in student.callbacks
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: kdtrain.fit("student", epoch=3), r"fit: .*'epoch' \(did you mean 'epochs'\?\)"),
        (lambda: kdtrain.fit("studnet"), "there is no mode 'studnet'"),
        (lambda: kdtrain.fit("compare"), "call kdtrain.compare"),
        (lambda: kdtrain.fit("student", seeds=2), "^seeds 2 is for mode compare"),
        (lambda: kdtrain.fit("student", nproc_per_node=2), "only with the command `kdtrain fit`"),
        (lambda: kdtrain.fit("student", config="no.toml"), r"^config no.toml .*: there is no such file"),
        (lambda: kdtrain.fit("student", resume="a", config="b"), "leave config out"),
        (lambda: kdtrain.compare(mode="student"), "compare: there is no setting 'mode'"),
        (lambda: kdtrain.compare(lr=[1]), r"^lr is \[1\]: it must be a number"),
        (lambda: kdtrain.tune(budget="soon"), "^budget is 'soon'"),
        (lambda: kdtrain.tune(tune_seeds=0), "^tune_seeds is 0: it must be from 1"),
        (lambda: kdtrain.tune(val_size=0), "val_size 0 holds none out"),
        (lambda: kdtrain.load_data(epochs=3), "load_data: there is no setting 'epochs'"),
        (lambda: kdtrain.evaluate("no.safetensors"), "no.safetensors"),
        (lambda: kdtrain.evaluate("no.safetensors", device="gpu"), "there is no device 'gpu'"),
        (lambda: kdtrain.export("no.safetensors", quantize="int4"), "--quantize: there is no precision"),
        (lambda: kdtrain.export("no.safetensors", calibration_images=HALF), "must be a whole number"),
        (lambda: kdtrain.export("no.safetensors", "no.pt"), "the name must end in .onnx"),
        (lambda: kdtrain.infer("no.safetensors"), "name image files"),
        (lambda: kdtrain.infer("no.safetensors", "a.png", temperature=HOT), "must be a number"),
        (lambda: kdtrain.bench(), "name at least one model file"),
        (lambda: kdtrain.bench("no.onnx", rounds=0), "--rounds is 0"),
        (lambda: kdtrain.list_models("nonsense*"), "no network like"),
        (lambda: kdtrain.list_models(image_shape=(1, 28)), "--image-shape 1,28"),
        (lambda: kdtrain.load_plugin("dkdd"), "did you mean 'dkd'"),
    ],
)
def test_wrong_arguments_are_explained(call: Any, reason: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdtrainError, match=reason):
        call()
    assert list(tmp_path.iterdir()) == []


def test_models_are_tested_exported_and_asked(
    fitted: Fitted, tmp_path: Path, call_kdtrain: CallKdtrain
) -> None:
    path, data = fitted.model("student"), fitted.flags[1]
    evaluated = kdtrain.evaluate(path, data_dir=data)
    printed = call_kdtrain("eval", path, "--data-dir", data, "--json", cwd=tmp_path).stdout
    assert json.loads(printed)["accuracy_fraction"] == evaluated.test.accuracy
    exported = kdtrain.export(path, tmp_path / "s.onnx", quantize="int8", data_dir=data)
    assert exported.agreement.different == 0
    assert exported.quantized == tmp_path / "s.int8.onnx"
    tested = [kdtrain.evaluate(file, data_dir=data) for file in (exported.path, exported.quantized)]
    assert tested[0].test.errors == evaluated.test.errors
    (prediction,) = kdtrain.infer(exported.path, picture_index=3, data_dir=data)
    words = ("--checkpoint", exported.path, "--picture-index", "3", "--data-dir", data, "--json")
    (entry,) = json.loads(call_kdtrain("infer", *words, cwd=tmp_path).stdout)
    assert (entry["prediction"], entry["truth"]) == (prediction.prediction, prediction.truth)
    assert entry["probabilities"] == prediction.probabilities
    prediction.save(tmp_path / "drawing.png")
    assert (tmp_path / "drawing.png").read_bytes() == Path(entry["picture"]).read_bytes()


def test_teachers_are_those_of_a_fit(mnist: Dataset, digits: Path, tmp_path: Path) -> None:
    data = kdtrain.load_data(data_dir=digits, val_size=200)
    own = untrained_teacher(tmp_path / "own.safetensors", data.dataset, "student_mlp")
    with pytest.raises(UsageError, match=r'there is no teacher of digits .*kdtrain.fit\("teacher"\)'):
        kdtrain.load_teacher(data, logdir=tmp_path)
    alone = kdtrain.load_teacher(data, teacher_checkpoint=own)
    expected = kdtrain.load_model(own).build()
    assert np.array_equal(
        kdtrain.predict_logits(alone, data.validation), kdtrain.predict_logits(expected, data.validation)
    )
    how: dict[str, Any] = {"teacher_mean": "0.1307", "teacher_std": "0.3081"}
    foreign = kdtrain.load_teacher(data, teacher_checkpoint=FOREIGN / "torch.onnx", **how)
    right = kdtrain.predict_logits(foreign, data.validation).argmax(axis=1) == data.validation.targets
    assert right.mean() > 0.8
    files: dict[str, Any] = {"teacher_checkpoint": [own, FOREIGN / "torch.onnx"], "teacher_weight": [1, 2]}
    both = kdtrain.load_teacher(data, **files, **how)
    assert isinstance(both, Ensemble)
    assert both.shares == pytest.approx([1 / 3, 2 / 3])
    logits = np.eye(10, dtype=np.float32)[data.dataset.train.labels] * 5
    np.savez(tmp_path / "t.npz", logits=logits)
    table = kdtrain.load_teacher(data, teacher_logits=tmp_path / "t.npz")
    student = kdtrain.build_model("student_mlp", data.dataset.image_shape, data.dataset.num_classes)
    trainer = kdtrain.Trainer(
        student,
        lambda parameters: flow.optim.Adam(parameters, lr=1e-3),
        [kdtrain.DistillationCallback(table, alpha=1.0)],
    )
    end = trainer.fit(data.train, data.validation, epochs=1, directory=tmp_path / "run")
    assert end.status is kdtrain.Status.COMPLETED
    with pytest.raises(UsageError, match="load_teacher: there is no setting 'alpha'"):
        kdtrain.load_teacher(data, alpha=1.0)


def test_data_take_every_setting(tiles: Path, digits: Path, tmp_path: Path, mnist: Dataset) -> None:
    np.savez(tmp_path / "more.npz", images=mnist.test.images[:40, 0])
    data = kdtrain.load_data(
        data_dir=digits,
        val_size=100,
        omit_class=["3"],
        transfer_data=tmp_path / "more.npz",
        transfer_share=0.25,
        allow_test_images=True,
    )
    assert data.train.transfer is not None
    assert 3 not in data.train.targets
    assert 3 in data.validation.targets
    teacher = kdtrain.load_data(data_dir=digits, mode="teacher", teacher_augment="shift=2")
    assert teacher.train.is_endless
    assert kdtrain.load_data(data_dir=digits, recipe="mnist").train.views is not None
    assert kdtrain.load_data(data_dir=str(tiles), val_size=None).train.views is None
    for number, name in ((0, "train"), (1, "test")):
        for label in "ab":
            folder = tmp_path / "pets" / name / label
            folder.mkdir(parents=True)
            for index in range(4):
                image = mnist.train.images[index + 4 * number, 0]
                save_png(folder / f"{index}.png", image)
            (folder / "broken.png").write_bytes(b"no picture")
    pets = kdtrain.load_data(
        dataset=f"folder:{tmp_path / 'pets'}", image_size=16, skip_corrupt=True, val_size=2
    )
    assert pets.dataset.image_shape[1:] == (16, 16)
    assert pets.train.num_images == 6


def save_png(path: Path, image: Any) -> None:
    from PIL import Image

    Image.fromarray(image).save(path)


def test_every_built_in_callback_is_public() -> None:
    import kdtrain.callbacks

    assert set(kdtrain.callbacks.__all__) <= set(kdtrain.__all__)
    plugin = kdtrain.load_plugin("dkd,beta=2")
    assert isinstance(plugin, kdtrain.Callback)
    assert vars(plugin)["beta"] == 2


def test_names_are_listed_and_importing_the_package_imports_no_oneflow() -> None:
    code = (
        "import sys, kdtrain; assert {'fit', 'compare'} <= set(dir(kdtrain)); print('oneflow' in sys.modules)"
    )
    finished = run_python(code)
    assert (finished.returncode, finished.stdout) == (0, "False\n"), finished.stderr
    assert dir(kdtrain) == sorted(kdtrain.__all__)


@pytest.mark.parametrize("way", ["script", "prompt"])
def test_fits_work_in_a_script_and_at_the_prompt(way: str, tiles: Path, tmp_path: Path) -> None:
    lines = [
        "import kdtrain",
        "from kdtrain import flow",
        "total = flow.ones(300, 300).matmul(flow.ones(300, 300)).sum().item()",
        f"few = dict(data_dir={str(tiles)!r}, recipe='none', val_size=100, limit_train=300, epochs=1)",
        "student = kdtrain.fit('student', **few)",
        "print(student.test.images)",
    ]
    (tmp_path / "script.py").write_text("\n".join(lines))
    command = [sys.executable, "-W", "error", *(["-i", "-q"] if way == "prompt" else ["script.py"])]
    finished = subprocess.run(
        command,
        input="\n".join(lines) + "\n" if way == "prompt" else None,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert int(finished.stdout) > 0
    assert finished.stderr.replace(">>> ", "").strip() == "", "nothing is printed unless logging is set up"


def test_warnings_and_messages_are_log_records(
    tiles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="kdtrain"):
        kdtrain.fit("student", **FEW, data_dir=tiles, logdir=tmp_path, keep="best")
        kdtrain.fit("student", **{**FEW, "epochs": 1}, data_dir=tiles, logdir=tmp_path)
    assert "student.safetensors" in caplog.text
