"""Networks by name, as ``--teacher-arch`` and ``--student-arch`` take them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from kdtrain.errors import UsageError, clipped, did_you_mean, size_text
from kdtrain.models.factories import build_from_factory, check_factory
from kdtrain.models.networks import SMALLEST_SIDE, HintonMlp, ImageShape, StudentCnn, StudentMlp, TeacherCnn
from kdtrain.models.resnet import ResNet
from kdtrain.models.zoo import CLASSIFIERS, LARGE, PREFIX, build_classifier, check_classifier
from kdtrain.nn.own_layers import with_own_layers
from kdtrain.runtime import flow

Factory = Callable[[ImageShape, int], "flow.nn.Module"]

_MANY_VALUES = 30_000_000  # numbers of the weights: 120 MB

ARCHITECTURES: dict[str, Factory] = {
    "teacher_cnn": TeacherCnn,
    "student_mlp": StudentMlp,
    "student_cnn": StudentCnn,
    "hinton_1200": partial(HintonMlp, width=1200, dropout=0.5, input_dropout=0.2),
    "hinton_800": partial(HintonMlp, width=800),
    "resnet8": partial(ResNet, depth=8),
    "resnet20": partial(ResNet, depth=20),
}


def build_model(arch: str, image_shape: ImageShape, num_classes: int) -> flow.nn.Module:
    """Returns a new network with freshly drawn weights (from OneFlow's default generator).

    Args:
        arch: a name in ``ARCHITECTURES``, ``flowvision:NAME``, ``package.module:factory`` or
            ``file.py:factory``. The last two run that code.
        image_shape: channels, height, width.
        num_classes: the number of logits.

    Raises:
        UsageError: there is no such architecture, or the images are too small for it.
        KdtrainError: the factory's code cannot be imported.
    """
    check_architecture(arch)
    if arch.startswith(PREFIX):
        return with_own_layers(build_classifier(arch, image_shape, num_classes))
    if runs_code(arch):
        return build_from_factory(arch, image_shape, num_classes)
    if arch == "teacher_cnn" and min(image_shape[1:]) < 6:
        raise UsageError(
            f"teacher_cnn needs images of at least 6x6 pixels, these are {size_text(image_shape[1:])}: "
            "choose hinton_1200 with --teacher-arch."
        )
    if arch == "student_cnn" and min(image_shape[1:]) < SMALLEST_SIDE:
        raise UsageError(
            f"student_cnn needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, these are "
            f"{size_text(image_shape[1:])}: choose student_mlp with --student-arch."
        )
    return ARCHITECTURES[arch](image_shape, num_classes)


def fewest_values(arch: str, image_shape: ImageShape) -> int:
    """Returns a lower bound of the number of values in a large network's weights, without building it.

    The bound is 0 for networks of less than 30 million values, and for the user's own.
    """
    pixels, (_, height, width) = math.prod(image_shape), image_shape
    of_first_layers = {
        "teacher_cnn": 128 * 64 * ((height - 4) // 2) * ((width - 4) // 2),
        "student_mlp": 128 * pixels,
        "hinton_800": 800 * pixels,
        "hinton_1200": 1200 * pixels,
    }
    values = of_first_layers.get(arch) or LARGE.get(arch.removeprefix(PREFIX), 0)
    return values if values >= _MANY_VALUES else 0


def runs_code(arch: str) -> bool:
    """Returns whether building an architecture runs a user's code."""
    return not arch.startswith(PREFIX) and (":" in arch or arch.endswith(".py"))


def check_architecture(arch: str) -> None:
    """Raises UsageError if there is no architecture of this name; runs no code of the user's."""
    if arch.startswith(PREFIX):
        check_classifier(arch)
    elif runs_code(arch):
        check_factory(arch)
    elif arch not in ARCHITECTURES:
        names = ", ".join((*ARCHITECTURES, f"{PREFIX}NAME", "MODULE:FACTORY", "FILE.py:FACTORY"))
        nearest = (
            f" (did you mean {PREFIX + arch!r}?)"
            if arch in CLASSIFIERS
            else did_you_mean(arch, ARCHITECTURES)
        )
        raise UsageError(f"there is no architecture {clipped(arch, repr)}{nearest}; there are: {names}.")


def count_parameters(model: flow.nn.Module) -> int:
    """Returns the number of trainable values in ``model``."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_multiply_adds(model: flow.nn.Module, image_shape: ImageShape) -> int:
    """Returns the multiply-adds of all linear layers and convolutions for one image.

    ``model`` must not be used afterwards: OneFlow's forward hooks cannot be removed.
    """
    counts: list[int] = []

    def count(layer: flow.nn.Module, inputs: tuple[flow.Tensor, ...], output: flow.Tensor) -> None:
        weight = layer.weight.shape  # output channels or units come first
        counts.append(output.numel() * (weight.numel() // weight[0]))

    for layer in model.modules():
        if isinstance(layer, (flow.nn.Linear, flow.nn.Conv2d)):
            layer.register_forward_hook(count)
    with flow.no_grad():
        model.eval()(flow.zeros(1, *image_shape))
    return sum(counts)
