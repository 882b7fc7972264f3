"""Networks by name, as ``--teacher-arch`` and ``--student-arch`` take them: kdtrain's and users'."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from kdtrain.errors import KdtrainError, UsageError, clipped, did_you_mean, one_line, size_text
from kdtrain.models.networks import SMALLEST_SIDE, HintonMlp, ImageShape, StudentCnn, StudentMlp, TeacherCnn
from kdtrain.models.resnet import ResNet
from kdtrain.models.zoo import CLASSIFIERS, LARGE, PREFIX, build_classifier, check_classifier
from kdtrain.nn.own_layers import with_own_layers
from kdtrain.runtime import flow
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.user_code import load_callable, with_source_line

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

SMALLEST_SIDES = {
    "teacher_cnn": (6, "hinton_1200 with --teacher-arch"),
    "student_cnn": (SMALLEST_SIDE, "student_mlp with --student-arch"),
}
"""Networks that need more than a pixel: height and width of their smallest image, and what to choose then."""


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
    side, advice = SMALLEST_SIDES.get(arch, (1, ""))
    if min(image_shape[1:]) < side:
        raise UsageError(
            f"{arch} needs images of at least {side}x{side} pixels, these are {size_text(image_shape[1:])}: "
            f"choose {advice}."
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


def check_factory(arch: str) -> None:
    """Raises UsageError if the name is invalid or its file does not exist; runs no code of the user's."""
    place, _, name = _parts(arch)
    if not place or not name.isidentifier():
        raise UsageError(
            f"the architecture {arch!r}: write file.py:factory, or package.module:factory, where "
            "factory(image_shape, num_classes) returns a network."
        )
    if place.endswith(".py") and not os.path.isfile(place):
        raise UsageError(f"the architecture {arch}: there is no file {missing_path_text(place)}.")


def build_from_factory(arch: str, image_shape: ImageShape, num_classes: int) -> flow.nn.Module:
    """Returns a factory's network, with kdtrain's layers, after a check on two images of zeros.

    Args:
        arch: FILE.py:FACTORY or MODULE:FACTORY.
        image_shape: channels, height, width.
        num_classes: the number of logits.

    Raises:
        UsageError: there is no such factory, it raises, or its network does not return such logits.
        KdtrainError: its file or module cannot be imported.
    """
    check_factory(arch)
    factory = load_callable(arch, "network", "factory", f"the architecture {arch}")
    model = _call(arch, "the factory", factory, image_shape, num_classes)
    if not isinstance(model, flow.nn.Module):
        raise UsageError(f"the architecture {arch}: its factory returned {_kind(model)}, not an nn.Module.")
    training = with_own_layers(model).training
    with flow.no_grad():
        logits = _call(arch, "the network", model.eval(), flow.zeros(2, *image_shape))
    model.train(training)
    if not isinstance(logits, flow.Tensor) or tuple(logits.shape) != (2, num_classes):
        size = f" of the shape {tuple(logits.shape)}" if isinstance(logits, flow.Tensor) else ""
        raise UsageError(
            f"the architecture {arch}: for 2 images of {size_text(image_shape)} its network "
            f"returned {_kind(logits)}{size}, not logits of the shape (2, {num_classes})."
        )
    return model


def _parts(arch: str) -> tuple[str, str, str]:
    return arch.rpartition(":") if ":" in arch else (arch, "", "")


def _call(arch: str, what: str, function: Callable[..., Any], *arguments: object) -> Any:
    try:
        return function(*arguments)
    except KdtrainError as error:
        raise UsageError(f"the architecture {arch}: {error}") from error
    except (Exception, SystemExit) as error:
        place = with_source_line(f"the architecture {arch}", error)
        raise UsageError(f"{place}: {what} raised {one_line(error)}.") from error


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
