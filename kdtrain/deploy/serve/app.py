"""The service as an ASGI application: routes and responses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import ipaddress
import json
import logging
import urllib.parse
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdtrain.data.images.model_input import shows_digits
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.serve.requests import Limits, content_type, images_in, read_body, temperature_in
from kdtrain.errors import KdtrainError, error_text
from kdtrain.metrics.probabilities import tempered_softmax

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"

_WRONG_HOST = "the Host header names another service: use an IP address, localhost or this machine's name."

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_app(
    model: OnnxModel, teacher: OnnxModel | None, limits: Limits, threads: int, names: Collection[str] = ()
) -> Starlette:
    """Returns the service.

    Args:
        model: the model that predicts.
        teacher: a second model, if any, with the same images and classes.
        limits: the limits of requests.
        threads: requests that are prepared in parallel; each model computes one request at a time.
        names: host names that the service accepts, besides localhost and IP addresses.
    """
    at_once, large = anyio.CapacityLimiter(threads), anyio.Semaphore(2 * threads)
    service = _Service(model, teacher, limits, at_once, large)
    files = [Route(f"/{path.name}", _file(path)) for path in sorted(PAGE.iterdir())]
    routes = [
        Route("/", _file(PAGE / "index.html")),
        Route("/predict", service.predict, methods=["POST"]),
        Route("/model", service.model_card),
        Route("/healthz", _healthz),
    ]
    return Starlette(
        routes=[*routes, *files],
        middleware=[Middleware(_HostCheck, names=names)],
        exception_handlers={HTTPException: _refusal, KdtrainError: _failure, Exception: _failure},
    )


@dataclass(frozen=True)
class _Service:
    """The endpoints of the models."""

    model: OnnxModel
    teacher: OnnxModel | None
    limits: Limits
    threads: anyio.CapacityLimiter
    large: anyio.Semaphore

    async def model_card(self, request: Request) -> Response:
        """Responds with the models' cards, and whether they classify drawn digits."""
        card = self.model.card
        answer = _about(self.model) | {
            "softening": card.softening,
            "drawing": shows_digits(card.dataset, card.image_shape, card.classes),
            "teacher": None if self.teacher is None else _about(self.teacher),
        }
        return JSONResponse(answer)

    async def predict(self, request: Request) -> Response:
        """Responds with the models' probabilities for the images in the body."""
        kind, temperature = content_type(request), temperature_in(request, self.model.card)
        async with contextlib.AsyncExitStack() as held:
            large = functools.partial(held.enter_async_context, self.large)
            body = await read_body(request, self.limits, large)
            answer = functools.partial(
                self._answer, kind, body, temperature, "pixels" in request.query_params
            )
            content = await anyio.to_thread.run_sync(answer, limiter=self.threads)
        return Response(content, media_type="application/json")

    def _answer(self, kind: str, body: bytes, temperature: float, with_pixels: bool) -> bytes:
        """Returns the JSON of the response. Runs in a thread: decoding and computing would block the loop."""
        images = images_in(kind, body, self.model.card)
        answer = _predictions(self.model, images, temperature) | {"classes": self.model.card.classes}
        if self.teacher is not None:
            answer["teacher"] = _predictions(self.teacher, images, temperature)
        content = json.dumps(answer, allow_nan=False)
        if with_pixels:  # image by image: all as Python's numbers would take ten times the memory of the text
            pixels = ", ".join(json.dumps(image.tolist()) for image in images)
            content = f'{content[:-1]}, "pixels": [{pixels}]}}'
        return content.encode()


def _predictions(model: OnnxModel, images: npt.NDArray[Any], temperature: float) -> dict[str, Any]:
    return {
        "model": model.path.stem,
        "predictions": [
            {
                "class": model.card.classes[int(np.argmax(logits))],
                "probabilities": tempered_softmax(logits, 1.0).tolist(),
                "softened": tempered_softmax(logits, temperature).tolist(),
                "temperature": temperature,
            }
            for logits in model.logits(images)
        ],
    }


def _about(model: OnnxModel) -> dict[str, Any]:
    return {"model": model.path.stem} | dataclasses.asdict(model.card)


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return FileResponse(path)

    return endpoint


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _refusal(request: Request, error: Exception) -> Response:
    """Responds to a request that is refused: status 4xx."""
    assert isinstance(error, HTTPException)
    path, message = request.url.path, error.detail
    if error.status_code == 404:
        message = f"there is no {path}; there are: /, /predict, /model, /healthz."
    elif error.status_code == 405:
        message = f"{path} does not take {request.method}, but {(error.headers or {}).get('Allow', '')}."
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    """Responds with status 500 to a request on which the service fails, and logs the error."""
    logger.error(f"kdtrain: {request.method} {request.url.path} failed: {error_text(error)}")
    return JSONResponse({"error": f"the service failed: {error_text(error)}"}, 500)


class _HostCheck:
    """Middleware that refuses requests for unknown host names, and adds security headers to responses.

    An attacker's page can give its own host name this service's address (DNS rebinding). A browser then
    takes the service for that page's server, and lets the page read responses. The Host header still has
    the attacker's name; with an IP address or localhost in it, the attack is impossible.

    Starlette's ``TrustedHostMiddleware`` is not used: it splits the header at the first colon, which breaks
    IPv6 addresses, and it has no pattern for "any IP address".
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        app = self._app
        if scope["type"] == "http" and not self._is_allowed(Request(scope).headers.get("host", "")):
            app = JSONResponse({"error": _WRONG_HOST}, 400)
        await app(scope, receive, send_with_headers)

    def _is_allowed(self, host: str) -> bool:
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
