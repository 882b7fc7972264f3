"""Errors with messages for users, their exit codes, and helpers for the text of messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CPP_STACK = re.compile(r'\s*\n *File "[^"\n]*\.(cpp|cc|cu|h|hpp)", line .*', re.DOTALL)
_NEAR = 0.65  # smallest ratio of difflib: alfa reaches it for alpha, quiet does not for augment
_SHORTEST = 3  # letters of a beginning that is completed
_MOST_SHOWN = 500  # characters of a message
_LONGEST_SHOWN = 100
_UNSHOWABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class KdtrainError(Exception):
    """An error that the user can fix; printed as one or two sentences without a traceback.

    The text says what is wrong, where (file, flag, value), and what to do.
    """

    exit_code = 1

    def __str__(self) -> str:
        return escape_controls(super().__str__())


class UsageError(KdtrainError):
    """A flag, a value or a name that cannot be used; nothing was started."""

    exit_code = 2


class DataError(KdtrainError):
    """A data set or an image that is missing, damaged or inconsistent."""


class CheckpointError(KdtrainError):
    """A checkpoint that is missing, damaged, or made for another network or data set."""


class NonFiniteError(KdtrainError):
    """A loss, a weight or an output of a network that is infinite or NaN."""


class CallbackError(KdtrainError):
    """A hook of a callback raised; the original exception is the ``__cause__``."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: an interruption like Ctrl-C, except for its exit code."""


def escape_controls(text: str) -> str:
    """Returns ``text`` with control characters and lone surrogates escaped.

    Names in a file from elsewhere may hold sequences that control a terminal, and lone surrogates cannot
    be encoded.
    """
    return _UNSHOWABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def clipped(value: object, write: Callable[[object], str] = str) -> str:
    """Returns a value as text, cut to 100 characters."""
    try:
        text = write(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def size_text(shape: Iterable[int]) -> str:
    """Returns the text of a shape in messages, such as ``"1x28x28"``."""
    return "x".join(map(str, shape))


def listed(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """Returns the first ``most`` texts in a row, and how many more there are."""
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return separator.join([*texts[:most], *more])


def os_reason(error: BaseException) -> str:
    """Returns the reason in an error of the system, without file and number; the text of any other error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def error_text(error: BaseException) -> str:
    """Returns the text of an error on one line, or the name of the signal of an interruption."""
    if isinstance(error, Terminated):
        return "SIGTERM"
    return "Ctrl-C" if isinstance(error, KeyboardInterrupt) else one_line(error)


def one_line(error: BaseException) -> str:
    """Returns an exception's type and text on one line, without a full stop; for a KdtrainError, the text.

    oneflow's messages have terminal colours, and a C++ stack after the cause: both are removed. Where two
    sizes differ, the message holds only the numbers: "sizes do not match" is added.
    """
    if isinstance(error, KdtrainError):
        return str(error)
    text = _CPP_STACK.sub("", _COLOURS.sub("", str(error)))
    text = " ".join(text.split()).removeprefix("Error: ").removeprefix("RuntimeError: ").rstrip(".")
    if re.fullmatch(r"\(.+ vs .+\)", text):
        text = f"sizes do not match: {text[1:-1]}"
    if len(text) > _MOST_SHOWN:
        text = f"{text[:_MOST_SHOWN]}..."
    text = escape_controls(text)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for an option similar to ``name``, else ``""``.

    An option is similar if difflib says so, or if it begins with ``name``.
    """
    near = {option.lstrip("-").lower(): option for option in options}
    word = name.lstrip("-").lower()
    close = difflib.get_close_matches(word, near, n=1, cutoff=_NEAR)
    if not close and len(word) >= _SHORTEST:
        close = [option for option in near if option.startswith(word)]
    return f" (did you mean {near[close[0]]!r}?)" if close else ""


def unknown_name_message(kind: str, name: str, options: Iterable[str], meant: str | None = None) -> str:
    """Returns the message for an unknown name, with what is meant or the nearest option, and all options."""
    options = list(options)
    listed = ", ".join(options) or "none"
    near = f" (did you mean {meant!r}?)" if meant else did_you_mean(name, options)
    return f"there is no {kind} {clipped(name, repr)}{near}; there are: {listed}."
