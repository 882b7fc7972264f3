"""Upper bounds of all numbers that users give: they are checked before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kdtrain.cli import main
from kdtrain.cli.flags import settings_in
from kdtrain.cli.parser import parse
from kdtrain.errors import UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import load_config
from kdtrain.experiment.settings.schema import flag_of, kind_of
from kdtrain.runtime.limits import LARGEST_SEED
from tests.faults.limits import limited

NUMBERS = [field.name for field in dataclasses.fields(FitConfig) if kind_of(field.name)[0] in (int, float)]
MODE = {"seeds": "compare"}
ENORMOUS = ("1000000000000000000000", "-1000000000000000000000", "9" * 4000, "9" * 5000, f"-{'9' * 5000}")


def refusal(*words: str) -> str:
    with limited(10, 100), pytest.raises(UsageError) as caught:
        load_config(settings_in(parse(["fit", *words])))
    return str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ENORMOUS, ids=lambda value: f"{value[:4]}-{len(value)}")
def test_no_number_on_the_command_line_is_too_large_to_be_refused(name: str, value: str) -> None:
    message = refusal("--mode", MODE.get(name, "student"), f"{flag_of(name)}={value}")
    assert message.startswith(flag_of(name))
    assert "must be" in message
    assert len(message) < 250


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["10" * 10, "9" * 4300, "9" * 5000, f"0x{'f' * 5000}", f"[0x{'f' * 5000}]"])
def test_no_number_in_a_file_is_too_large_to_be_refused(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "run.toml").write_text(f"mode = '{MODE.get(name, 'student')}'\n{name} = {value}\n")
    with limited(10, 100), pytest.raises(UsageError) as caught:
        load_config({}, tmp_path / "run.toml")
    assert str(tmp_path / "run.toml") in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 250


@pytest.mark.parametrize(
    ("words", "bound"),
    [
        *(("--epochs 100001", "100,000"), ("--mode compare --seeds 1000000000000", "1,000")),
        ("--seed 9223372036854775808", "9,223,372,036,854,775,807"),
        *(("--seed 18446744073709551616", "9,223,372,036,854,775,807"), ("--image-size 257", "256")),
        *(("--nproc-per-node 1000", "256"), ("--lr 1e300", "1,000,000")),
        ("--temperature 1e300", "1,000,000"),
    ],
)
def test_the_bound_is_told(words: str, bound: str) -> None:
    assert bound in refusal(*words.split())


def test_the_seeds_of_a_comparison_stay_within_the_bound() -> None:
    words = ("--mode", "compare", "--seeds", "2", "--seed")
    assert "9,223,372,036,854,775,807" in refusal(*words, str(LARGEST_SEED))
    assert load_config(settings_in(parse(["fit", *words, str(LARGEST_SEED - 1)]))).seeds == 2


def test_what_can_be_repeated_is_counted() -> None:
    message = refusal("--mode", "student_kd", *["--plugin", "x"] * 101)
    assert message.startswith("--plugin")
    assert "101" in message


@pytest.mark.parametrize(
    "words",
    [
        "infer --picture-index 0 --temperature 1e300",
        "infer --picture-index 1000000000000000000000",
        f"infer --picture-index {'9' * 5000}",
        "bench x.safetensors --rounds 1000000000000",
        "bench x.safetensors --batch-size 1000000000000",
        "bench x.safetensors --threads 1000000000",
        "export x.safetensors --calibration-images 1000000000000",
        "export x.safetensors --seed -1",
        "export x.safetensors --seed 18446744073709551616",
        "serve x.onnx --max-body 1e9",
        "serve x.onnx --max-body inf",
        f"serve x.onnx --port {'9' * 4000}",
        f"models --image-shape 1,{'9' * 5000},28",
        "fit --mode " + "student" * 10_000,
        "fit --dataset " + "mnist" * 10_000,
        "fit --student-arch " + "student_mlp" * 10_000,
        "fit --logdir " + "x" * 10_000,
        "tune --search temperature=" + "2," * 10_000,
    ],
    ids=lambda words: words[:40],
)
def test_numbers_and_texts_of_other_commands_are_refused_as_fast(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with limited(10, 300):
        assert main(words.split()) in (1, 2)
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith("kdtrain: ")
    assert "unexpected" not in message
