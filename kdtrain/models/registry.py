"""Networks by name: what --teacher-arch and --student-arch accept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kdtrain.errors import UsageError, no_such
from kdtrain.models.networks import HintonMlp, ImageShape, StudentMlp, TeacherCnn
from kdtrain.runtime import flow

Factory = Callable[[ImageShape, int], "flow.nn.Module"]

ARCHITECTURES: dict[str, Factory] = {
    "teacher_cnn": TeacherCnn,
    "student_mlp": StudentMlp,
    "hinton_1200": partial(HintonMlp, width=1200, dropout=0.5),
    "hinton_800": partial(HintonMlp, width=800),
}


def build_model(arch: str, image_shape: ImageShape, num_classes: int) -> flow.nn.Module:
    """Returns a new network with freshly drawn weights (from OneFlow's default generator).

    Raises:
        UsageError: there is no such architecture, or the images are too small for it.
    """
    check_architecture(arch)
    if arch == "teacher_cnn" and min(image_shape[1:]) < 6:
        raise UsageError(
            f"teacher_cnn needs images of at least 6x6 pixels, these are {image_shape[1]}x{image_shape[2]}: "
            "choose hinton_1200 with --teacher-arch."
        )
    return ARCHITECTURES[arch](image_shape, num_classes)


def check_architecture(arch: str) -> None:
    """Raises UsageError if there is no architecture of this name."""
    if arch not in ARCHITECTURES:
        raise UsageError(no_such("architecture", arch, ARCHITECTURES))


def count_parameters(model: flow.nn.Module) -> int:
    """Returns the number of trainable values in ``model``."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
