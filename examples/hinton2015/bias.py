"""The raised biases of classes that a student was trained without (``kdtrain fit --omit-class``).

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 3: a student that
learns a class from soft labels only recognises it, but predicts it too rarely. One number, added to
the biases of all such classes, corrects that. The paper chose it on the test set; this script does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit, logsumexp

import kdtrain
from kdtrain import Evaluation, KdtrainError, SavedModel, UsageError, flow, predict_logits
from kdtrain.store.checkpoint import Weights, save_model

WAYS = ("transfer", "validation", "labels")
"""What the number is fitted to.

transfer: the teacher's mean probability of the classes on the student's training images. validation: that on
the held-out images. labels: the labels of the held-out images.
"""

_DATA = (
    "mode",
    "dataset",
    "data_dir",
    "image_size",
    "skip_corrupt",
    "labels",
    "transfer_data",
    "transfer_share",
)
_OF_RUN = ("val_size", "omit_class", "limit_train", "data_seed", "batch_size", "seed")

Logits = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class RaisedBiases:
    """A student with raised biases.

    Attributes:
        path: its checkpoint.
        classes: the classes.
        shift: what their biases were raised by.
        before: figures of the student on the held-out images.
        after: figures with the raised biases.
    """

    path: Path
    classes: tuple[str, ...]
    shift: float
    before: Evaluation
    after: Evaluation


def raise_biases_of(run: Path, by: str = "validation") -> RaisedBiases:
    """Raises the biases of a student's omitted classes, and writes RUN/checkpoints/bias_BY.safetensors.

    Args:
        run: the run directory of a student that was trained with ``omit_class``.
        by: one of ``WAYS``.

    Raises:
        KdtrainError: the run is not one of such a student, or its files or data cannot be read.
    """
    config = kdtrain.config(config=run / "config.toml")
    if config.mode not in ("student", "student_kd") or not config.omit_class:
        raise UsageError(f"the run in {run} is not one of a student trained with --omit-class.")
    if config.mode == "student" and by != "labels":
        raise UsageError(f"--by {by} needs a teacher, and the run in {run} has none: use --by labels.")
    data = kdtrain.load_data(**{name: getattr(config, name) for name in (*_DATA, *_OF_RUN)})
    classes = [data.dataset.classes.index(name) for name in config.omit_class]
    saved = kdtrain.load_model(run / "checkpoints/best.safetensors", arch=config.student_arch)
    student = saved.build(data.train.device)
    logits = predict_logits(student, data.validation)
    if by == "labels":
        shift = shift_by_labels(logits, data.validation.targets, classes)
    else:
        teacher = kdtrain.load_teacher(data, teacher_checkpoint=config.teacher_checkpoint)
        images = data.train if by == "transfer" else data.validation
        shift = shift_by_teacher(predict_logits(student, images), predict_logits(teacher, images), classes)
    raised = logits + np.where(np.isin(np.arange(logits.shape[1]), classes), np.float32(shift), 0)
    before, after = (Evaluation.from_logits(each, data.validation.targets) for each in (logits, raised))
    path = run / f"checkpoints/bias_{by}.safetensors"
    metrics = {"val/accuracy": after.accuracy, "val/cross_entropy": after.cross_entropy, "bias_shift": shift}
    save_model(path, raise_biases(saved, classes, shift), dataclasses.replace(saved.card, metrics=metrics))
    return RaisedBiases(path, config.omit_class, shift, before, after)


def shift_by_teacher(student: Logits, teacher: Logits, classes: Sequence[int]) -> float:
    """Returns the bias shift with which the student predicts the classes as often as the teacher.

    With it, the mean probability of the classes over the images is the same for both networks. It needs
    no labels, and no images of the classes: other images get a probability of the classes, too.

    Args:
        student: (N, C) logits of the student over all classes.
        teacher: (N, C) logits of the teacher for the same images.
        classes: indices of the classes whose biases are raised.
    """
    teacher_odds = _log_odds(teacher, classes)
    student_odds = _log_odds(student, classes)
    # A probability near 1 loses its last digits; then the complement is used instead.
    sign = -1 if expit(teacher_odds).mean() > 0.5 else 1
    student_odds = sign * student_odds
    expected = expit(sign * teacher_odds).mean()
    low = float(logit(expected) - student_odds.max())
    high = float(logit(expected) - student_odds.min())
    return sign * float(
        brentq(lambda shift: expit(student_odds + shift).mean() - expected, low - 1, high + 1)
    )


def shift_by_labels(logits: Logits, labels: npt.NDArray[np.int64], classes: Sequence[int]) -> float:
    """Returns the bias shift that classifies the most images correctly; the middle one of equal shifts.

    Args:
        logits: (N, C) logits over all classes.
        labels: (N,) int64 labels of all classes.
        classes: indices of the classes whose biases are raised.
    """
    shifted = np.isin(np.arange(logits.shape[1]), classes)
    raised = np.where(shifted, logits, -np.inf).astype(np.float64)
    unchanged = np.where(shifted, -np.inf, logits).astype(np.float64)
    needed = unchanged.max(axis=1) - raised.max(axis=1)  # with a larger shift, one of the classes wins
    gains = (raised.argmax(axis=1) == labels).astype(int) - (unchanged.argmax(axis=1) == labels)
    order = np.argsort(needed)
    edges = np.concatenate([[needed.min() - 1], needed[order], [needed.max() + 1]])
    correct = np.concatenate([[0], gains[order].cumsum()])  # between each edge and the next
    correct = np.where(edges[1:] > edges[:-1], correct, correct.min() - 1)
    best = np.flatnonzero(correct == correct.max())
    middle = best[len(best) // 2]
    return float((edges[middle] + edges[middle + 1]) / 2)


def raise_biases(saved: SavedModel, classes: Sequence[int], shift: float) -> Weights:
    """Returns the weights with ``shift`` added to the classes' biases in the last layer.

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
        shifted = np.isin(np.arange(count), classes)
        weights[names[-1]] = weights[names[-1]] + np.where(shifted, shift, 0).astype(np.float32)
    if not names or not _moves_logits(saved, weights, classes, shift):
        raise KdtrainError(
            f"{saved.path} ({saved.card.arch}) does not end with a linear layer that has a bias for each "
            "class, so no bias can be raised."
        )
    return weights


