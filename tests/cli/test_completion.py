"""``kdtrain completion``: the scripts complete in the shells that they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from kdtrain.cli.completion import completion_script
from kdtrain.cli.parser import COMMANDS, command_parser
from tests.cli.conftest import Call
from tests.documents import DOCS, text_of

CASES = {
    "kdtrain co": {"completion", "config"},
    "kdtrain fit --mode st": {"student", "student_kd"},
    "kdtrain runs --sort he": {"held-out"},
    "kdtrain fit --dataset f": {"fashion_mnist"},
    "kdtrain fit --plugin grad": {"grad_norm"},
    "kdtrain eval --js": {"--json"},
    "kdtrain eval dig": {"digits.safetensors"},
}

BASH = """
source "$1"
complete -p kdtrain >/dev/null
while read -ra COMP_WORDS; do
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _shtab_kdtrain kdtrain "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
    echo "${COMPREPLY[*]}"
done
"""
FISH = """
source $argv[1]
while read line
    echo (complete -C "$line" | string split -f 1 \\t)
end
"""
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; autoload -U compinit; compinit -u -D; bindkey '^I' complete-word"
zpty -w shell "eval \\"\\$(cat '$1')\\"; zle -C all complete-word _generic; echo READY"
zpty -r -m shell out '*READY*READY*'
while read -r line; do
    zpty -w -n shell "$line"$'\\t\\t'
    sleep 1
    zpty -w -n shell $'\\x15'
    out=; while zpty -r -t shell part; do out+=$part; done
    echo ${out//[$'\\r\\n']/ }
done
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shell")
    (folder / "digits.safetensors").touch()
    for shell in ("bash", "zsh", "fish"):
        (folder / f"script.{shell}").write_text(completion_script(shell))
    return folder


def completions(folder: Path, shell: str, *command: str, lines: Iterable[str] = CASES) -> dict[str, set[str]]:
    """Returns what a shell offers for each line."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"needs {shell}")
    finished = subprocess.run(
        [path, *command, str(folder / f"script.{shell}")],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=folder,
    )
    assert finished.stderr == ""
    shown = finished.stdout.splitlines()
    return {line: set(words.split()) for line, words in zip(lines, shown, strict=True)}


def test_bash_completes(folder: Path) -> None:
    assert completions(folder, "bash", "--norc", "-c", BASH, "bash") == CASES


def test_fish_completes(folder: Path) -> None:
    assert completions(folder, "fish", "--no-config", "-c", FISH) == CASES


def test_help_and_page_name_the_same_way_to_complete() -> None:
    help_text = " ".join(command_parser("completion").format_help().split())
    page = text_of(DOCS / "sharing.md")
    ways = re.findall(r"^\| (bash|zsh|fish) \| (.+) \|$", page, re.MULTILINE)
    assert len(ways) == 3
    assert [way for _, way in ways if way.replace("`", "") not in help_text.replace("`", "")] == []


def test_zsh_completes(folder: Path) -> None:
    line = "kdtrain fit --dataset fash"
    shown = completions(folder, "zsh", "-f", "-c", ZSH, "zsh", lines=[line])[line]
    assert any(word.startswith("fashion_mnist") for word in shown)  # what follows moves the cursor


def test_every_command_and_flag_is_in_the_script(folder: Path, call: Call) -> None:
    script = (folder / "script.bash").read_text()
    for command in COMMANDS:
        assert f"_shtab_kdtrain_{command}_option_strings=(-h --help" in script
    assert "--temperature" in script
    finished = call("completion", "bash", cwd=folder)
    assert (finished.stdout, finished.stderr) == (f"{script}\n", "")
    finished = call.any_code("completion", "zhs", cwd=folder)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "did you mean 'zsh'?" in finished.stderr
