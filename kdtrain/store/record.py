"""The record of a run on disk: ``result.json`` of a fit, ``compare.json``, ``tune.json``; one schema.

docs/result-json.md explains each key. Keys have the units that the attributes' documentation names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta, field

from kdtrain.errors import KdtrainError, os_reason
from kdtrain.metrics.names import CONFIDENCE, Interval
from kdtrain.runtime.files import write_text
from kdtrain.runtime.limits import MOST_SECONDS
from kdtrain.runtime.regular_files import read_text
from kdtrain.store.conditions import Conditions, Count

Model = Literal["teacher", "student_kd", "student", "student_ls", "student_hard"]

SINGLE_MODES: tuple[Model, ...] = ("teacher", "student_kd", "student")
"""The modes that train one network; a comparison has a model of each."""

FIT_MODES = (*SINGLE_MODES, "compare")
"""The values of ``--mode``."""

CONTROLS: tuple[Model, ...] = ("student_ls", "student_hard")
"""Further students of a comparison, which need not take part."""

MODELS = SINGLE_MODES + CONTROLS
"""The models of a comparison, in its order."""

VERSION = 2
RESULT, COMPARISON, SEARCH = "result.json", "compare.json", "tune.json"
BEST_WEIGHTS = "checkpoints/best.safetensors"
FILES = {
    "config": "config.toml",
    "picture": "compare.png",
    "report": "report.html",
    "test_logits": "test_logits.safetensors",
}
"""Names of a comparison's other files, by content."""

Fraction = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=MOST_SECONDS)]
Status = Literal["running", "completed", "stopped", "interrupted", "failed"]
Outcome = Literal["helped", "hurt", "undecided"]

_LARGEST = 1 << 28  # bytes; compare.json takes about 50,000 for each seed


def logits_key(model: str, seed: int) -> str:
    """Returns the key of a model's logits in the file ``test_logits``."""
    return f"{model}/{seed}"


class EpochPoint(msgspec.Struct, frozen=True):
    """Figures of one epoch on the held-out set: accuracy as a fraction 0..1, cross-entropy in nats."""

    epoch: Count
    accuracy: float = field(name="accuracy_fraction")
    cross_entropy: float = field(name="cross_entropy_nats")


class ModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """One tested model: figures on the test set, cost and training history.

    Attributes:
        model: its mode, or its name in a comparison.
        seed: the seed that it was trained with.
        arch: its architecture; of an ONNX file or a table, the file's name.
        parameters: number of trainable values; 0 if unknown.
        multiply_adds: multiply-adds of its linear layers and convolutions for one image; 0 if unknown.
        images: number of test images.
        errors: number of test errors.
        accuracy: accuracy on the test set, fraction.
        cross_entropy: nats per test image.
        calibration_error: expected calibration error on the test set, fraction.
        balanced_accuracy: mean of the classes' accuracies on the test set, fraction; None if unknown.
        macro_f1: mean of the classes' F1 on the test set, fraction; None if unknown.
        agreement: fraction of the test images with the teacher's prediction; None for a teacher.
        divergence: KL(teacher || model), nats per test image; None for a teacher.
        seconds: training time: all epochs, their evaluations included; 0 for a model that existed already.
        best_epoch: the epoch whose weights were tested; None for a model that existed already.
        held_out_accuracy: accuracy of that epoch on the held-out images, fraction; None if unknown.
        history: one point per epoch on the held-out set; empty for a model that existed already.
        directory: its run directory, relative to the record's; None for a model that existed already.
        checkpoint: its weights, relative to the record's directory; None for a model that existed already.
        name: of one of several teachers, its run directory or its file.
        share: of one of several teachers, its share of the mean, fraction.
        members: the teachers, if this is a teacher made of several.
    """

    model: Model
    seed: int
    arch: str = ""
    parameters: Count = 0
    multiply_adds: Count = 0
    images: Annotated[int, Meta(ge=1)] = field(name="test_images")
    errors: Count = field(name="test_errors")
    accuracy: Fraction = field(name="test_accuracy_fraction")
    cross_entropy: float = field(name="test_cross_entropy_nats")
    calibration_error: Fraction = field(name="test_calibration_error_fraction")
    balanced_accuracy: float | None = field(name="test_balanced_accuracy_fraction", default=None)
    macro_f1: float | None = field(name="test_macro_f1_fraction", default=None)
    agreement: float | None = field(name="test_agreement_fraction", default=None)
    divergence: float | None = field(name="test_kl_from_teacher_nats", default=None)
    seconds: float = 0.0
    best_epoch: int | None = None
    held_out_accuracy: float | None = field(name="held_out_accuracy_fraction", default=None)
    history: tuple[EpochPoint, ...] = field(name="held_out_history", default=())
    directory: str | None = None
    checkpoint: str | None = None
    name: str | None = None
    share: float | None = field(name="share_fraction", default=None)
    members: tuple[ModelResult, ...] = ()

    def __post_init__(self) -> None:
        if self.errors > self.images:
            raise ValueError(f"{self.errors} test errors in {self.images} images")

    def __repr__(self) -> str:
        figures = f"accuracy {self.accuracy:.2%}, {self.errors:,} errors in {self.images:,} images"
        return f"<ModelResult {self.model}, seed {self.seed}: {figures}>"


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The record of a run.

    Attributes:
        mode: teacher, student, student_kd, compare or tune.
        name: the name that its settings give it.
        seed: its seed; of a comparison the first one.
        dataset: the data set, as --dataset takes it.
        labels: how many training images have labels, as --labels takes it; None where all have.
        recipe: name of the recipe that the settings started from; None if there was none.
        sentences: what the result shows, and warnings, as they are printed.
        models: the tested models.
        conditions: conditions of the training.
    """

    FILE: ClassVar[str]

    version: int = VERSION
    mode: str = ""
    name: str | None = None
    seed: int | None = None
    dataset: str = ""
    labels: str | None = None
    recipe: str | None = None
    sentences: tuple[str, ...] = ()
    models: tuple[ModelResult, ...] = ()
    conditions: Conditions = Conditions()


class TeacherInput(msgspec.Struct, frozen=True, kw_only=True):
    """A teacher of a student: its file's name, its held-out accuracy, and the images that it takes.

    Attributes:
        name: its file.
        held_out_accuracy: fraction; None if unknown.
        mean: per channel, of pixels scaled to 0..1; empty for a table, which takes no images.
        std: per channel, of pixels scaled to 0..1; empty for a table.
    """

    name: str
    held_out_accuracy: float | None = field(name="held_out_accuracy_fraction", default=None)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class FitRecord(RunRecord, frozen=True, kw_only=True, tag="fit"):
    """The record of the fit of one network; ``models`` has it once it is tested.

    Attributes:
        status: how it ended; ``running`` of a process that was killed.
        reason: a sentence about an end other than after all epochs.
        epochs: number of epochs done.
        steps: number of steps done.
        seconds: training time.
        teachers: the teachers of a distilled student.
    """

    FILE: ClassVar[str] = RESULT

    status: Status
    reason: str | None = None
    epochs: Count = 0
    steps: Count = 0
    seconds: float = 0.0
    teachers: tuple[TeacherInput, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether the training has ended by itself."""
        return self.status in ("completed", "stopped")

    @property
    def result(self) -> ModelResult | None:
        """The network, tested; None before that."""
        return self.models[0] if self.models else None


class ModelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a comparison over its seeds.

    Attributes:
        arch: its architecture.
        parameters: number of trainable values.
        multiply_adds: multiply-adds of its linear layers and convolutions for one image.
        accuracy: test accuracy, per cent.
        errors: number of test errors.
        cross_entropy: nats per image.
        calibration_error: per cent.
        balanced_accuracy: mean of the classes' accuracies, per cent; None if unknown.
        macro_f1: mean of the classes' F1, per cent; None if unknown.
        agreement: agreement with the teacher, per cent of the test images; None for the teacher.
        divergence: KL(teacher || model), nats per image; None for the teacher.
        seconds: training time.
    """

    arch: str
    parameters: Count
    multiply_adds: Count
    accuracy: Interval = field(name="test_accuracy_percent")
    errors: Interval = field(name="test_errors")
    cross_entropy: Interval = field(name="test_cross_entropy_nats")
    calibration_error: Interval = field(name="test_calibration_error_percent")
    agreement: Interval | None = field(name="test_agreement_percent")
    divergence: Interval | None = field(name="test_kl_from_teacher_nats")
    seconds: Interval
    balanced_accuracy: Interval | None = field(name="test_balanced_accuracy_percent", default=None)
    macro_f1: Interval | None = field(name="test_macro_f1_percent", default=None)

    def __repr__(self) -> str:
        return f"<ModelSummary {self.arch}: accuracy {self.accuracy.mean:.2f} %, {self.accuracy.n} models>"


class OneSeedTest(msgspec.Struct, frozen=True):
    """McNemar's test of a single pair of networks: whether these two differ on such images.

    Attributes:
        only_model: number of images that only the model gets right.
        only_baseline: number of images that only the baseline gets right.
        p_value: of McNemar's exact test.
        low: lower end of the interval of their difference, percentage points.
        high: upper end of the interval, percentage points.
    """

    only_model: Count = field(name="only_model_right")
    only_baseline: Count = field(name="only_baseline_right")
    p_value: float = field(name="mcnemar_p")
    low: float = field(name="low_percentage_points")
    high: float = field(name="high_percentage_points")


class SeedGain(msgspec.Struct, frozen=True):
    """The gain of one pair."""

    seed: int
    points: float = field(name="percentage_points")


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A model against a baseline of the same seeds.

    Attributes:
        outcome: ``undecided`` unless the interval of the gain excludes zero.
        gain: test accuracy, model minus baseline, percentage points, over the pairs.
        seed_gains: the gain of each pair.
        errors_removed: mean number of test errors of the baseline minus those of the model.
        errors_removed_percent: the same relative to the baseline's errors; None if it makes none.
        seeds_needed: estimated number of seeds that would show this gain; None if it is decided already,
            if there is no spread to estimate from, or if it exceeds ``MOST_SEEDS``.
        one_seed: test of the pair of networks; only for a single seed.
    """

    model: Model
    baseline: Model
    outcome: Outcome
    gain: Interval = field(name="gain_percentage_points")
    seed_gains: tuple[SeedGain, ...] = field(name="gains")
    errors_removed: float
    errors_removed_percent: float | None
    seeds_needed: int | None
    one_seed: OneSeedTest | None

    @property
    def gains(self) -> dict[int, float]:
        """The gain of each pair, by seed."""
        return {gain.seed: gain.points for gain in self.seed_gains}

    def __repr__(self) -> str:
        seeds = len(self.seed_gains)
        gain = f"{self.gain.mean:+.2f} points, {self.outcome}, {seeds} seed{'s' * (seeds > 1)}"
        return f"<Difference {self.model} - {self.baseline}: {gain}>"


