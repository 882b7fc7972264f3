"""What training minimises: an ordered set of named, weighted loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kdtrain.data.loader import Batch
from kdtrain.runtime import flow


@dataclass(frozen=True)
class Output:
    """What a network made of a batch.

    Attributes:
        logits: (B, classes) float32.
        features: activations of inner layers, by name, where a callback records them.
    """

    logits: flow.Tensor
    features: dict[str, flow.Tensor] = field(default_factory=dict)


Term = Callable[[Batch, Output], "flow.Tensor"]
"""A loss: a batch and the network's output to a scalar tensor, the mean over the batch's images.

A term that is an ``nn.Module`` has its parameters trained along with the network.
"""

Weight = float | Callable[[float], float]
"""A term's factor, or a schedule of it: a function of the epochs done so far (1.5 is half-way
through the second epoch)."""


class WeightedTerm(NamedTuple):
    """One entry of an objective."""

    term: Term
    weight: Weight


class Objective:
    """Named, weighted terms; immutable, so a callback returns a new one from ``configure``."""

    def __init__(self, terms: dict[str, WeightedTerm]) -> None:
        self.terms = dict(terms)

    @classmethod
    def task(cls) -> Objective:
        """Returns the plain objective: cross-entropy against the labels, as the term ``task``."""
        return cls({"task": WeightedTerm(cross_entropy, 1.0)})

    def add(self, name: str, term: Term, weight: Weight = 1.0) -> Objective:
        """Returns this objective plus ``weight`` times ``term``.

        Raises:
            ValueError: there is a term of that name already, or the name is ``total``.
        """
        if name in self.terms or name == "total":
            raise ValueError(f"the objective has a term {name!r} already: give the new one another name.")
        return Objective({**self.terms, name: WeightedTerm(term, weight)})

    def blend(self, name: str, term: Term, weight: Weight) -> Objective:
        """Returns (1 - ``weight``) times this objective plus ``weight`` times ``term``."""
        scaled = {
            key: WeightedTerm(old, _complement(factor, weight)) for key, (old, factor) in self.terms.items()
        }
        return Objective(scaled).add(name, term, weight)

    def replace(self, name: str, term: Term) -> Objective:
        """Returns this objective with another term in the place, and under the weight, of ``name``.

        Raises:
            ValueError: there is no term of that name.
        """
        if name not in self.terms:
            raise ValueError(
                f"the objective has no term {name!r} to replace (it has {', '.join(self.terms)})."
            )
        return Objective({**self.terms, name: WeightedTerm(term, self.terms[name].weight)})

    def __call__(self, batch: Batch, output: Output, epochs_done: float = 0.0) -> dict[str, flow.Tensor]:
        """Returns each term's loss, unweighted, under its name, and their weighted sum as ``total``.

        A term whose weight is 0 is still reported but takes no part in the sum: no gradient flows
        through it, and training goes bit for bit as if it were not there.
        """
        losses: dict[str, flow.Tensor] = {}
        total = None
        for name, (term, weight) in self.terms.items():
            factor = weight(epochs_done) if callable(weight) else weight
            if factor == 0.0:
                with flow.no_grad():
                    losses[name] = term(batch, output)
                continue
            losses[name] = term(batch, output)
            weighted = losses[name] if factor == 1.0 else losses[name] * float(factor)
            total = weighted if total is None else total + weighted
        if total is None:
            raise ValueError("every term of the objective has weight 0: there is nothing to train on.")
        return {**losses, "total": total}

    def modules(self) -> Iterator[flow.nn.Module]:
        """Yields the terms that have parameters of their own."""
        for term, _ in self.terms.values():
            if isinstance(term, flow.nn.Module):
                yield term


def cross_entropy(batch: Batch, output: Output) -> flow.Tensor:
    """Returns the mean cross-entropy of the labels, in nats per image."""
    return flow.nn.functional.cross_entropy(output.logits, batch.targets)


def _complement(factor: Weight, weight: Weight) -> Weight:
    """Returns ``factor * (1 - weight)``, as a schedule where either of them is one."""
    if not callable(factor) and not callable(weight):
        return factor * (1.0 - weight)

    def product(epochs_done: float) -> float:
        first = factor(epochs_done) if callable(factor) else factor
        second = weight(epochs_done) if callable(weight) else weight
        return first * (1.0 - second)

    return product