def _log_odds(logits: Logits, classes: Sequence[int]) -> npt.NDArray[np.float64]:
    """Returns (N,) log-odds that an image belongs to one of the classes."""
    inside = np.isin(np.arange(logits.shape[1]), classes)
    scores = logits.astype(np.float64)
    log_odds: npt.NDArray[np.float64] = logsumexp(scores[:, inside], axis=1) - logsumexp(
        scores[:, ~inside], axis=1
    )
    return log_odds


def _moves_logits(saved: SavedModel, weights: Weights, classes: Sequence[int], shift: float) -> bool:
    """Returns whether ``weights`` shift the logits of the classes by ``shift``, for one image."""
    image = flow.zeros(1, *saved.card.image_shape)
    with flow.no_grad():
        before = saved.build()(image).numpy()[0].copy()
        after = SavedModel(saved.path, saved.card, weights).build()(image).numpy()[0].copy()
    before[list(classes)] += shift
    return bool(np.allclose(before, after, atol=1e-3))


def main() -> None:
    """Raises the biases, and prints the figures before and after."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of the student")
    parser.add_argument(
        "--by", choices=WAYS, default="validation", help="what they are fitted to [validation]"
    )
    options = parser.parse_args()
    try:
        raised = raise_biases_of(options.run, options.by)
    except KdtrainError as error:
        sys.exit(str(error))
    print(f"Bias of {', '.join(raised.classes)} raised by {raised.shift:.2f}: {raised.path}")
    print(f"Held-out errors: {raised.before.errors:,} before, {raised.after.errors:,} after.")


if __name__ == "__main__":
    main()
