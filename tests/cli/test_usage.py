"""The command line: its help, and exit codes and one-line errors for all that a user can get wrong."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdtrain.cli import main
from kdtrain.cli.parser import COMMANDS, command_parser
from kdtrain.experiment.settings.config import FitConfig, list_recipes, read_recipe, recipe_for
from kdtrain.experiment.settings.schema import GROUPS, flag_of
from tests import warm
from tests.cli.conftest import EPOCH, Call, Fitted, assert_explained, run, run_python
from tests.terminal import lines_left, show_on_terminal
from tests.tools import ROOT, files_in

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
KDTRAIN = (sys.executable, "-m", "kdtrain")

WRONG_WORDS = """
fitt | 'fitt' | did you mean 'fit'?
train | 'train' | did you mean 'fit'?
compare --seeds 2 | 'compare' | did you mean 'fit --mode compare'?
predict a.png | 'predict' | did you mean 'infer'?
help fitt | 'fitt' | did you mean 'fit'?
--vresion | --vresion | did you mean '--version'?
-- | there is no flag --
fit --moed student | --moed | did you mean '--mode'? | kdtrain fit --help
eval model --jsn | --jsn | did you mean '--json'? | kdtrain eval --help
eval model --json=3 | --json | '3'
eval model --device gpuu | --device is 'gpuu' | auto or cpu or cuda
infer --model-type studnt | --model-type is 'studnt' | did you mean 'student'?
fit --mode studnt | --mode | 'studnt' | did you mean 'student'?
fit --replace --no-keep | --no-keep | --replace
fit --teacher-arch teacher_cn | 'teacher_cn' | did you mean 'teacher_cnn'?
fit --dataset mnits | 'mnits' | did you mean 'mnist'?
fit stray | 'stray'
fit --epochs | --epochs | expected one argument
fit --epochs two | --epochs is 'two' | a whole number
fit --epochs 0 | --epochs is 0
fit --batch_size=0 | --batch-size is 0
fit --val-size 60000 | --val-size 60000 | 59999
fit --limit-train 55001 | --limit-train 55001 | 55000
fit --with-label-smoothing --plugin label_smoothing,epsilon=0.2 | leave one of them out
fit --with-hard-labels --plugin hard_labels | leave one of them out
fit --mode student --plugin hard_labels | --plugin hard_labels | student_kd or compare
fit --config none.toml | --config none.toml (looked for at
fit --plugin nothing | 'nothing'
fit --resume nowhere | nowhere | config.toml
fit --resume --mode teacher | logs/teacher
launch --nnodes 2 | kdtrain launch --nnodes 2 fit
launch eval model | kdtrain launch --nnodes 2 fit
launch --nnode 2 fit | --nnode | did you mean '--nnodes'?
launch --nnodes 2 --node-rank 2 fit | --node-rank is 2 | from 0 to 1
launch --nproc-per-node 0 fit | --nproc-per-node is 0 | at least 1
launch --master-port 65536 fit | --master-port is 65536 | from 1 to 65535
config --alpha 2 | --alpha is 2.0
eval | CHECKPOINT
models resnet9 | there is no architecture 'resnet9' (did you mean 'resnet8'?)
models flowvision:resnet19 | there is no flowvision classifier 'resnet19'
models res?et9 | there is no network like 'res?et9'
models --image-shape 3,32 | --image-shape 3,32: give channels, height and width
models --image-shape 3,32,0 | --image-shape 3,32,0: give
models --image-shape 3,32,99999999999999999999 | give channels, height and width
models --image-shape=-3,32,32 | --image-shape -3,32,32: give
models --dataset mnits | no data set 'mnits' (did you mean 'mnist'?)
"""


@pytest.mark.parametrize("case", WRONG_WORDS.strip().splitlines())
def test_wrong_words_are_explained(call: Call, tmp_path: Path, case: str) -> None:
    words, *expected = case.split(" | ")
    assert_explained(call.any_code(*words.split()), 2, *expected)
    assert files_in(tmp_path) == {}


def test_exit_code_of_the_process_is_that_of_the_error(spawn: Call, tmp_path: Path) -> None:
    assert_explained(spawn.any_code("fit", "--alpha", "2", cwd=tmp_path), 2, "--alpha is 2.0")
    assert_explained(
        spawn.any_code("eval", "nowhere", cwd=tmp_path), 1, "there is no checkpoint nowhere (looked for at"
    )


def test_no_words_get_the_help(call: Call) -> None:
    finished = call.any_code()
    assert (finished.returncode, finished.stdout) == (2, "")
    *lines, last = finished.stderr.splitlines()
    assert last.startswith("kdtrain: ")
    assert max(map(len, lines)) <= 80
    assert set(COMMANDS) <= {line.split()[0] for line in lines if line}


@pytest.mark.parametrize(
    ("words", "flags"), [("help", "--help"), ("version", "--version"), ("help eval", "eval --help")]
)
def test_help_and_version_are_commands_too(
    words: str, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for text in (flags, words):
        with pytest.raises(SystemExit) as end:
            main(text.split())
        assert end.value.code == 0
        printed.append(capsys.readouterr())
    assert printed[1] == printed[0]
    assert printed[0].out


def test_help_and_config_import_nothing_slow() -> None:
    program = """
import sys
from kdtrain.cli import main
from kdtrain.cli.parser import COMMANDS
for words in (["--help"], ["--version"], ["fit", "--help-all"], *([name, "--help"] for name in COMMANDS)):
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0
main(["config", "--mode", "student_kd"])
print({"oneflow", "numpy", "matplotlib", "tensorboardX", "PIL"} & sys.modules.keys(), file=sys.stderr)
"""
    finished = run_python(program)
    assert (finished.returncode, finished.stderr) == (0, "set()\n")
    assert 'mode = "student_kd"' in finished.stdout
    assert "usage: kdtrain COMMAND" in finished.stdout
    assert "--teacher-checkpoint FILE" in finished.stdout


HAS_NO_DEFAULT = {"config", "data_dir", "picture_index", "checkpoint", "teacher", "image_shape"}


def help_all(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What --help-all of a command prints; its --help, if it has only that."""
    parser = command_parser(command)
    with pytest.raises(SystemExit):
        parser.parse(["--help-all" if "--help-all" in parser._option_string_actions else "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_can_be_read_alone(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = command_parser(command)
    for text in (parser.format_help(), help_all(command, capsys)):
        assert max(map(len, text.splitlines())) <= 80
        assert not re.search(r"\b(likewise|the same|as above|see above|by the recipe)\b", text, re.IGNORECASE)
    known: set[str] = set()
    flags = set(parser._option_string_actions)
    for action in (action for group in parser._action_groups for action in group._group_actions):
        known |= set(action.option_strings)
        if action.help == argparse.SUPPRESS:
            assert set(action.option_strings) <= {"--model-type", "--load-teacher-checkpoint-dir"}
            continue
        assert action.help, action
        takes_value = action.nargs != 0 and action.option_strings
        assert "[" in action.help or not takes_value or action.dest in HAS_NO_DEFAULT, action
        named = set(re.findall(r"--[a-z-]+", action.help)) & flags
        assert named <= known, f"the help of {action.option_strings} names a flag that comes later"


def flags_by_heading(text: str) -> dict[str, set[str]]:
    """The flags of a help text, by the heading that they are under."""
    parts = re.split(r"^(\w.*):$", text, flags=re.MULTILINE)[1:]
    return {
        heading: set(re.findall(r"^  (--[a-z-]+)", part, re.MULTILINE))
        for heading, part in zip(parts[::2], parts[1::2], strict=True)
    }


def test_short_help_of_fit_has_60_lines_at_most_and_the_long_one_every_setting_in_the_same_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short = command_parser("fit").format_help()
    assert len(short.splitlines()) <= 60
    assert "--help-all" in short.splitlines()[-1]
    of_short, of_all = flags_by_heading(short), flags_by_heading(help_all("fit", capsys))
    assert tuple(of_short) == GROUPS
    assert tuple(of_all) == ("options", *GROUPS)
    for field in dataclasses.fields(FitConfig):
        flag, heading = flag_of(field.name), field.metadata["group"]
        assert flag in of_all[heading]
        assert (flag in of_short[heading]) == field.metadata["is_common"]
    assert all(flags <= of_all[heading] for heading, flags in of_short.items())


def shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_help_names_the_value_of_every_recipe_that_has_another_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, *entries = re.split(r"^  (?=--)", help_all("fit", capsys), flags=re.MULTILINE)
    by_flag = {entry.split()[0]: " ".join(entry.split()) for entry in entries}
    for recipe in list_recipes():
        for name, value in recipe.settings.items():
            default = re.search(r"\[(.*)\]", by_flag[flag_of(name)])
            assert default, name
            own, *others = default[1].split("; ")
            texts = [text for text in others if text.startswith(f"{shown(value)} in recipe")]
            assert own == shown(value) or any(recipe.name in text for text in texts), (recipe.name, name)
    short = " ".join(command_parser("fit").format_help().split())
    usual = read_recipe(recipe_for("mnist", None))
    for field in (field for field in dataclasses.fields(FitConfig) if field.metadata["is_common"]):
        if field.name in usual.settings:
            assert f"[{shown(usual.settings[field.name])} in recipe {usual.name}]" in short


@pytest.mark.parametrize("flag", ["--logdir", "--model-save-dir", "--image-save-dir"])
def test_directory_that_cannot_be_written_is_found_before_any_work(
    fitted: Fitted, call: Call, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/below"):
        finished = call.any_code("fit", "--mode", "student", *fitted.flags, flag, place)
        assert_explained(finished, 1, f"cannot make the directory {place}")
    assert not list(tmp_path.glob("logs/student*"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_full_disk_ends_the_run_and_harms_nothing(fitted: Fitted, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the best weights take 109 KB, it ends at 64."""
    (tmp_path / "logs/models").mkdir(parents=True)
    (tmp_path / "logs/models/student.safetensors").write_bytes(fitted.model("student").read_bytes())
    before = files_in(tmp_path)
    words = (*KDTRAIN, "fit", "--mode", "student", *fitted.flags)
    finished = run("bash", "-c", 'ulimit -f 64 && exec "$@"', "bash", *words, cwd=tmp_path)
    assert_explained(
        finished, 1, "cannot write logs/student/version_0/checkpoints/best.safetensors", "too large"
    )
    after = files_in(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".tmp")]
    result = json.loads(after["logs/student/version_0/result.json"])
    assert (result["status"], result["epochs"]) == ("failed", 1)


def test_plugin_that_refuses_the_network_leaves_no_run(fitted: Fitted, call: Call, tmp_path: Path) -> None:
    """Else ``--resume`` would go on with that one, for ever."""
    words = ("fit", "--mode", "student", *fitted.flags, "--plugin", "dropout")
    assert_explained(call.any_code(*words), 2, "--plugin dropout: the network has no dropout layer")
    assert not files_in(tmp_path)


def test_debug_shows_the_traceback(fitted: Fitted, call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from elsewhere import Callback")
    words = ("fit", "--mode", "student", *fitted.flags, "--plugin", "mine.py:Mine")
    assert_explained(call.any_code(*words), 1, "mine.py", "No module named 'elsewhere'")
    finished = call.any_code(*words, "--debug")
    assert finished.returncode == 1
    assert finished.stderr.startswith("Traceback (most recent call last):")
    assert 'mine.py", line 1' in finished.stderr


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help-all"], ["plugins"], ["eval"]])
def test_reader_that_has_enough_is_no_error(words: list[str], fitted: Fitted, tmp_path: Path) -> None:
    """As with ``kdtrain eval … | head -1``: stdout has a buffer, and is closed."""
    if words == ["eval"]:
        words = ["eval", str(fitted.model("student")), "--data-dir", str(fitted.flags[1])]
    variables = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    read, write = os.pipe()
    os.close(read)
    command = [*KDTRAIN, *words]
    finished = warm.run(command, cwd=tmp_path, env=variables, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (finished.returncode, finished.stderr) == (0, b"")


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "POSIX", "LANG": "C", "TERM": "dumb"},
        {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "40"},
    ],
    ids=["posix", "ascii"],
)
def test_any_locale_will_do(fitted: Fitted, spawn: Call, tmp_path: Path, variables: dict[str, str]) -> None:
    folder = tmp_path / "Läufe vom 1. März"
    flags = (*fitted.flags, "--epochs", "1", "--logdir", folder)
    finished = spawn("fit", "--mode", "student", *flags, cwd=tmp_path, **variables)
    assert (folder / "models/student.safetensors").exists()
    *_, weights, following = finished.stdout.splitlines()
    assert weights.endswith("/student/version_0/checkpoints/best.safetensors")
    assert following.startswith("Next: kdtrain fit --mode compare --data-dir ")
    assert all(EPOCH.fullmatch(line) for line in finished.stderr.splitlines())


def test_models_that_are_trained_side_by_side_leave_whole_lines(fitted: Fitted, tmp_path: Path) -> None:
    flags = ("--mode", "compare", *fitted.flags, "--seeds", "2", "--epochs", "8", "--teacher-epochs", "1")
    shown, _ = show_on_terminal("fit", *flags, cwd=tmp_path)
    first, *lines = lines_left(shown)
    assert first.startswith("Seeds 0 to 1")
    epochs = [line for line in lines if not line.startswith("Teacher: ")]
    assert len(lines) == len(epochs) + 1
    assert [line for line in epochs if not EPOCH.fullmatch(line)] == []
    assert [line.split()[1] for line in epochs] == ["1/1", *["8/8"] * 4], "a line for each network"
    assert max(map(len, epochs)) <= 80
    for network in ("teacher", "student", "student_kd"):
        assert re.search(rf"{network}/0 \d/\d: +\d+%\|", shown)
    assert re.search(r"all epochs \d+/33: +\d+%\|.*\d\d:\d\d left", shown)


STOPS = """
from kdtrain import Callback

class Stops(Callback):
    def on_eval(self, run, event):
        if run.epoch == 7:
            run.stop("it is enough, and a reason of more words than a line of a terminal has room for")
"""


def test_terminal_gets_a_bar_that_leaves_one_line_and_breaks_messages_between_words(
    fitted: Fitted, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(STOPS)
    words = ("fit", "--mode", "student", *fitted.flags, "--epochs", "10", "--plugin", "mine.py:Stops")
    shown, answer = show_on_terminal(*words, cwd=tmp_path)
    assert re.search(r"student \d+/10: +\d+%\|.*loss [\d.]+, accuracy [\d.]+%", shown)
    assert "all epochs" not in shown
    assert answer.startswith("test accuracy  ")
    assert "\x1b" not in answer
    epoch, *reason = lines_left(shown)
    assert EPOCH.fullmatch(epoch)
    assert epoch.split()[1] == "7/10"
    assert max(map(len, (epoch, *reason))) <= 80
    assert len(reason) == 2
    assert " ".join(reason).endswith(
        "it is enough, and a reason of more words than a line of a terminal has room for"
    )


@pytest.mark.parametrize("columns", [80, 50])
@pytest.mark.parametrize(
    ("words", "commands"),
    [
        ("fit --moed student", ["kdtrain fit --help"]),
        ("launch --nnodes 2", ["kdtrain launch --nnodes 2 fit --mode student"]),
        (
            "eval --device gpu a-folder-with-a-long-name/and-a-model-of-it.safetensors",
            ["kdtrain eval --help"],
        ),
        ("", ["kdtrain fit", "kdtrain COMMAND --help"]),
    ],
)
def test_terminal_breaks_errors_and_help_between_words_and_never_in_a_command(
    words: str, commands: list[str], columns: int, call: Call, tmp_path: Path
) -> None:
    in_pipe = call.any_code(*words.split())
    shown, _ = show_on_terminal(*words.split(), cwd=tmp_path, columns=columns, code=in_pipe.returncode)
    lines = lines_left(shown)
    assert " ".join(shown.split()) == " ".join(in_pipe.stderr.split())
    assert all(len(line) <= columns or " " not in line for line in lines)
    assert all(any(f"`{command}`" in line for line in lines) for command in commands)


def test_pipe_gets_a_line_for_each_tenth_of_the_way_and_all_with_verbose(fitted: Fitted, call: Call) -> None:
    words = ("fit", "--mode", "student", *fitted.flags, "--epochs=24", "--limit-train=64")
    for flags, expected in (((), [3, 5, 8, 10, 12, 15, 17, 20, 22, 24]), (("--verbose",), [*range(1, 25)])):
        lines = call(*words, *flags).stderr.splitlines()
        epochs = [match for match in map(EPOCH.fullmatch, lines) if match]
        assert [int(match[2]) for match in epochs] == expected
        assert len(lines) == len(epochs) or flags