class Comparison(RunRecord, frozen=True, kw_only=True, tag="comparison"):
    """The record of a comparison; ``report.comparison.compare`` makes it.

    Attributes:
        verdict: what distillation did, how certain that is, and what else to try.
        headline: the first sentence of the verdict.
        evidence: what the verdict rests on, as a sentence.
        gap: the share of the gap between student and teacher, as a sentence.
        far_apart: a warning if held-out and test accuracy of the first seed's teacher are far apart.
        disagreement: a sentence if held-out and test figures disagree.
        disagreement_changes_verdict: whether held-out images show the opposite of a decided verdict.
        outcome: that of distillation.
        confidence: confidence level of all intervals.
        test_images: number of test images.
        gap_closed: errors that student_kd removes as a fraction of those that separate student from
            teacher; None if the teacher is no better than the student.
        differences: differences between students, student_kd against student first.
        summaries: each model over its seeds.
        files: the comparison's other files, by content.
    """

    FILE: ClassVar[str] = COMPARISON

    verdict: str = ""
    headline: str = ""
    evidence: str = ""
    gap: str = ""
    far_apart: str | None = None
    disagreement: str | None = None
    disagreement_changes_verdict: bool = False
    outcome: Outcome
    confidence: float = CONFIDENCE
    test_images: Count
    gap_closed: float | None = field(name="gap_closed_fraction")
    differences: Annotated[tuple[Difference, ...], Meta(min_length=1)]
    summaries: dict[Model, ModelSummary]
    files: dict[str, str] = field(default_factory=lambda: dict(FILES))

    def __post_init__(self) -> None:
        if missing := [model for model in SINGLE_MODES if model not in self.summaries]:
            raise ValueError(f"summaries has no {missing[0]}")

    def __repr__(self) -> str:
        return f"<Comparison {', '.join(self.summaries)}: {len(self.models)} models>"

    @property
    def teachers(self) -> tuple[ModelResult, ...]:
        """The teachers whose mean probabilities teach; none if there is only one."""
        return next((result.members for result in self.models if result.members), ())

    @property
    def distillation(self) -> Difference:
        """student_kd against student."""
        return self.differences[0]


R = TypeVar("R", bound=RunRecord)


class _Version(msgspec.Struct):
    version: int = 0


def read_record(file: Path, kind: type[R]) -> R | None:
    """Returns the record in a file; None if there is no file.

    Raises:
        KdtrainError: the file cannot be read, is damaged, or was written by another version.
    """
    try:
        text = read_text(file, _LARGEST)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or too large
        raise KdtrainError(f"{file} cannot be read: {os_reason(error)}.") from error
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version == VERSION:
            return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise KdtrainError(f"{file} is damaged: {damage(error)}.") from error
    age = "an older" if version < VERSION else "a newer"
    raise KdtrainError(f"{file} was written by {age} version of kdtrain.")


def damage(error: Exception) -> str:
    """Returns where a file has what it must not have, from an error of msgspec's."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text, _, place = str(error).partition(" - at `$")
    place, missing = place.strip("`."), re.fullmatch(r"Object missing required field `(\w+)`", text)
    if missing is not None:
        return f"{place or 'it'} has no {missing[1]}"
    return f"{place}: {text[0].lower()}{text[1:]}" if place else text


def write_record(directory: Path, record: RunRecord) -> None:
    """Writes the record of a run, in full precision."""
    text = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
    write_text(directory / record.FILE, text + "\n")


def plain(record: RunRecord) -> dict[str, Any]:
    """Returns a record as ``json.loads`` returns its file."""
    content: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
    return content
