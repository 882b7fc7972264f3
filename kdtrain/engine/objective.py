"""The objective that training minimises: named, weighted loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from kdtrain.data.loader import Batch
from kdtrain.engine.losses import cross_entropy
from kdtrain.engine.recorder import Output, Recorder, Teacher
from kdtrain.errors import KdtrainError, UsageError
from kdtrain.nn.losses import WeightedSum
from kdtrain.nn.operations import small_in_numpy
from kdtrain.runtime import flow
from kdtrain.runtime.user_code import user_code_error

Term = Callable[[Batch, Output], "flow.Tensor"]
"""A loss: maps a batch and the network's output to a scalar tensor, the mean over the batch's images.

The parameters of a term that is an ``nn.Module`` are trained along with the network.
"""

Constraint = Callable[[], None]
"""A projection: moves weights that a step has carried out of bounds to the nearest allowed ones, in place."""

Weight = float | Callable[[float], float]
"""A term's factor, or a schedule of it.

A schedule is a function of the epochs done so far (1.5 is half-way through the second epoch).
"""


class WeightedTerm(NamedTuple):
    """One entry of an objective."""

    term: Term
    weight: Weight

    def factor(self, epochs_done: float) -> float:
        """Returns the weight after ``epochs_done`` epochs."""
        return _at(self.weight, epochs_done)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the term's loss of a batch, without the weight.

        Args:
            batch: images and labels, see ``Batch``.
            output: the network's output for ``batch.inputs``.

        Returns:
            A tensor of one number, the mean over the batch's images, in the term's own unit.

        Raises:
            TypeError: the term does not return a tensor of one number.
        """
        return _one_number(self.term(batch, output))


