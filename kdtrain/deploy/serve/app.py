"""The service as an ASGI application: its routes, and what it answers."""

from __future__ import annotations

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

from kdtrain.data.images.model_input import shows_ink
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.deploy.serve import requests as questions
from kdtrain.deploy.serve.limits import Limits, TokenBuckets, read_body
from kdtrain.errors import KdtrainError, error_text
from kdtrain.metrics.probabilities import probabilities

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_app(
    model: OnnxModel,
    teacher: OnnxModel | None,
    limits: Limits,
    threads: int,
    names: Collection[str] = (),
) -> Starlette:
    """Returns the service.

    Args:
        model: what is asked.
        teacher: what is asked as well, if any; it takes the same images and knows the same classes.
        limits: what one client may ask.
        threads: how many requests are prepared at the same time; one after the other is computed.
        names: those under which it may be reached, beside localhost and addresses.
    """
    service = _Service(model, teacher, limits, anyio.CapacityLimiter(threads))
    files = [Route(f"/{path.name}", _file(path)) for path in sorted(PAGE.iterdir())]
    routes = [
        Route("/", _file(PAGE / "index.html")),
        Route("/predict", service.predict, methods=["POST"]),
        Route("/model", service.model_card),
        Route("/healthz", _healthz),
    ]
    return Starlette(
        routes=[*routes, *files],
        middleware=[Middleware(_Guard, names=names)],
        exception_handlers={HTTPException: _refusal, KdtrainError: _failure, Exception: _failure},
    )


@dataclass(frozen=True)
class _Service:
    """The endpoints that ask models."""

    model: OnnxModel
    teacher: OnnxModel | None
    limits: Limits
    threads: anyio.CapacityLimiter

    @functools.cached_property
    def _buckets(self) -> TokenBuckets:
        return TokenBuckets(self.limits.rate)

    async def model_card(self, request: Request) -> Response:
        """What the models are, and whether a drawing can be an image for them."""
        card = self.model.card
        answer = _about(self.model) | {
            "drawing": shows_ink(card.dataset, card.image_shape) and all(map(str.isdecimal, card.classes)),
            "teacher": None if self.teacher is None else _about(self.teacher),
        }
        return JSONResponse(answer)

    async def predict(self, request: Request) -> Response:
        """The models' probabilities for the image in the body, or for several."""
        self._buckets.check(request)
        kind, temperature = questions.content_type(request), questions.temperature(request)
        body = await read_body(request, self.limits)
        answer = functools.partial(self._answer, kind, body, temperature, "pixels" in request.query_params)
        content = await anyio.to_thread.run_sync(answer, limiter=self.threads)
        return Response(content, media_type="application/json")

    def _answer(self, kind: str, body: bytes, temperature: float, with_pixels: bool) -> str:
        """Returns the JSON to answer with; all that takes time is in here."""
        images = questions.images(kind, body, self.model.card)
        answer = _predictions(self.model, images, temperature) | {"classes": self.model.card.classes}
        if self.teacher is not None:
            answer["teacher"] = _predictions(self.teacher, images, temperature)
        if with_pixels:
            answer["pixels"] = images.tolist()
        return json.dumps(answer, allow_nan=False)


def _predictions(model: OnnxModel, images: npt.NDArray[Any], temperature: float) -> dict[str, Any]:
    return {
        "model": model.path.stem,
        "predictions": [
            {
                "class": model.card.classes[int(np.argmax(logits))],
                "probabilities": probabilities(logits, 1.0).tolist(),
                "softened": probabilities(logits, temperature).tolist(),
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
    """Answers a request that cannot be answered otherwise."""
    assert isinstance(error, HTTPException)
    path, sentence = request.url.path, error.detail
    if error.status_code == 404:
        sentence = f"there is no {path}; there are: /, /predict, /model, /healthz."
    elif error.status_code == 405:
        sentence = f"{path} does not take {request.method}, but {(error.headers or {}).get('Allow', '')}."
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    """Answers where we are at fault, and tells who started the service."""
    logger.error(f"kdtrain: {request.method} {request.url.path} failed: {error_text(error)}")
    return JSONResponse({"error": f"the service failed: {error_text(error)}"}, 500)


class _Guard:
    """Refuses requests by unknown names, and sends the headers that bind browsers.

    A stranger's page may give its own name our address (DNS rebinding); a browser then takes us for
    that page's server, and lets it ask us. It cannot do that with an address, or with localhost.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        app = self._app
        if scope["type"] == "http" and not self._knows(Request(scope).headers.get("host", "")):
            app = JSONResponse({"error": "this service is not known by the name in the Host header."}, 400)
        await app(scope, receive, send_with_headers)

    def _knows(self, host: str) -> bool:
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
