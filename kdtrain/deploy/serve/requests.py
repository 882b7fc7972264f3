"""What a request asks: the images in its body, and the temperature."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException
from starlette.requests import Request

from kdtrain.data.images.model_input import model_input
from kdtrain.errors import DataError
from kdtrain.store.card import ModelCard

TEMPERATURE = 4.0
"""What is softened with unless a request says otherwise: the default of ``kdtrain fit``."""

_MOST = 1000.0


def content_type(request: Request) -> str:
    """Returns the kind of a request's body: ``application/json``, or another one for a picture.

    A page from elsewhere cannot send any of these without the browser's asking us first.

    Raises:
        HTTPException: 415, it is neither.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/octet-stream") and not kind.startswith("image/"):
        raise HTTPException(
            415,
            "send the bytes of a picture with Content-Type: image/png (or image/jpeg and so on), "
            'or {"pixels": ...} with Content-Type: application/json.',
        )
    return kind


def temperature(request: Request) -> float:
    """Returns the temperature that a request names, or the usual one.

    Raises:
        HTTPException: 422, it is not a number that can be used.
    """
    text = request.query_params.get("temperature", str(TEMPERATURE))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= _MOST:
        raise HTTPException(422, f"the temperature must be a number from 0.01 to {_MOST:g}.")
    return value


def images(kind: str, body: bytes, card: ModelCard) -> npt.NDArray[Any]:
    """Returns the images in a body, (N, C, H, W), of values from 0 to 255.

    Args:
        kind: what ``content_type`` has returned.
        body: a picture, or JSON.
        card: of the model that will be asked.

    Raises:
        HTTPException: 400, it is no JSON; 422, what it holds cannot be used.
    """
    if kind == "application/json":
        return _pixels(body, card.image_shape)
    try:
        return model_input(body, card.dataset, card.image_shape)[np.newaxis]
    except DataError as error:
        raise HTTPException(422, str(error)) from error


def _pixels(body: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Returns what stands under ``pixels``: one image or a list of them; one channel needs no brackets."""
    try:
        content = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}.") from error
    channels, height, width = shape
    wanted = f"[{channels}][{height}][{width}]"
    if not isinstance(content, dict) or "pixels" not in content:
        raise HTTPException(422, f'the body must be {{"pixels": ...}}, with the values of {wanted} in it.')
    try:
        values = np.array(content["pixels"], dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        sentence = "the pixels must be nested lists of numbers, all of the same length."
        raise HTTPException(422, sentence) from error
    if values.shape == shape:
        values = values[np.newaxis]
    elif channels == 1 and values.shape[-2:] == (height, width) and values.ndim <= 3:
        values = values.reshape(-1, *shape)
    if values.shape[1:] != shape or not len(values):
        shown = "".join(f"[{length}]" for length in values.shape) or "a single value"
        raise HTTPException(422, f"the pixels must be {wanted}, or several of them; these are {shown}.")
    if not ((values >= 0) & (values <= 255)).all():
        raise HTTPException(422, "the pixels must be from 0 to 255.")
    return values.astype(np.float32)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
