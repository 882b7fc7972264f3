"""The checks of settings that depend on one another."""

from __future__ import annotations

from typing import Any

from kdtrain.data.augment_spec import mixes
from kdtrain.errors import UsageError
from kdtrain.experiment.settings import Settings, flag_of
from kdtrain.runtime.limits import LARGEST_SEED
from kdtrain.runtime.value_checks import SEED


def check_together(config: Any) -> None:
    """Checks that the settings of a fit go together.

    Args:
        config: a ``FitConfig``, whose module imports this one.

    Raises:
        UsageError: two settings contradict each other.
    """
    for name in ("seeds", "teachers"):
        number = getattr(config, name)
        if config.seed + number - 1 > LARGEST_SEED:
            raise UsageError(f"--seed {config.seed} with --{name} {number}: each seed {SEED[1]}.")
    if config.seeds > 1 and config.mode != "compare":
        raise UsageError(
            f"--seeds {config.seeds} is for --mode compare, not for {config.mode}; use --seed for one seed."
        )
    if config.is_chain and config.mode != "student_kd":
        flag = "--generations" if config.generations > 1 else "--assistant-arch"
        raise UsageError(f"{flag} is for --mode student_kd, not for {config.mode}.")
    for name in ("with_label_smoothing", "with_hard_labels", "grid"):
        if getattr(config, name) and config.mode != "compare":
            raise UsageError(f"{flag_of(name)} is for --mode compare, not for {config.mode}.")
    if config.weight_decay * config.peak_lr >= 1.0:
        raise UsageError(
            f"--weight-decay {config.weight_decay:g} with the learning rate {config.peak_lr:g}: a step takes "
            "away all of a weight. Their product must be below 1."
        )
    if config.grid and config.tuned is not None:
        raise UsageError("--grid and --tuned both choose settings: leave one of them out.")
    if config.grid and config.val_size == 0:
        raise UsageError(
            "--grid chooses by held-out images, but --val-size 0 holds none out: leave one of them out."
        )
    _check_teachers(config)
    _check_images(config)
    _check_transfer(config)


def _check_images(config: Any) -> None:
    """Raises UsageError if settings of the training images do not go together."""
    if config.views == 1 and config.augment_for("student") != "none" and not mixes(config.augment or ""):
        raise UsageError(
            "--views 1 is each image as it is, which --augment does not change: "
            "give 2 or more, or 0 for new ones in each epoch."
        )
    if config.omit_class and config.mode == "teacher":
        raise UsageError(
            f"--omit-class {config.omit_class[0]} is for students; --mode teacher trains on all classes."
        )
    if config.student_checkpoint is not None and (config.mode == "teacher" or config.is_chain):
        fits = (
            f"--mode {config.mode}" if config.mode == "teacher" else "a chain, whose networks all begin anew"
        )
        raise UsageError(
            f"--student-checkpoint {config.student_checkpoint} is for students, not for {fits}: leave it out."
        )


def _check_transfer(config: Any) -> None:
    """Raises UsageError for images without labels that no teacher is run on."""
    share, data = f"--transfer-share {config.transfer_share:g}", f"--transfer-data {config.transfer_data}"
    if config.labels is not None:
        data = f"--labels {config.labels}" if config.transfer_data is None else data
        if config.omit_class:
            raise UsageError(
                f"--omit-class {config.omit_class[0]} does not know the class of images without labels "
                f"(--labels {config.labels}): leave one of them out."
            )
    if config.transfer_data is None and config.labels is None:
        if config.transfer_share != Settings.transfer_share:
            raise UsageError(
                f"{share} is a share of images without labels, and there are none: add --labels or "
                "--transfer-data."
            )
    elif config.transfer_data is not None and config.mode in ("teacher", "student"):
        raise UsageError(
            f"{data} has no labels, and --mode {config.mode} has no teacher to give it soft labels: "
            "choose student_kd or compare."
        )
    elif config.alpha == 0.0 and config.mode in ("student_kd", "compare"):
        raise UsageError(
            f"--alpha 0 leaves the teacher's outputs out, and images without labels ({data}) have nothing "
            "else to teach: leave one of them out."
        )


def _check_teachers(config: Any) -> None:
    """Raises UsageError if settings of the teacher do not go together."""
    existing = "--teacher-checkpoint" if config.teacher_checkpoint else "--teacher-logits"
    for name in ("teacher_per_seed", "teachers"):
        if getattr(config, name) > 1 or getattr(config, name) is True:
            if config.mode != "compare":
                raise UsageError(f"{flag_of(name)} is for --mode compare, not for {config.mode}.")
            if config.has_teacher_files:
                raise UsageError(
                    f"{flag_of(name)} trains teachers, but {existing} names a trained one: "
                    "leave one of them out."
                )
    if config.teacher_per_seed and config.teachers > 1:
        raise UsageError(
            "--teacher-per-seed trains one teacher for each seed, and --teachers several for all seeds: "
            "leave one of them out."
        )
    number = len(config.teacher_checkpoint) + (config.teacher_logits is not None)
    if config.teacher_weight and len(config.teacher_weight) != number:
        raise UsageError(
            f"--teacher-weight is given {len(config.teacher_weight)} times, and there are {number} teachers: "
            "give one for each --teacher-checkpoint, then one for --teacher-logits."
        )
