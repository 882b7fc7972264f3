"""The command ``kdtrain serve``: the HTTP service of an exported model."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import resource
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from kdtrain.cli.flags import decimal, whole_number
from kdtrain.errors import CheckpointError, KdtrainError, UsageError, clipped
from kdtrain.runtime.signals import raise_on_sigterm
from kdtrain.runtime.value_checks import above_0, check_value

if TYPE_CHECKING:  # the help needs this file, but no NumPy
    from kdtrain.deploy.onnx.process import OnnxModel

logger = logging.getLogger(__name__)

_MOST_BODY = 1000.0  # megabytes; a body is held in memory
_SECONDS_TO_END = 5  # grace period for requests in flight
_SECONDS_TO_GIVE_BACK = 5  # between two returns of freed memory to the system


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "Serve an exported model over HTTP: a page to draw a digit on or to drop an image file on, and an "
        "endpoint, POST /predict. Needs no oneflow."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="a file from `kdtrain export`")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="a second file from `kdtrain export`, whose predictions are shown beside the model's",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on [127.0.0.1: only this machine can connect]",
    )
    parser.add_argument(
        "--port",
        type=whole_number,
        default=8000,
        metavar="N",
        help="TCP port to listen on; 0 takes any free one [8000]",
    )
    parser.add_argument(
        "--max-body", type=decimal, default=10.0, metavar="MB", help="largest request body in megabytes [10]"
    )


def run(options: argparse.Namespace) -> int:
    """Serves requests until SIGINT or SIGTERM."""
    _check(options)
    raise_on_sigterm()
    try:
        import uvicorn

        from kdtrain.deploy.onnx.process import OnnxModel
        from kdtrain.deploy.serve.app import make_app
        from kdtrain.deploy.serve.connections import Server, give_back_memory
        from kdtrain.deploy.serve.requests import Limits
    except ImportError as error:
        raise KdtrainError(
            f"serving needs starlette and uvicorn, which are not installed ({error}): "
            "install them with `pip install 'kdtrain[serve]'`."
        ) from error
    threads = len(os.sched_getaffinity(0))
    model = OnnxModel.load(options.model, threads)
    teacher = None if options.teacher is None else _teacher(options.teacher, model, threads)
    limits = Limits(body=round(options.max_body * 1e6))
    names = {options.host, socket.gethostname(), socket.getfqdn()}
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # each connection needs one
    with _listen(options.host, options.port) as listener:
        config = uvicorn.Config(
            make_app(model, teacher, limits, threads, names),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="error" if options.debug else "critical",  # the service logs its failures itself
            timeout_graceful_shutdown=_SECONDS_TO_END,
            callback_notify=give_back_memory,
            timeout_notify=_SECONDS_TO_GIVE_BACK,
        )
        _announce(listener)
        Server(config, limits).run(sockets=[listener])  # reraises SIGINT or SIGTERM after the shutdown
    return 0


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port is {clipped(options.port)}: it must be from 0 (any that is free) to 65535.")
    check_value("--max-body", options.max_body, above_0(_MOST_BODY), float)
    for path in filter(None, (options.model, options.teacher)):
        if path.suffix == ".safetensors" and path.is_file():
            exported = path.with_suffix(".onnx")
            raise UsageError(
                f"{path} is a checkpoint, and `kdtrain serve` takes exported files: export it first with "
                f"`{shlex.join(['kdtrain', 'export', str(path)])}`, then serve {exported}."
            )


def _teacher(path: Path, model: OnnxModel, threads: int) -> OnnxModel:
    from kdtrain.deploy.onnx.process import OnnxModel

    teacher = OnnxModel.load(path, threads)
    if teacher.card.image_shape != model.card.image_shape:
        raise CheckpointError(f"{path} has other images than {model.path}.")
    if teacher.card.classes != model.card.classes:
        raise CheckpointError(f"{path} has other classes than {model.path}.")
    return teacher


def _listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket, so that a port in use fails before the address is printed."""
    try:
        # Where the protocol is named, asyncio sets TCP_NODELAY. Without it, Nagle's algorithm delays a
        # small response by 40 ms, until the client acknowledges the one before.
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {host} is no address or name of this machine.") from error
    family, kind, protocol, _, address = addresses[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # The port can be bound again while connections of a service that has ended are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise KdtrainError(
            f"cannot listen on {host}, port {port}: {error.strerror}. Choose others with --host and --port."
        ) from error
    return listener


def _announce(listener: socket.socket) -> None:
    """Prints the service's URL, and warns if other machines can reach it."""
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        logger.info(
            f"kdtrain: warning: anyone who can reach {shown} can use this service: it has no accounts and no "
            "encryption."
        )
    logger.info("Ctrl-C ends it.")
    print(f"http://{shown}:{port}/", flush=True)
