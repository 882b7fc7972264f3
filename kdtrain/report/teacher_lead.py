"""The teacher's lead over a plain student on held-out images, as figures, sentences and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdtrain.runtime.locations import short_name

LITTLE_LEAD = 1.0
"""Points of lead over a trained student, below which a student has little to copy."""

_CHANCE = 3.0  # standard errors that chance explains
_FAR_APART = 1.0  # points


@dataclass(frozen=True)
class Baseline:
    """The kept plain student that the teacher is compared with.

    Attributes:
        arch: its architecture.
        epochs: number of epochs of its training.
        images: number of its training images.
        accuracy: its accuracy on the held-out images, 0..1.
    """

    arch: str
    epochs: int
    images: int
    accuracy: float


@dataclass(frozen=True)
class LeadMember:
    """One of the teachers whose mean teaches, or the only one.

    Attributes:
        name: its file's name.
        accuracy: its own accuracy on the held-out images, 0..1.
        mean: that it subtracts from pixels scaled to 0..1, per channel; empty for a table of logits.
        std: that it divides by after that, per channel; empty for a table.
    """

    name: str
    accuracy: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class TeacherLead:
    """A teacher's figures on the held-out images of the run that it teaches in.

    Attributes:
        images: number of held-out images.
        accuracy: 0..1.
        calibration_error: the expected calibration error, 0..1.
        may_have_seen: the teacher may have been trained on these images, because its own held-out
            images were others or are unknown.
        baseline: the student that it is compared with; None if there is none.
        members: the teachers of the mean, or the only one.
    """

    images: int
    accuracy: float
    calibration_error: float
    may_have_seen: bool
    baseline: Baseline | None
    members: tuple[LeadMember, ...]

    @property
    def points(self) -> float | None:
        """Percentage points that the teacher is ahead of the student; None without a student."""
        return None if self.baseline is None else 100 * (self.accuracy - self.baseline.accuracy)


def lead_sentences(lead: TeacherLead) -> list[str]:
    """Returns the teacher's figures, and its lead over the kept plain student if there is one."""
    sentences = [
        f"Teacher: {100 * lead.accuracy:.2f} % of {lead.images:,} held-out image{'s' * (lead.images != 1)}, "
        f"calibration error {100 * lead.calibration_error:.1f} %."
    ]
    if lead.may_have_seen:
        sentences.append("It may have been trained on some of these images, so its accuracy may be too high.")
    if lead.baseline is not None and lead.points is not None:
        little = ": there is little to copy" if lead.points < LITTLE_LEAD else ""
        sentences.append(f"It is {_distance(lead.points)} {_student(lead.baseline)}{little}.")
    return sentences


def far_apart_sentence(
    name: str,
    held_out: tuple[float, int],
    test: tuple[float, int],
    *,
    may_have_seen: bool = False,
) -> str | None:
    """Returns a warning if held-out and test accuracy differ by more than chance explains, else None.

    Chance explains 3 standard errors of the difference between two proportions, which are taken to be
    equal. Differences of at most one point are no reason for a warning.

    Args:
        name: name of the model.
        held_out: accuracy on the held-out images, 0..1, and their number; 0 images: None is returned.
        test: accuracy on the test images, 0..1, and their number.
        may_have_seen: the model may have been trained on the held-out images.
    """
    (on_held_out, images), (on_test, test_images) = held_out, test
    if images == 0 or math.isnan(on_held_out):
        return None
    points = 100 * (on_held_out - on_test)
    pooled = (on_held_out * images + on_test * test_images) / (images + test_images)
    error = 100 * math.sqrt(pooled * (1 - pooled) * (1 / images + 1 / test_images))
    if abs(points) <= max(_FAR_APART, _CHANCE * error):
        return None
    cause = "the test images are of another kind"
    if may_have_seen and points > 0:
        cause += ", or it was trained on held-out images"
    return (
        f"Held-out and test accuracy of the {name} are {abs(points):.1f} points apart "
        f"({100 * on_held_out:.2f} % and {100 * on_test:.2f} %): {cause}; "
        "what is best on held-out images need not be best on test images."
    )


def lead_to_json(lead: TeacherLead) -> dict[str, Any]:
    """Returns plain values for ``json.dumps``, in full precision, with units in the key names."""
    baseline = lead.baseline
    return {
        "sentences": lead_sentences(lead),
        "held_out_images": lead.images,
        "held_out_accuracy_fraction": lead.accuracy,
        "held_out_calibration_error_fraction": lead.calibration_error,
        "may_have_seen_images": lead.may_have_seen,
        "lead_percentage_points": lead.points,
        "baseline": baseline
        and {
            "arch": baseline.arch,
            "epochs": baseline.epochs,
            "training_images": baseline.images,
            "held_out_accuracy_fraction": baseline.accuracy,
        },
        "members": [
            {
                "name": member.name,
                "held_out_accuracy_fraction": member.accuracy,
                "mean": list(member.mean),
                "std": list(member.std),
            }
            for member in lead.members
        ],
    }


def lead_from_json(values: Mapping[str, Any]) -> TeacherLead:
    """Returns what ``lead_to_json`` was given.

    Raises:
        KeyError, TypeError, ValueError: it was another value.
    """
    student = values["baseline"]
    return TeacherLead(
        images=int(values["held_out_images"]),
        accuracy=float(values["held_out_accuracy_fraction"]),
        calibration_error=float(values["held_out_calibration_error_fraction"]),
        may_have_seen=bool(values["may_have_seen_images"]),
        baseline=None
        if student is None
        else Baseline(
            arch=str(student["arch"]),
            epochs=int(student["epochs"]),
            images=int(student["training_images"]),
            accuracy=float(student["held_out_accuracy_fraction"]),
        ),
        members=tuple(
            LeadMember(
                name=str(member["name"]),
                accuracy=float(member["held_out_accuracy_fraction"]),
                mean=tuple(map(float, member["mean"])),
                std=tuple(map(float, member["std"])),
            )
            for member in values["members"]
        ),
    )


def _distance(points: float) -> str:
    if abs(points) < 0.05:
        return "level with"
    side = "ahead of" if points > 0 else "behind"
    return f"{abs(points):.1f} point{'s' * (round(abs(points), 1) != 1)} {side}"


def _student(baseline: Baseline) -> str:
    epochs = f"{baseline.epochs:,} epoch{'s' * (baseline.epochs != 1)}"
    return (
        f"the kept plain student ({short_name(baseline.arch)}, {epochs} on {baseline.images:,} images: "
        f"{100 * baseline.accuracy:.2f} %)"
    )
