"""The contract for plugins: a callback has five hooks and one pure function, ``configure``."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd, FitEnd
from kdtrain.engine.objective import Objective
from kdtrain.engine.run import Run
from kdtrain.errors import CallbackError, KdtrainError, one_line, unknown_name_message
from kdtrain.runtime.user_code import class_label, with_source_line


class Callback:
    """Watches a fit, and may change its objective before the first step. Override the hooks you need.

    The hooks of several callbacks run in the order given, ``on_fit_end`` in reverse order. The result
    must not depend on that order: decide in ``on_eval``, and write files in ``on_epoch_end``, when every
    callback has decided.

    Attributes:
        needs_teacher: the callback takes part only in fits with a teacher (see ``NeedsTeacher``).
    """

    needs_teacher: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            if name.startswith("on_") and not hasattr(Callback, name):
                raise TypeError(f"{cls.__name__}.{name}: {unknown_name_message('hook', name, HOOKS)}")

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective to train on.

        It must have no other effect, because commands also call it before the fit, to check the callbacks.
        """
        return objective

    def on_fit_start(self, run: Run) -> None:
        """Called before the first step: open files, prepare a teacher."""

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Called after each optimizer step; the parameters still hold its gradients."""

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Called after each epoch's evaluation on the held-out images: decide here."""

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Called when ``on_eval`` of every callback has run: write files here."""

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Called at the end, also after an error, if ``on_fit_start`` succeeded: close files."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resumed fit needs, as plain values; every checkpoint holds it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
_EVENTS = ("on_batch", "on_eval", "on_epoch_end")  # those that CallbackList.emit calls


class NeedsTeacher(Callback):
    """A callback that takes part only in fits with a teacher, which is ``objective.teacher``.

    ``kdtrain fit --mode compare`` leaves it out of the fits without a teacher. The modes ``teacher`` and
    ``student`` refuse it.
    """

    needs_teacher = True


class CallbackList:
    """Several callbacks as one: calls each in turn, and names callback and hook when one raises."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._named = _names(callbacks)
        self._methods = {hook: _methods(self._named, hook) for hook in _EVENTS}
        self._started: list[tuple[str, Callback]] = []

    def configure(self, objective: Objective) -> Objective:
        """Passes the objective of a fit through ``configure`` of every callback.

        A callback may return a new objective instead of one made from its argument, so the student is
        bound again after each.
        """
        student = objective.student
        for name, callback in self._named:
            configured = _call(name, callback, "configure", objective.credited_to(_origin(callback)))
            if not isinstance(configured, Objective):
                raise CallbackError(f"{name}.configure returned {configured!r}: it must return an Objective.")
            objective = configured.with_student(student)
        return objective

    def on_fit_start(self, run: Run) -> None:
        """Calls ``on_fit_start`` of every callback; those that succeed will get ``on_fit_end``."""
        self._started = []
        for name, callback in self._named:
            _call(name, callback, "on_fit_start", run)
            self._started.append((name, callback))

    def emit(self, hook: str, run: Run, event: BatchEnd | EvalEnd | EpochEnd) -> None:
        """Calls ``hook`` of every callback that overrides it, in order."""
        for name, callback, method in self._methods[hook]:  # called at every step, so it does little
            try:
                method(run, event)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise _failure(name, callback, hook, error) from error

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Calls ``on_fit_end`` of every callback that was started, in reverse order, even if one raises.

        Raises:
            CallbackError: the first error, raised when every callback was called.
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
        """Returns every callback's state by the callback's name.

        Raises:
            CallbackError: a callback's state is not a dict of plain values.
        """
        return {name: _state(name, callback) for name, callback in self._named}

    def load_state_dict(self, states: dict[str, dict[str, Any]]) -> None:
        """Restores every callback's state."""
        for name, callback in self._named:
            if name in states:
                _call(name, callback, "load_state_dict", states[name])


def _names(callbacks: Sequence[Callback]) -> list[tuple[str, Callback]]:
    """Names each callback by its class: ``Csv``, and ``Csv#2`` for the second one of that class."""
    count: Counter[str] = Counter()
    named = []
    for callback in callbacks:
        if not isinstance(callback, Callback):
            what = callback.__name__ if inspect.isclass(callback) else repr(callback)
            hint = ": pass an instance, not the class" if inspect.isclass(callback) else ""
            raise TypeError(f"{what} is not a Callback{hint}.")
        name = type(callback).__name__
        count[name] += 1
        named.append((name if count[name] == 1 else f"{name}#{count[name]}", callback))
    return named


def _methods(
    named: Sequence[tuple[str, Callback]], hook: str
) -> list[tuple[str, Callback, Callable[..., None]]]:
    """Returns name, callback and bound method of those callbacks that override a hook."""
    empty = getattr(Callback, hook)
    methods = [(name, callback, getattr(callback, hook)) for name, callback in named]
    return [entry for entry in methods if getattr(entry[2], "__func__", None) is not empty]


def _call(name: str, callback: Callback, hook: str, *arguments: Any) -> Any:
    """Calls one hook. Every exception except KeyboardInterrupt becomes a CallbackError."""
    try:
        return getattr(callback, hook)(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _failure(name, callback, hook, error) from error


def _state(name: str, callback: Callback) -> dict[str, Any]:
    """Returns a callback's state if a checkpoint can hold it; else raises CallbackError."""
    state = _call(name, callback, "state_dict")
    try:
        if isinstance(state, dict):
            json.dumps(state)
            return state
        reason = f"{'None' if state is None else type(state).__name__} is not a dict"
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error).rstrip(".")
    raise CallbackError(
        f"{_origin(callback)}.state_dict returned what a checkpoint cannot hold ({reason}): return a dict of "
        "plain values (numbers, texts, lists, dicts)."
    )


def _failure(name: str, callback: Callback, hook: str, error: BaseException) -> CallbackError:
    """Returns the error that names callback and hook in which ``error`` was raised.

    StopIteration is wrapped too, because it would end a caller's loop, and SystemExit, because it would
    end the process without a message.
    """
    if not isinstance(error, KdtrainError):
        place = with_source_line(_origin(callback), error)
        before = f"{place}: " if place != type(callback).__name__ else ""
        return CallbackError(f"{before}{name}.{hook} raised {one_line(error)}.")
    named = isinstance(error, CallbackError)  # such as by Checkpoint, which gets the states of all callbacks
    failure = CallbackError(str(error) if named else f"{error} (in {name}.{hook})")
    failure.exit_code = error.exit_code
    return failure


def _origin(callback: Callback) -> str:
    """Returns a callback's name in messages: its class, and the file if it is the user's."""
    name = class_label(type(callback))
    return f"plugin {name}" if ":" in name else name
