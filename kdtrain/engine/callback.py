"""The contract for plugins: a callback has five events and one pure function."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd, FitEnd
from kdtrain.engine.objective import Objective
from kdtrain.engine.run import Run
from kdtrain.errors import CallbackError, KdtrainError, one_line, unknown_name_message
from kdtrain.runtime.user_code import located, origin


class Callback:
    """Watches a fit, and may change its objective before it begins. Override what you need.

    Callbacks run in the order given, ``on_fit_end`` in the reverse one. No callback may depend on
    its place: decide in ``on_eval``, write files in ``on_epoch_end``, when everybody has decided.

    Attributes:
        needs_teacher: it takes part only where there is a teacher (see ``NeedsTeacher``).
        needs_whole_batch: its loss relates a batch's images to one another (see ``NeedsWholeBatch``).
    """

    needs_teacher: ClassVar[bool] = False
    needs_whole_batch: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            if name.startswith("on_") and not hasattr(Callback, name):
                raise TypeError(f"{cls.__name__}.{name}: {unknown_name_message('hook', name, HOOKS)}")

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective to train on, and has no effect: a command tries it before any training."""
        return objective

    def on_fit_start(self, run: Run) -> None:
        """Training is about to begin: open files, prepare a teacher."""

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """An optimizer step was made; the parameters still hold its gradients."""

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """The held-out images were evaluated: decide here."""

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Every callback had ``on_eval``: write files here."""

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """The fit is over, also by an error: close files. Called only if ``on_fit_start`` succeeded."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed fit must know, as plain values; it goes into every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` returned."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
_EVENTS = ("on_batch", "on_eval", "on_epoch_end")  # those that CallbackList.emit knows


class NeedsTeacher(Callback):
    """A callback that takes part only where there is a teacher.

    From the command line it is left out of a comparison's other networks, and refused in the modes
    that train without a teacher. It finds the teacher as ``objective.teacher``.
    """

    needs_teacher = True


class NeedsWholeBatch(Callback):
    """A callback whose loss relates a batch's images to one another.

    The processes that share a network's batches on a CPU would each relate the images of their part
    only, so that the result would depend on the number of cores: with such a callback there is one
    process. With ``--nproc-per-node`` each process relates the ``--batch-size`` images of its own.
    """

    needs_whole_batch = True


class CallbackList:
    """Many callbacks as one: calls each in turn, and says whose hook it was when one raises."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._named = _names(callbacks)
        self._listeners = {hook: _listeners(self._named, hook) for hook in _EVENTS}
        self._started: list[tuple[str, Callback]] = []

    def configure(self, objective: Objective) -> Objective:
        """Passes the objective through every callback."""
        for name, callback in self._named:
            objective = _call(name, callback, "configure", objective.credited_to(_origin(callback)))
            if not isinstance(objective, Objective):
                raise CallbackError(f"{name}.configure returned {objective!r}: it must return an Objective.")
        return objective

    def on_fit_start(self, run: Run) -> None:
        """Starts every callback, and remembers which ones were."""
        self._started = []
        for name, callback in self._named:
            _call(name, callback, "on_fit_start", run)
            self._started.append((name, callback))

    def emit(self, hook: str, run: Run, event: BatchEnd | EvalEnd | EpochEnd) -> None:
        """Calls ``hook`` on every callback, in order."""
        for name, callback, method in self._listeners[hook]:  # many times a second: as little as possible
            try:
                method(run, event)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise _failure(name, callback, hook, error) from error

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Ends every callback that was started, in reverse order, even where one of them raises.

        Raises:
            CallbackError: the first of the errors, once everybody was told.
        """
        errors: list[BaseException] = []
        while self._started:
            name, callback = self._started.pop()
            try:
                _call(name, callback, "on_fit_end", run, event)
            except (CallbackError, KeyboardInterrupt) as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Returns every callback's state, by its name."""
        return {name: _call(name, callback, "state_dict") for name, callback in self._named}

    def load_state_dict(self, states: dict[str, dict[str, Any]]) -> None:
        """Gives every callback back what it had."""
        for name, callback in self._named:
            if name in states:
                _call(name, callback, "load_state_dict", states[name])


def _names(callbacks: Sequence[Callback]) -> list[tuple[str, Callback]]:
    """Names each callback by its class, with a number from the second of a class on."""
    seen: Counter[str] = Counter()
    named = []
    for callback in callbacks:
        if not isinstance(callback, Callback):
            what = callback.__name__ if inspect.isclass(callback) else repr(callback)
            hint = ": pass an instance, not the class" if inspect.isclass(callback) else ""
            raise TypeError(f"{what} is not a Callback{hint}.")
        kind = type(callback).__name__
        seen[kind] += 1
        named.append((kind if seen[kind] == 1 else f"{kind}#{seen[kind]}", callback))
    return named


def _listeners(
    named: Sequence[tuple[str, Callback]], hook: str
) -> list[tuple[str, Callback, Callable[..., None]]]:
    """Returns those callbacks that do anything in a hook, each with its name and its method."""
    idle = getattr(Callback, hook)
    methods = [(name, callback, getattr(callback, hook)) for name, callback in named]
    return [entry for entry in methods if getattr(entry[2], "__func__", None) is not idle]


def _call(name: str, callback: Callback, hook: str, *arguments: Any) -> Any:
    """Calls one hook. Whatever it raises, but for an interruption, becomes a CallbackError."""
    try:
        return getattr(callback, hook)(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _failure(name, callback, hook, error) from error


def _failure(name: str, callback: Callback, hook: str, error: BaseException) -> CallbackError:
    """Returns the error that names the hook in which another one came up.

    That one may be StopIteration, which a loop around us would take for its own end, or SystemExit,
    which would end the process as if nothing were wrong.
    """
    if not isinstance(error, KdtrainError):
        place = located(_origin(callback), error)
        before = f"{place}: " if place != type(callback).__name__ else ""
        return CallbackError(f"{before}{name}.{hook} raised {one_line(error)}.")
    failure = CallbackError(f"{error} (in {name}.{hook})")
    failure.exit_code = error.exit_code
    return failure


def _origin(callback: Callback) -> str:
    """Returns what messages call a callback: its class, and the file if it is the user's."""
    name = origin(type(callback))
    return f"plugin {name}" if ":" in name else name
