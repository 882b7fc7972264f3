"""Configurations: flags take precedence over the file, the file over defaults; errors name flag and place."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdtrain.cli.flags import settings_in
from kdtrain.cli.parser import parse
from kdtrain.data.augment_spec import AUGMENT_FORMS
from kdtrain.errors import UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import load_config, resumed_config
from kdtrain.experiment.settings.schema import OPTIMIZERS, RECIPE_NAMES
from tests.refusals import refusal_by

TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)
PATHS = TEXTS.filter(lambda text: "\0" not in text).map(Path)
EPOCHS = st.integers(1, 100_000)
NUMBERS = st.integers(1, 10**8)
POSITIVE = st.floats(0, 1e6, exclude_min=True)
AUGMENTATIONS = st.sampled_from(
    [
        *("none", "shift=1", "flip", "shift=64,flip,crop=4,rotate=180", "mixup,flip", "mixup=0.2"),
        *("scale=0.5..1", "scale=1..1,colour=0.3,erase=0.25"),
    ]
)
OPTIONAL = {
    "recipe": st.sampled_from([*RECIPE_NAMES, "none"]),
    "epochs": EPOCHS,
    "teacher_epochs": EPOCHS,
    "lr": POSITIVE,
    "clip_grad_norm": POSITIVE,
    "tuned": PATHS,
    "data_seed": st.integers(0, 2**63 - 1),
    "teacher_logits": PATHS,
    "student_checkpoint": PATHS,
    "labels": st.integers(1, 999_999_999).map(str) | st.sampled_from(["1%", "0.5%", "99.999%"]),
    "transfer_data": PATHS,
    "data_dir": PATHS,
    "image_size": st.integers(1, 256),
    "val_size": st.integers(0, 10**6),
    "limit_train": NUMBERS,
    "early_stopping": EPOCHS,
    "augment": AUGMENTATIONS,
    "teacher_augment": AUGMENTATIONS,
    "model_save_dir": PATHS,
    "image_save_dir": PATHS,
    "image_save_name": PATHS,
}
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(["teacher", "student", "student_kd", "compare"]),
    "batch_size": NUMBERS,
    "optimizer": st.sampled_from(["adam", "adadelta", "sgd"]),
    "schedule": st.sampled_from(["one_cycle", "cosine", "constant"]),
    "weight_decay": st.floats(0, 1),
    "teacher_arch": TEXTS,
    "teacher_checkpoint": st.lists(PATHS, max_size=2).map(tuple),
    "teacher_weight": st.lists(POSITIVE, max_size=2).map(tuple),
    "teacher_mean": st.lists(st.sampled_from(["0", "0.5", "0.485,0.456,0.406"]), max_size=3).map(tuple),
    "teacher_std": st.lists(st.sampled_from(["1", "0.229,0.224,0.225"]), max_size=3).map(tuple),
    "teacher_input_size": st.lists(st.integers(1, 256), max_size=3).map(tuple),
    "teacher_layout": st.lists(st.sampled_from(["nchw", "nhwc"]), max_size=3).map(tuple),
    "teacher_classes": st.lists(TEXTS, max_size=3).map(tuple),
    "allow_poor_teacher": st.booleans(),
    "allow_test_images": st.booleans(),
    "teachers": st.integers(1, 3),
    "student_arch": TEXTS,
    "temperature": POSITIVE,
    "alpha": st.floats(0, 1),
    "dataset": TEXTS,
    "skip_corrupt": st.booleans(),
    "balance": st.sampled_from(["none", "sample", "loss"]),
    "monitor": st.sampled_from(["accuracy", "balanced_accuracy", "macro_f1", "cross_entropy"]),
    "transfer_share": st.floats(0, 0.95, exclude_min=True),
    "omit_class": st.lists(TEXTS, max_size=2).map(tuple),
    "seed": st.integers(0, 2**63 - 3),
    "stall_timeout": st.integers(0, 31_536_000),
    "views": st.sampled_from([0, 2, 1000]),
    "seeds": st.just(1),
    "teacher_per_seed": st.booleans(),
    "with_label_smoothing": st.booleans(),
    "with_hard_labels": st.booleans(),
    "plugin": st.lists(TEXTS, max_size=3).map(tuple),
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "nproc_per_node": st.integers(1, 256),
    "logdir": PATHS,
    "keep": st.sampled_from(["best", "always", "never"]),
    "name": st.none() | st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9._+=,@-]{0,59}", fullmatch=True),
    **{name: st.none() | strategy for name, strategy in OPTIONAL.items()},
}


def config_of(values: dict[str, Any]) -> FitConfig:
    others: dict[str, Any] = {}
    if values["mode"] == "teacher":
        others |= {"omit_class": (), "student_checkpoint": None}
    if values["mode"] != "compare":
        others |= {"teacher_per_seed": False, "teachers": 1}
        others |= {"with_label_smoothing": False, "with_hard_labels": False}
    if values["mode"] == "teacher":
        others["student_checkpoint"] = None
    zero = values["alpha"] == 0.0
    if zero:
        others["labels"] = None
    if values["labels"] is not None:
        others["omit_class"] = ()
    if values["transfer_data"] is None or values["mode"] in ("teacher", "student") or zero:
        others |= {"transfer_data": None, "transfer_share": 0.5}
    if values["weight_decay"] * (values["lr"] or 1.0) >= 1.0:
        others["weight_decay"] = 0.0
    if values["teacher_checkpoint"] or values["teacher_logits"] is not None or values["teachers"] > 1:
        others["teacher_per_seed"] = False
    if values["teacher_checkpoint"] or values["teacher_logits"] is not None:
        others["teachers"] = 1
    if len(values["teacher_weight"]) != len(values["teacher_checkpoint"]) + (
        values["teacher_logits"] is not None
    ):
        others["teacher_weight"] = ()
    return FitConfig(**(values | others))


CONFIGS = st.fixed_dictionaries(SETTINGS).map(config_of)


def flags(*words: str) -> dict[str, Any]:
    """What the command line makes of the words after ``kdtrain fit``."""
    return settings_in(parse(["fit", *words]))


def from_words(*words: str) -> FitConfig:
    return load_config(flags(*words))


def refusal_of_words(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        from_words(*words)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def from_file(path: Path, content: str, **flags: object) -> FitConfig:
    path.write_text(content, encoding="utf-8")
    return load_config(flags, path)


refusal_of_file = refusal_by(from_file, UsageError)


def test_every_setting_is_generated() -> None:
    assert SETTINGS.keys() == {field.name for field in dataclasses.fields(FitConfig)}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=CONFIGS)
def test_resolved_settings_come_back_from_their_file(file: Path, config: FitConfig) -> None:
    file.write_bytes(config.to_toml().encode())
    again = load_config({}, file)
    assert again.resolved() == config.resolved()
    assert again.to_toml() == config.to_toml()
    for name in ("teacher", "student"):
        assert again.with_epochs(1000).epochs_for(name) == config.with_epochs(1000).epochs_for(name)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--transfer-share", "0.3"), "share of images without labels, and there are none: add --labels"),
        (("--transfer-data", "more", "--mode", "student"), "--mode student has no teacher"),
        (("--transfer-data", "more", "--mode", "teacher"), "--mode teacher has no teacher"),
        (("--transfer-data", "more", "--alpha", "0"), "--alpha 0 leaves the teacher's outputs out"),
        (("--transfer-data", "more", "--transfer-share", "0.96"), "must be above 0 and at most 0.95"),
        (("--transfer-data", "more", "--transfer-share", "0.999999"), "must be above 0 and at most 0.95"),
        (("--transfer-data", "more", "--transfer-share", "0"), "must be above 0 and at most 0.95"),
    ],
)
def test_images_without_labels_need_a_teacher(words: tuple[str, ...], reason: str) -> None:
    assert reason in refusal_of_words(*words)


def test_a_class_of_thousands_of_digits_is_refused_before_data_are_read() -> None:
    assert "names of at most 255 characters" in refusal_of_words("--teacher-classes", f"0,{'9' * 5000}")


def test_file_of_a_run_leaves_nothing_to_be_decided() -> None:
    values = tomli.loads(FitConfig(mode="student_kd", optimizer="adadelta").with_epochs(55_000).to_toml())
    assert (values["epochs"], values["teacher_epochs"], values["lr"]) == (60, 20, 1.0)


def test_the_models_folder_follows_a_new_logdir_unless_it_was_named(file: Path) -> None:
    first = FitConfig(logdir=Path("first"))
    assert from_file(file, first.to_toml(), logdir=Path("second")).models == Path("second/models")
    named = dataclasses.replace(first, model_save_dir=Path("shelf"))
    assert from_file(file, named.to_toml(), logdir=Path("second")).models == Path("shelf")


def test_defaults() -> None:
    config = from_words()
    assert config == FitConfig()
    assert (config.mode, config.temperature, config.alpha, config.batch_size) == ("compare", 4.0, 0.9, 128)
    assert (config.logdir, config.models) == (Path("logs"), Path("logs/models"))
    rates = {name: from_words("--optimizer", name).peak_lr for name in OPTIMIZERS}
    assert rates == {"adam": 3e-3, "adadelta": 1.0, "sgd": 0.1}


def test_epochs_are_for_all_networks_and_teacher_epochs_for_one() -> None:
    config = from_words("--epochs", "7")
    assert (config.epochs_for("teacher"), config.epochs_for("student")) == (7, 7)
    config = from_words("--epochs", "7", "--teacher-epochs", "2")
    assert (config.epochs_for("teacher"), config.epochs_for("student")) == (2, 7)


def test_flags_win_over_the_file_and_the_file_over_defaults(file: Path) -> None:
    content = (
        'epochs = 5\nalpha = 1\nlogdir = "from file"\nplugin = ["a", "b"]\nmode = "student"\n'
        'batch_size = 64\nteacher_checkpoint = "models/teacher"\n'
    )
    file.write_text(content)
    config = load_config(flags("--epochs", "9", "--plugin", "c", "--batch-size", "128"), file)
    assert (config.epochs, config.plugin) == (9, ("c",))
    assert config.batch_size == 128, "a flag with the default value wins, too"
    assert (config.alpha, config.logdir, config.mode) == (1.0, Path("from file"), "student")
    assert config.teacher_checkpoint == (Path("models/teacher"),)
    assert isinstance(config.alpha, float)
    assert config.seed == 0


def test_one_plugin_may_stand_alone_in_a_file(file: Path) -> None:
    assert from_file(file, 'plugin = "grad_norm,every=10"\n').plugin == ("grad_norm,every=10",)
    assert from_words("--plugin", "a", "--plugin", "b,c=d").plugin == ("a", "b,c=d")


BAD_FLAGS = """
--alpha 1.5 | from 0 to 1
--alpha -0.1 | from 0 to 1
--alpha nan | from 0 to 1
--alpha half | 'half' | a number
--temperature 0 | above 0 | 1,000,000
--temperature -4 | above 0 | 1,000,000
--temperature nan | above 0 | 1,000,000
--temperature inf | above 0 | 1,000,000
--lr 0 | above 0 | 1,000,000
--lr 1e999 | inf | 1,000,000
--epochs 0 | from 1 to 100,000
--epochs -3 | from 1 to 100,000
--epochs many | 'many' | a whole number
--epochs 1e3 | '1e3' | a whole number
--epochs 2.5 | '2.5' | a whole number
--epochs= | '' | a whole number
--epochs | expected one argument
--teacher-epochs 0 | from 1 to 100,000
--batch-size 0 | from 1 to 100,000,000
--limit-train 0 | from 1 to 100,000,000
--early-stopping 0 | from 1 to 100,000
--val-size -1 | from 0 to 100,000,000
--seed -1 | from 0 to 9,223,372,036,854,775,807
--seeds 0 | from 1 to 1,000
--seeds 3 --mode student | --mode compare | --seed
--teacher-per-seed --mode teacher | --mode compare | teacher
--with-label-smoothing --mode student | --mode compare | student
--with-hard-labels --mode student_kd | --mode compare | student_kd
--weight-decay -0.1 | --weight-decay is -0.1 | from 0 to 1
--weight-decay 1.5 | --weight-decay is 1.5 | from 0 to 1
--weight-decay 0.5 --lr 2 | --weight-decay 0.5 | 2 | below 1
--weight-decay 1 --optimizer adadelta | --weight-decay 1 | below 1
--clip-grad-norm 0 | --clip-grad-norm is 0 | above 0
--clip-grad-norm nan | --clip-grad-norm is nan | above 0
--teacher-per-seed --teacher-checkpoint t | --teacher-checkpoint | leave one of them out
--mode studnet | 'studnet' | did you mean 'student'? | compare
--optimizer Adam | 'Adam' | did you mean 'adam'?
--schedule onecycle | 'onecycle' | did you mean 'one_cycle'?
--device gpu | 'gpu' | auto, cpu, cuda
--epoch 3 | did you mean '--epochs'?
--temprature=3 | did you mean '--temperature'?
stray | 'stray'
"""


@pytest.mark.parametrize("case", BAD_FLAGS.strip().splitlines())
def test_bad_flags_are_named(case: str) -> None:
    words, *expected = case.split(" | ")
    text = refusal_of_words(*words.split())
    assert re.split(r"[ =]", words)[0] in text
    for part in expected:
        assert part in text


BAD_AUGMENTATIONS = """
shift shift=65 shift=0 shift=-1 shift=1.5 shift= shift=² shift=1,shift=2 rotate=181 crop=99999999999
scale scale=0.5 scale=0..1 scale=1..0.5 scale=0.5..1.1 scale=.5..1 scale=a..b colour colour=1.1 erase=0
flip=1 flip,flip flip, none,flip mixup=0 mixup=-1 mixup=1e3 mixup=nan mixup=101 mixup= mixup,mixup=1
"""


@pytest.mark.parametrize("value", [*BAD_AUGMENTATIONS.split(), ""])
@pytest.mark.parametrize("flag", ["--augment", "--teacher-augment"])
def test_bad_augmentations_are_named_with_the_forms_that_are_allowed(flag: str, value: str) -> None:
    text = refusal_of_words(flag, value)
    assert f"{flag} is {value}:" in text
    assert AUGMENT_FORMS in text


BAD_VALUES = """
epochs = true | True | a whole number
epochs = [1, 2] | [1, 2] | a whole number
epochs = 2.0 | 2.0 | a whole number
epochs = "2" | '2' | a whole number
epochs = {a = 1} | {'a': 1} | a whole number
epochs = 2024-01-01 | a whole number
epochs = 0 | from 1 to 100,000
alpha = true | True | a number
alpha = "0.5" | '0.5' | a number
alpha = nan | from 0 to 1
temperature = inf | above 0
temperature = 1E400 | is inf | above 0
lr = -1E400 | is -inf | above 0
mode = ["student"] | ['student'] | a text
mode = "studnet" | did you mean 'student'?
logdir = 5 | a path
logdir = ["a"] | ['a'] | a path
dataset = 1 | a text
plugin = 5 | a text
plugin = [5] | is 5 | a text
plugin = ["a", ["b"]] | ['b'] | a text
plugin = {a = 1} | {'a': 1} | a text
skip_corrupt = 1 | true or false
"""


@pytest.mark.parametrize("case", BAD_VALUES.strip().splitlines())
def test_bad_values_in_a_file_are_named(file: Path, case: str) -> None:
    content, *expected = case.replace("1E400", "1" + "0" * 400).split(" | ")
    text = refusal_of_file(file, content)
    assert text.startswith(f"{content.partition(' ')[0]} in {file}")
    for part in expected:
        assert part in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("epoch = 3", "'epoch' (did you mean 'epochs'?); there are: mode, recipe, epochs, "),
        ('"batch-size" = 3', "'batch-size' (did you mean 'batch_size'?)"),
        ("[fit]\nepochs = 3", "'fit'"),
        ("epochs = ", "cannot be read"),
        ("epochs = 1\nepochs = 2", "cannot be read"),
        ("plugin = " + "[" * 5000, "cannot be read"),
        ("epochs = 1" + "0" * 5000, "cannot be read"),
        ("[a]\n" * 20_000, "65,536"),  # too large to be parsed at all
    ],
)
def test_files_that_cannot_be_used_are_named(file: Path, content: str, expected: str) -> None:
    assert expected in refusal_of_file(file, content)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path, file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    unreadable = [(path, "cannot be read") for path in (file, tmp_path, file / "deeper")]
    for path, reason in [(tmp_path / "none.toml", "there is no such file"), *unreadable]:
        with pytest.raises(UsageError, match=f"^--config {path}.*{reason}"):
            load_config({}, path)


def test_values_that_no_file_or_system_takes_are_refused(file: Path) -> None:
    text = refusal_of_file(file, 'logdir = "a\\u0000b"')
    assert "'a\\x00b'" in text
    assert "NUL" in text
    for flag in ("--logdir", "--plugin"):
        text = refusal_of_words(flag, os.fsdecode(b"l\xff"))
        assert flag in text
        assert "UTF-8" in text


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    for directory in (tmp_path / "none", tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(UsageError, match=r"--resume .* no config\.toml"):
            resumed_config({}, directory)


def test_epochs_that_a_run_was_not_begun_with_are_refused(file: Path) -> None:
    file.write_text("schedule = 'constant'\n")  # kdtrain's own always has the epochs
    with pytest.raises(UsageError, match=r"--epochs 3: .* begun with None"):
        resumed_config({"epochs": 3}, file.parent)


def test_training_takes_the_samples_flags() -> None:
    words = "--model_type student_kd --epochs 10 --batch_size=64 --temperature 5 --alpha 0.7"
    teacher = "--load_teacher_checkpoint_dir ./output/model_save/teacher"
    outputs = "--model_save_dir ./output/model_save --image_save_name ./output/images/compare.jpg"
    assert from_words(*f"{words} {teacher} {outputs}".split()) == FitConfig(
        mode="student_kd",
        epochs=10,
        batch_size=64,
        temperature=5.0,
        alpha=0.7,
        teacher_checkpoint=(Path("output/model_save/teacher"),),
        model_save_dir=Path("output/model_save"),
        image_save_name=Path("output/images/compare.jpg"),
    )
    assert from_words("--model_type", "compare") == FitConfig()


def test_inference_takes_the_samples_flags() -> None:
    words = "--model_load_dir out/teacher --picture_index 9999 --model_type teacher --temperature 10"
    pictures = "--image_save_name out/images/inference.jpg --image_save_dir out"
    options = parse(["infer", *words.split(), *pictures.split()])
    assert options.checkpoint == Path("out/teacher")
    assert (options.picture_index, options.model_type, options.temperature) == (9999, "teacher", 10.0)
    assert options.image_save_name == Path("out/images/inference.jpg")
    assert options.image_save_dir == Path("out")


def test_underscores_in_values_stay_as_they_are() -> None:
    config = from_words("--teacher_arch=hinton_1200", "--logdir", "my_logs", "--plugin=a_b,every_n=1")
    assert (config.teacher_arch, config.logdir) == ("hinton_1200", Path("my_logs"))
    assert config.plugin == ("a_b,every_n=1",)
