"""What training minimises: an ordered set of named, weighted loss terms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kdtrain.data.loader import Batch
from kdtrain.engine.losses import cross_entropy
from kdtrain.engine.recorder import Output, Recorder, Teacher
from kdtrain.errors import KdtrainError, UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.old_names import OldName
from kdtrain.runtime.user_code import failure

Term = Callable[[Batch, Output], "flow.Tensor"]
"""A loss: a batch and the network's output to a scalar tensor, the mean over the batch's images.

A term that is an ``nn.Module`` has its parameters trained along with the network.
"""

Constraint = Callable[[], None]
"""Brings weights that a step has carried out of bounds back to the nearest that are allowed."""

Weight = float | Callable[[float], float]
"""A term's factor, or a schedule of it: a function of the epochs done so far (1.5 is half-way
through the second epoch)."""


class WeightedTerm(NamedTuple):
    """One entry of an objective."""

    term: Term
    weight: Weight

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the term's loss; of mixed images, that under either label, weighted by share.

        Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), compute the cross-entropy so:
        it is linear in the labels. Of terms that are not, and of those that look at no label, it is
        the mean as well.

        Raises:
            TypeError: the term returns no tensor of one number.
        """
        loss = _one_number(self.term(batch, output))
        if batch.mixup_partner is None:
            return loss
        return loss * batch.mixup_lambda + _one_number(self.term(batch.mixup_partner, output)) * (
            1.0 - batch.mixup_lambda
        )


