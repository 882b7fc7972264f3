"""Results on stdout: tables and text, and what to do next, as commands that can be copied."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.schema import flag_of
from kdtrain.runtime.locations import command_name, with_commands

_WIDTH_ELSEWHERE = 120  # columns in a file or a pipe


class Stdout(Console):
    """A console that prints tables and text to stdout, and does not interpret markup."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _WIDTH_ELSEWHERE
        super().__init__(width=width, highlight=False, markup=False, emoji=False)

    def text(self, text: object) -> None:
        """Prints one line without wrapping, so that a path or a command in it can be copied."""
        self.print(with_commands(str(text)), soft_wrap=True)

    def sentence(self, text: str | Text) -> None:
        """Prints text, wrapped between words on a terminal, and not wrapped elsewhere."""
        shown = with_commands(text) if isinstance(text, str) else text
        self.print(shown, soft_wrap=not self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, which ``main`` handles: rich would exit with 1."""
        raise BrokenPipeError


@contextlib.contextmanager
def only_json() -> Iterator[Callable[[Any], None]]:
    """Keeps stdout for one JSON document: whatever else is printed in the block goes to stderr.

    This includes the output of plugins, of C libraries and of forked processes.

    Yields:
        The function that prints the document.
    """
    sys.stdout.flush()
    document: list[Any] = []
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield document.append
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    for values in document:
        print(json.dumps(values, indent=2))


_OF_THE_DATA = ("dataset", "data_dir", "image_size", "skip_corrupt", "labels", "limit_train", "seed")
_OF_THE_MODELS = ("logdir", "model_save_dir")


def command_line(*words: str) -> str:
    """Returns a command of kdtrain as the user would type it."""
    return f"{command_name()} {shlex.join(words)}"


def print_next(output: Stdout, *commands: str) -> None:
    """Prints one command on a line with ``Next:``, and several below it, without wrapping."""
    if len(commands) == 1:
        output.text(f"Next: {commands[0]}")
    else:
        _print_below("Next:", output, commands)


def _print_below(title: str, output: Stdout, lines: Iterable[str]) -> None:
    output.text(title)
    for line in lines:
        output.text(f"  {line}")


def after_comparison(output: Stdout, config: FitConfig, checkpoint: Path) -> None:
    """Prints what to do after a comparison.

    Args:
        output: where to.
        config: configuration of the comparison.
        checkpoint: its distilled student.
    """
    lines = [f"classify a photo: {_infer(config, checkpoint)}"]
    if ":" not in config.dataset:
        own = command_line("fit", "--mode", "compare", "--dataset", "folder:DIR")
        lines.append(f"your own images:  {own}")
    _print_below("Next: open the report in a browser, or", output, lines)


def after_fit(output: Stdout, config: FitConfig, checkpoint: Path) -> None:
    """Prints what to do after the training of one network, whose best weights are in ``checkpoint``."""
    if config.mode == "student_kd":
        data = {name: getattr(config, name) for name in _OF_THE_DATA[:2]}
        exported = _with_model("export", checkpoint, config.student_arch, data)
        print_next(output, _infer(config, checkpoint), exported)
        return
    words = ["fit", "--mode", "student_kd" if config.mode == "teacher" else "compare"]
    for name in (*_OF_THE_DATA, *_OF_THE_MODELS):
        value = getattr(config, name)
        if value != getattr(FitConfig, name):
            words += [flag_of(name)] if value is True else [flag_of(name), str(value)]
    if config.mode == "teacher" and config.keep == "never":
        words += ["--teacher-checkpoint", str(checkpoint)]
    print_next(output, command_line(*words))


def after_model(output: Stdout, command: str, model: Path, options: argparse.Namespace) -> None:
    """Prints the next command for a model, with the flags that this command had for it."""
    data = {name: getattr(options, name) for name in _OF_THE_DATA[:2]}
    print_next(output, _with_model(command, model, options.arch or "", data))


def _infer(config: FitConfig, checkpoint: Path) -> str:
    """Returns the command that classifies an image; the kept student is its default."""
    image = "my_digit.jpg" if config.dataset == FitConfig.dataset else "IMAGE"
    if config.keep != "never" and config.dataset == FitConfig.dataset and config.data_dir is None:
        models = [] if config.models == FitConfig().models else ["--model-save-dir", str(config.models)]
        return command_line("infer", image, *models)
    return command_line("infer", image, "--checkpoint", str(checkpoint), *_arch(config.student_arch))


def _with_model(command: str, model: Path, arch: str, data: dict[str, str | Path | None]) -> str:
    words = [command, str(model), *_arch(arch)]
    for name, value in data.items():
        if value not in (None, getattr(FitConfig, name)):
            words += [flag_of(name), str(value)]
    return command_line(*words)


def _arch(name: str) -> list[str]:
    """Returns the flag that allows the code of a network; none for kdtrain's and flowvision's own."""
    return ["--arch", name] if ":" in name and not name.startswith("flowvision:") else []
