"""The reading of prediction requests within limits: the body, the images in it, and the temperature."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from kdtrain.data.images.model_input import model_input
from kdtrain.errors import DataError
from kdtrain.store.card import ModelCard

_LOWEST, _HIGHEST = 0.01, 1000.0  # temperatures
_CLOSE = {"Connection": "close"}  # the rest of a body is not read
_DRAINED = 10  # times the longest body
_SMALL = 100_000  # bytes of a body that are read at once


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        body: the longest body in bytes.
        head: seconds in which the head of a request must arrive.
        seconds: seconds in which a body must arrive, and in which a client must read a part of a response.
        unread: bytes of responses that all clients together may leave unread.
    """

    body: int = 10_000_000
    head: float = 10.0
    seconds: float = 15.0
    unread: int = 50_000_000


def content_type(request: Request) -> str:
    """Returns the media type of a request's body: ``application/json``, or another one for an image.

    A page of another origin cannot send these types without a CORS preflight, which the service refuses.

    Raises:
        HTTPException: 415, it is neither.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/octet-stream") and not kind.startswith("image/"):
        raise HTTPException(
            415,
            "send the bytes of an image file with Content-Type: image/png (or image/jpeg and so on), "
            'or {"pixels": ...} with Content-Type: application/json.',
        )
    return kind


async def read_body(request: Request, limits: Limits, large: Callable[[], Awaitable[object]]) -> bytes:
    """Returns the body of a request.

    After the first 100 KB, ``large`` is awaited, without a limit of time: it bounds the memory of all bodies.

    An oversized body is drained, up to 10 times the limit, because most clients read the response only
    after sending. ``Expect: 100-continue`` clients are refused at once.

    Raises:
        HTTPException: 413, it is too long; 408, it is too slow; 400, the client has disconnected.
    """
    too_long = HTTPException(413, f"the body is longer than {limits.body:,} bytes.", _CLOSE)
    announced = int(request.headers.get("content-length", "0"))  # h11 refuses what is not a number
    waits = request.headers.get("expect", "").lower() == "100-continue"
    if announced > (limits.body if waits else _DRAINED * limits.body):
        raise too_long

    parts, body, length = request.stream(), bytearray(), 0

    async def read(most: int) -> None:
        nonlocal length
        async for part in parts:
            length += len(part)
            if length <= limits.body:
                body.extend(part)
            if length > most:
                break

    try:
        await asyncio.wait_for(read(_SMALL), limits.seconds)
        if length > _SMALL:
            await large()
            await asyncio.wait_for(read(_DRAINED * limits.body), limits.seconds)
    except ClientDisconnect as error:
        raise HTTPException(400, "the body is not complete.", _CLOSE) from error
    except asyncio.TimeoutError as error:
        raise HTTPException(
            408, f"the body had not arrived after {limits.seconds:g} seconds.", _CLOSE
        ) from error
    if length > limits.body:
        raise too_long
    return bytes(body)


def temperature_in(request: Request, card: ModelCard) -> float:
    """Returns a request's temperature, or that of the model's card.

    Raises:
        HTTPException: 422, it is not a number from 0.01 to 1000.
    """
    text = request.query_params.get("temperature", str(card.softening))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not _LOWEST <= value <= _HIGHEST:
        raise HTTPException(422, f"the temperature must be a number from {_LOWEST:g} to {_HIGHEST:g}.")
    return value


def images_in(kind: str, body: bytes, card: ModelCard) -> npt.NDArray[Any]:
    """Returns the images in a body, (N, C, H, W) uint8 or float32, pixels 0..255.

    Args:
        kind: the media type that ``content_type`` has returned.
        body: an image file, or JSON.
        card: the model's card.

    Raises:
        HTTPException: 400, the body is not JSON; 422, its content is not images for this model.
    """
    if kind == "application/json":
        return _pixels(body, card.image_shape)
    try:
        return model_input(body, card.dataset, card.image_shape)[np.newaxis]
    except DataError as error:
        raise HTTPException(422, str(error)) from error


def _pixels(body: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Returns the images under the key ``pixels``, (N, C, H, W) float32.

    The value is an image or a list of images, as nested lists. A single channel may lack its own brackets.
    """
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}.") from error
    channels, height, width = shape
    expected = f"[{channels}][{height}][{width}]"
    if not isinstance(content, dict) or "pixels" not in content:
        raise HTTPException(422, f'the body must be {{"pixels": ...}}, with values of shape {expected}.')
    try:
        values = np.array(content.pop("pixels"), dtype=np.float64)  # pop: Python's numbers take more memory
    except (ValueError, TypeError, OverflowError) as error:
        message = "the pixels must be nested lists of numbers, all of the same length."
        raise HTTPException(422, message) from error
    if values.shape == shape:
        values = values[np.newaxis]
    elif channels == 1 and values.shape[-2:] == (height, width) and values.ndim <= 3:
        values = values.reshape(-1, *shape)
    if values.shape[1:] != shape or not len(values):
        shown = "".join(f"[{length}]" for length in values.shape) or "a single value"
        raise HTTPException(422, f"the pixels must be {expected}, or several of them; these are {shown}.")
    if not ((values >= 0) & (values <= 255)).all():
        raise HTTPException(422, "the pixels must be from 0 to 255.")
    return values.astype(np.float32)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
