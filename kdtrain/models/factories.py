"""Networks from a user's function: ``package.module:factory`` or ``file.py:factory``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from kdtrain.errors import KdtrainError, UsageError, one_line, size_text
from kdtrain.models.networks import ImageShape
from kdtrain.nn.own_layers import with_own_layers
from kdtrain.runtime import flow
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.user_code import load_callable, with_source_line


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
