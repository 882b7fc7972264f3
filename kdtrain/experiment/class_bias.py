"""Raises the biases of classes that a student was trained without.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 3: a student that
knows a class from soft labels only recognises it, but is too reluctant to say so. One number, added to
the biases of all such classes, mends that. They chose it on the test set; here nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit, logsumexp

from kdtrain.errors import KdtrainError
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import SavedModel, Weights

Logits = npt.NDArray[np.floating[Any]]


def shift_by_teacher(student: Logits, teacher: Logits, classes: Sequence[int]) -> float:
    """Returns the shift with which the student expects the classes as often as the teacher.

    That is, with which the probability of any of them is the same on average over the images. No
    label is needed for that, and no image of the classes either: others are mistaken for them.

    Args:
        student: its logits (images, all classes).
        teacher: its logits for the same images.
        classes: positions of those whose biases are to be raised.
    """
    theirs, ours = _odds(teacher, classes), _odds(student, classes)
    # Of a probability near 1 the last digits are lost, of that of all other classes they are not.
    sign = -1 if expit(theirs).mean() > 0.5 else 1
    theirs, ours = sign * theirs, sign * ours
    expected = expit(theirs).mean()
    low, high = (float(logit(expected) - bound) for bound in (ours.max(), ours.min()))
    return sign * float(brentq(lambda shift: expit(ours + shift).mean() - expected, low - 1, high + 1))


def shift_by_labels(logits: Logits, labels: npt.NDArray[np.int64], classes: Sequence[int]) -> float:
    """Returns the shift with which most images are recognised; of equally good ones the middle one.

    Args:
        logits: (images, all classes).
        labels: (images,) of all classes.
        classes: positions of those whose biases are to be raised.
    """
    chosen = np.isin(np.arange(logits.shape[1]), classes)
    raised, others = (np.where(mask, logits, -np.inf).astype(np.float64) for mask in (chosen, ~chosen))
    needed = others.max(axis=1) - raised.max(axis=1)  # with a larger shift, one of the classes wins
    gains = (raised.argmax(axis=1) == labels).astype(int) - (others.argmax(axis=1) == labels)
    order = np.argsort(needed)
    edges = np.concatenate([[needed.min() - 1], needed[order], [needed.max() + 1]])
    right = np.concatenate([[0], gains[order].cumsum()])  # between each edge and the next
    right = np.where(edges[1:] > edges[:-1], right, right.min() - 1)
    best = np.flatnonzero(right == right.max())
    middle = best[len(best) // 2]
    return float((edges[middle] + edges[middle + 1]) / 2)


def raise_biases(saved: SavedModel, classes: Sequence[int], shift: float) -> Weights:
    """Returns the weights with ``shift`` added to the last layer's biases of the classes.

    Raises:
        KdtrainError: the network does not end with a linear layer that has a bias for each class.
    """
    model = saved.build()
    count = len(saved.card.classes)
    names = [
        f"{name}.bias"
        for name, layer in model.named_modules()
        if isinstance(layer, flow.nn.Linear) and layer.bias is not None and layer.out_features == count
    ]
    weights = dict(saved.weights)
    if names:
        chosen = np.isin(np.arange(count), classes)
        weights[names[-1]] = weights[names[-1]] + np.where(chosen, shift, 0).astype(np.float32)
    if not names or not _moves_logits(saved, weights, classes, shift):
        raise KdtrainError(
            f"{saved.path} ({saved.card.arch}) does not end with a linear layer that has a bias for each "
            "class, so there is nothing to raise."
        )
    return weights


def _odds(logits: Logits, classes: Sequence[int]) -> npt.NDArray[np.float64]:
    """Returns the log of the odds that an image is of one of the classes, (images,)."""
    chosen = np.isin(np.arange(logits.shape[1]), classes)
    scores = logits.astype(np.float64)
    odds: npt.NDArray[np.float64] = logsumexp(scores[:, chosen], axis=1) - logsumexp(
        scores[:, ~chosen], axis=1
    )
    return odds


def _moves_logits(saved: SavedModel, weights: Weights, classes: Sequence[int], shift: float) -> bool:
    """Returns whether the changed weights change the logits as they should, for one image."""
    image = flow.zeros(1, *saved.card.image_shape)
    with flow.no_grad():
        before, after = (
            SavedModel(saved.path, saved.card, each).build()(image).numpy()[0].copy()
            for each in (saved.weights, weights)
        )
    before[list(classes)] += shift
    return bool(np.allclose(before, after, atol=1e-3))