@dataclass(frozen=True, eq=False)
class Objective:
    """Named, weighted terms. It is immutable: every method that changes something returns a new objective.

    Attributes:
        terms: each term and its weight by name.
        eval_model: the network to evaluate instead of the student; see ``evaluate_with``.
        constraints: called after every optimizer step; see ``with_constraint``.
    """

    terms: Mapping[str, WeightedTerm]
    eval_model: flow.nn.Module | None = None
    constraints: tuple[Constraint, ...] = ()
    _student: Recorder | None = field(default=None, repr=False)
    _teacher: Teacher | None = field(default=None, repr=False)
    _temperature: Callable[[], float] = field(default=lambda: 1.0, repr=False)
    _author: str = field(default="", repr=False)
    _authors: Mapping[str | int, str] = field(default_factory=dict, repr=False)
    """Authors for error messages, by a term's name or a constraint's number."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))

    @classmethod
    def task(cls) -> Objective:
        """Returns the plain objective: cross-entropy against the labels, as the term ``task``."""
        return cls({"task": WeightedTerm(cross_entropy, 1.0)})

    @property
    def student(self) -> Recorder:
        """The network in training; a callback has its layers recorded here.

        Raises:
            KdtrainError: the objective does not belong to a fit.
        """
        if self._student is None:
            raise KdtrainError("this objective does not belong to a fit, so it has no student.")
        return self._student

    @property
    def teacher(self) -> Teacher:
        """The trained network that terms compare the student with.

        Raises:
            UsageError: the objective has no teacher.
        """
        if self._teacher is None:
            raise UsageError(
                "it needs a teacher: choose --mode student_kd or compare "
                "(in Python, put it after the DistillationCallback)."
            )
        return self._teacher

    @property
    def temperature(self) -> float:
        """T of the soft targets, ``--temperature``, above 0, for a term that softens logits too.

        Raises:
            UsageError: the objective has no teacher.
        """
        _ = self.teacher
        return self._temperature()

    def with_student(self, student: Recorder) -> Objective:
        """Returns this objective for a fit of ``student``."""
        return replace(self, _student=student)

    def credited_to(self, author: str) -> Objective:
        """Returns this objective; errors of terms and constraints that are added to it name ``author``."""
        return replace(self, _author=author)

    def with_teacher(self, teacher: Teacher, temperature: Callable[[], float] = lambda: 1.0) -> Objective:
        """Returns this objective with a teacher.

        Args:
            teacher: the teacher, which terms find as ``teacher``.
            temperature: returns ``temperature``; it is called each time that a callback reads it.
        """
        return replace(self, _teacher=teacher, _temperature=temperature)

    def evaluate_with(self, network: flow.nn.Module) -> Objective:
        """Returns this objective with a network that is evaluated and kept instead of the student.

        The callback that adds the network updates its weights.

        Raises:
            ValueError: the objective has such a network already.
        """
        if self.eval_model is not None:
            raise ValueError("another callback has set the network to evaluate already: leave one out.")
        return replace(self, eval_model=network)

    def with_constraint(self, constraint: Constraint) -> Objective:
        """Returns this objective with one more constraint on the weights.

        Every step calls it after the optimizer has moved the weights and before any callback sees them.
        It changes weights in place, without gradient.
        """
        authors = {**self._authors, len(self.constraints): self._author}
        return replace(self, constraints=(*self.constraints, constraint), _authors=authors)

    def add(self, name: str, term: Term, weight: Weight = 1.0) -> Objective:
        """Returns this objective plus ``weight`` times ``term``.

        Raises:
            ValueError: the objective has a term of that name already, or the name is ``total``.
        """
        if name in self.terms or name == "total":
            raise ValueError(f"the objective has a term {name!r} already: give the new one another name.")
        terms = {**self.terms, name: WeightedTerm(term, weight)}
        return replace(self, terms=terms, _authors={**self._authors, name: self._author})

    def blend(self, name: str, term: Term, weight: Weight) -> Objective:
        """Returns (1 - ``weight``) times this objective plus ``weight`` times ``term``."""
        scaled = {
            key: WeightedTerm(old, _product(factor, _complement(weight)))
            for key, (old, factor) in self.terms.items()
        }
        return replace(self, terms=scaled).add(name, term, weight)

    def replace(self, name: str, term: Term, *, rename: str | None = None, factor: Weight = 1.0) -> Objective:
        """Returns this objective with ``term`` at the position, and under the weight, of the term ``name``.

        Args:
            name: the term to replace.
            term: the new term.
            rename: the new term's name; ``name`` by default.
            factor: multiplies the weight.

        Raises:
            ValueError: the objective has no term ``name`` (another callback may have replaced it), or it
                has a term ``rename`` already, or ``rename`` is ``total``.
        """
        if name not in self.terms:
            raise ValueError(
                f"the objective has no term {name!r} to replace (it has {', '.join(self.terms)})."
            )
        new = rename or name
        if new != name and (new in self.terms or new == "total"):
            raise ValueError(f"the objective has a term {new!r} already: give the new one another name.")
        replaced = WeightedTerm(term, _product(self.terms[name].weight, factor))
        terms = {
            (new if key == name else key): (replaced if key == name else old)
            for key, old in self.terms.items()
        }
        return replace(self, terms=terms, _authors={**self._authors, new: self._author})

    def __call__(self, batch: Batch, output: Output, epochs_done: float = 0.0) -> dict[str, flow.Tensor]:
        """Returns the losses of a batch.

        A term whose weight is 0 is computed, but is left out of the sum: no gradient flows through it, and
        training is bit for bit the same as without the term.

        Args:
            batch: images and labels, see ``Batch``.
            output: the network's output for ``batch.inputs``.
            epochs_done: the epochs trained so far, in epochs; 1.5 is half-way through the second epoch.
                Schedules of weights are functions of it.

        Returns:
            Each term's loss by its name, without the weight, and their weighted sum as ``total``. Each is a
            tensor of one number, the mean over the batch's images.

        Raises:
            KdtrainError: a term raises, or does not return a loss. The message names the callback that
                added the term, and the line.
            ValueError: every weight is 0.
        """
        losses: dict[str, flow.Tensor] = {}
        parts: list[tuple[flow.Tensor, float]] = []
        for name, weighted_term in self.terms.items():
            factor = weighted_term.factor(epochs_done)
            if factor == 0.0:
                with flow.no_grad():
                    losses[name] = self._loss(name, batch, output)
                continue
            losses[name] = self._loss(name, batch, output)
            parts.append((losses[name], float(factor)))
        if not parts:
            raise ValueError("every term of the objective has weight 0: there is nothing to train on.")
        total = _sum(parts)
        if output.logits.requires_grad and not total.requires_grad:
            raise KdtrainError(f"nothing can be learnt: no gradient flows from {', '.join(self.terms)}.")
        return {**losses, "total": total}

    def modules(self) -> Iterator[flow.nn.Module]:
        """Yields the terms that are modules, whose parameters are trained along with the network."""
        for term, _ in self.terms.values():
            if isinstance(term, flow.nn.Module):
                yield term

    def constrain(self) -> None:
        """Applies every constraint.

        Raises:
            KdtrainError: a constraint raises. The message names the callback that added it, and the line.
        """
        for number, constraint in enumerate(self.constraints):
            try:
                with flow.no_grad():
                    constraint()
            except KdtrainError:
                raise
            except (Exception, SystemExit) as error:
                raise user_code_error(self._credit(number, "a constraint"), error, constraint) from error

    def _loss(self, name: str, batch: Batch, output: Output) -> flow.Tensor:
        try:
            return self.terms[name].loss(batch, output)
        except KdtrainError:
            raise
        except (Exception, SystemExit) as error:
            raise user_code_error(
                self._credit(name, f"term {name!r}"), error, self.terms[name].term
            ) from error

    def _credit(self, key: str | int, what: str) -> str:
        """Returns the name of a term or a constraint in an error; its author comes first, if known."""
        return ", ".join(filter(None, (self._authors.get(key), what)))


def _one_number(loss: Any) -> flow.Tensor:
    """Returns ``loss`` if it is a tensor of one number, such as ``.mean()`` returns; else raises TypeError.

    A loss without gradient is allowed, because a term may not apply to a batch.
    """
    if not isinstance(loss, flow.Tensor):
        kind = "nothing" if loss is None else f"a {type(loss).__name__}"
        raise TypeError(f"it returned {kind}: a term has to return a tensor of one number, the batch's mean")
    if loss.numel() != 1:
        raise TypeError(f"it returned a tensor of the shape {tuple(loss.shape)}, not one number: add .mean()")
    return loss


def _sum(parts: Sequence[tuple[flow.Tensor, float]]) -> flow.Tensor:
    """Returns the sum of losses, each times its factor."""
    losses, factors = zip(*parts, strict=True)
    if factors == (1.0,):
        return losses[0]
    if all(small_in_numpy(loss) and loss.dtype == flow.float32 and loss.ndim == 0 for loss in losses):
        return WeightedSum(factors).apply(*losses)
    return sum(loss if factor == 1.0 else loss * factor for loss, factor in parts)


def _at(weight: Weight, epochs_done: float) -> float:
    return weight(epochs_done) if callable(weight) else weight


def _product(first: Weight, second: Weight) -> Weight:
    """Returns the product of two weights; a schedule if either of them is one."""
    if not callable(first) and not callable(second):
        return first * second

    def product(epochs_done: float) -> float:
        return _at(first, epochs_done) * _at(second, epochs_done)

    return product


def _complement(weight: Weight) -> Weight:
    """Returns ``1 - weight``; a schedule if the weight is one."""
    if not callable(weight):
        return 1.0 - weight
    schedule = weight
    return lambda epochs_done: 1.0 - schedule(epochs_done)