class Objective:
    """Named, weighted terms; immutable, so a callback returns a new one from ``configure``.

    Args:
        terms: each term and its weight by name.

    Attributes:
        eval_model: the network to evaluate instead of the student; set by ``evaluate_with``.
        constraints: what holds after every step; set by ``with_constraint``.
    """

    stand_in = OldName("eval_model")
    for_student = OldName("with_student")
    taught_by = OldName("with_teacher")
    represented_by = OldName("evaluate_with")
    subject_to = OldName("with_constraint")

    def __init__(self, terms: dict[str, WeightedTerm]) -> None:
        self.terms = dict(terms)
        self.eval_model: flow.nn.Module | None = None
        self.constraints: tuple[Constraint, ...] = ()
        self._student: Recorder | None = None
        self._teacher: Teacher | None = None
        self._author = ""
        self._authors: dict[str | int, str] = {}  # by a term's name, by a constraint's number

    @classmethod
    def task(cls) -> Objective:
        """Returns the plain objective: cross-entropy against the labels, as the term ``task``."""
        return cls({"task": WeightedTerm(cross_entropy, 1.0)})

    @property
    def student(self) -> Recorder:
        """The network in training, whose layers a term can have recorded.

        Raises:
            KdtrainError: the objective does not belong to a fit.
        """
        if self._student is None:
            raise KdtrainError("this objective does not belong to a fit, so it has no student.")
        return self._student

    @property
    def teacher(self) -> Teacher:
        """The network that teaches.

        Raises:
            UsageError: there is none.
        """
        if self._teacher is None:
            raise UsageError(
                "it needs a teacher: choose --mode student_kd or compare "
                "(in Python, put it after the DistillationCallback)."
            )
        return self._teacher

    def with_student(self, student: Recorder) -> Objective:
        """Returns this objective for a fit of ``student``."""
        return self._with(_student=student)

    def credited_to(self, author: str) -> Objective:
        """Returns this objective; errors in what is added to it from here on name ``author``."""
        return self._with(_author=author)

    def with_teacher(self, teacher: Teacher) -> Objective:
        """Returns this objective with a teacher for terms to ask."""
        if self._student is not None:
            teacher.images = self._student.images
        return self._with(_teacher=teacher)

    def evaluate_with(self, network: flow.nn.Module) -> Objective:
        """Returns this objective with a network that stands in for the student outside the steps.

        It is what is evaluated, and kept as the best model; its weights are for a callback to change.

        Raises:
            ValueError: there is one already.
        """
        if self.eval_model is not None:
            raise ValueError("another callback has put a network in the student's place already.")
        return self._with(eval_model=network)

    def with_constraint(self, constraint: Constraint) -> Objective:
        """Returns this objective with a constraint on the weights.

        It is a part of every step, called once the optimizer has moved the weights and before any
        callback sees them; it changes weights in place, without gradient.
        """
        authors = {**self._authors, len(self.constraints): self._author}
        return self._with(constraints=(*self.constraints, constraint), _authors=authors)

    def add(self, name: str, term: Term, weight: Weight = 1.0) -> Objective:
        """Returns this objective plus ``weight`` times ``term``.

        Raises:
            ValueError: there is a term of that name already, or the name is ``total``.
        """
        if name in self.terms or name == "total":
            raise ValueError(f"the objective has a term {name!r} already: give the new one another name.")
        return self._with(
            terms={**self.terms, name: WeightedTerm(term, weight)},
            _authors={**self._authors, name: self._author},
        )

    def blend(self, name: str, term: Term, weight: Weight) -> Objective:
        """Returns (1 - ``weight``) times this objective plus ``weight`` times ``term``."""
        scaled = {
            key: WeightedTerm(old, _product(factor, _complement(weight)))
            for key, (old, factor) in self.terms.items()
        }
        return self._with(terms=scaled).add(name, term, weight)

    def replace(self, name: str, term: Term, *, rename: str | None = None, factor: Weight = 1.0) -> Objective:
        """Returns this objective with another term in the place, and under the weight, of ``name``.

        Args:
            name: the term to replace.
            term: what comes in its place.
            rename: what that is called; ``name`` by default.
            factor: the weight is multiplied by it.

        Raises:
            ValueError: there is no term of that name (another callback may have replaced it), or there
                is one of the new name already, or that is ``total``.
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
        return self._with(terms=terms, _authors={**self._authors, new: self._author})

    def __call__(self, batch: Batch, output: Output, epochs_done: float = 0.0) -> dict[str, flow.Tensor]:
        """Returns each term's loss, unweighted, under its name, and their weighted sum as ``total``.

        A term whose weight is 0 is still reported but takes no part in the sum: no gradient flows
        through it, and training goes bit for bit as if it were not there.

        Raises:
            KdtrainError: a term raises, or returns no loss; the text names its author and the line.
        """
        losses: dict[str, flow.Tensor] = {}
        total = None
        for name, weighted_term in self.terms.items():
            weight = weighted_term.weight
            factor = weight(epochs_done) if callable(weight) else weight
            if factor == 0.0:
                with flow.no_grad():
                    losses[name] = self._loss(name, batch, output)
                continue
            losses[name] = self._loss(name, batch, output)
            weighted = losses[name] if factor == 1.0 else losses[name] * float(factor)
            total = weighted if total is None else total + weighted
        if total is None:
            raise ValueError("every term of the objective has weight 0: there is nothing to train on.")
        if output.logits.requires_grad and not total.requires_grad:
            raise KdtrainError(f"nothing can be learnt: no gradient flows from {', '.join(self.terms)}.")
        return {**losses, "total": total}

    def modules(self) -> Iterator[flow.nn.Module]:
        """Yields the terms that have parameters of their own."""
        for term, _ in self.terms.values():
            if isinstance(term, flow.nn.Module):
                yield term

    def constrain(self) -> None:
        """Applies every constraint; raises KdtrainError, with author and line, if one of them raises."""
        for number, constraint in enumerate(self.constraints):
            try:
                with flow.no_grad():
                    constraint()
            except KdtrainError:
                raise
            except (Exception, SystemExit) as error:
                raise failure(self._credit(number, "a constraint"), error, constraint) from error

    def _loss(self, name: str, batch: Batch, output: Output) -> flow.Tensor:
        try:
            return self.terms[name].loss(batch, output)
        except KdtrainError:
            raise
        except (Exception, SystemExit) as error:
            raise failure(self._credit(name, f"term {name!r}"), error, self.terms[name].term) from error

    def _credit(self, key: str | int, what: str) -> str:
        """Returns what an error calls a term or a constraint: its author comes first, if there is one."""
        return ", ".join(filter(None, (self._authors.get(key), what)))

    def _with(self, **changes: Any) -> Objective:
        """Returns a copy with other attributes."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other


def _one_number(loss: Any) -> flow.Tensor:
    """Returns a term's loss; raises TypeError if it is no tensor of one number, as ``.mean()`` returns.

    It needs no gradient, because a term may have nothing to say about a batch.
    """
    if not isinstance(loss, flow.Tensor):
        kind = "nothing" if loss is None else f"a {type(loss).__name__}"
        raise TypeError(f"it returned {kind}: a term has to return a tensor of one number, the batch's mean")
    if loss.numel() != 1:
        raise TypeError(f"it returned a tensor of the shape {tuple(loss.shape)}, not one number: add .mean()")
    return loss


def _product(first: Weight, second: Weight) -> Weight:
    """Returns the product of two weights, as a schedule where either of them is one."""
    if not callable(first) and not callable(second):
        return first * second

    def product(epochs_done: float) -> float:
        one = first(epochs_done) if callable(first) else first
        other = second(epochs_done) if callable(second) else second
        return one * other

    return product


def _complement(weight: Weight) -> Weight:
    """Returns ``1 - weight``, as a schedule where it is one."""
    if not callable(weight):
        return 1.0 - weight
    schedule = weight
    return lambda epochs_done: 1.0 - schedule(epochs_done)
