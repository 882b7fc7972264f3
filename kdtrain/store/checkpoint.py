"""Checkpoints: one safetensors file, with all that is needed to use its weights in the header.

Nothing that is read here can run code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from safetensors import SafetensorError

from kdtrain.errors import CheckpointError, UsageError, size_text
from kdtrain.models.registry import (
    ARCHITECTURES,
    build_model,
    check_architecture,
    fewest_values,
    runs_code,
)
from kdtrain.runtime import flow
from kdtrain.runtime.files import write_bytes
from kdtrain.runtime.limits import MOST_HEADER, MOST_TENSORS
from kdtrain.runtime.locations import short, sought
from kdtrain.runtime.regular_files import name_of, open_regular
from kdtrain.store.card import ModelCard, read_card
from kdtrain.store.oneflow_directory import read_oneflow_directory

Weights = dict[str, npt.NDArray[np.generic]]

_MOST_LISTED = 10  # of the weights that do not fit
_HEADER = "kdtrain"  # one key only: safetensors does not keep the order of several


@dataclass(frozen=True)
class SavedModel:
    """Weights as they were read, with their card.

    Attributes:
        path: where they were read from.
        card: what they are for.
        weights: each parameter's values by name.
    """

    path: Path
    card: ModelCard
    weights: Weights

    def build(self, device: str = "cpu") -> flow.nn.Module:
        """Returns the network with these weights, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the architecture; the text names those that do not.
        """
        source = f"{self.path} ({self.card.arch})"
        fewest = fewest_values(self.card.arch, self.card.image_shape)
        given = sum({id(array): array.size for array in self.weights.values()}.values())
        if given < fewest:  # a file of a few bytes may say that it is of a network of gigabytes
            raise CheckpointError(
                f"the weights in {source} do not fit the network: it has {fewest:,} numbers at least, and "
                f"they are {given:,}."
            )
        model = build_model(self.card.arch, self.card.image_shape, len(self.card.classes))
        load_weights(model, self.weights, source)
        return model.to(device).eval()


def snapshot(model: flow.nn.Module) -> Weights:
    """Returns a copy of the weights; later optimizer steps do not change it."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def load_weights(model: flow.nn.Module, weights: Weights, source: str) -> None:
    """Puts ``weights`` into ``model``.

    Raises:
        CheckpointError: names, shapes or types differ; the text lists which.
    """
    own = {name: _describe(tensor.shape, _type_of(tensor)) for name, tensor in model.state_dict().items()}
    given = {name: _describe(array.shape, array.dtype) for name, array in weights.items()}
    problems = [f"missing {name}" for name in own if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in own]
    problems += [
        f"{name} is {given[name]} instead of {wanted}"
        for name, wanted in own.items()
        if given.get(name, wanted) != wanted
    ]
    if problems:
        listed = "; ".join(problems[:_MOST_LISTED])
        more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise CheckpointError(f"the weights in {source} do not fit the network: {listed}{more}.")
    model.load_state_dict(
        {name: flow.tensor(np.asarray(array, order="C")) for name, array in weights.items()}
    )


def save_tensors(path: Path, tensors: Mapping[str, npt.NDArray[np.generic]], header: dict[str, Any]) -> None:
    """Writes tensors, a header of plain values and a checksum of both to a safetensors file, atomically."""
    arrays = {name: np.asarray(array, order="C") for name, array in sorted(tensors.items())}
    header = json.loads(json.dumps(header))  # as it will be read: every key is a text then
    header["sha256"] = fingerprint(arrays, header)
    content = safetensors.numpy.save(arrays, {_HEADER: json.dumps(header, sort_keys=True)})
    try:
        _check_header(content)
    except ValueError as error:  # what could not be read is not written
        raise CheckpointError(f"{path} cannot be written: {error}.") from error
    write_bytes(path, content)


def fingerprint(tensors: Mapping[str, npt.NDArray[np.generic]], header: object) -> str:
    """Returns the SHA-256 of the tensors, with their names, types and shapes, and of a JSON value."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_model(path: Path, weights: Weights, card: ModelCard) -> None:
    """Writes a model that ``load_model`` reads."""
    save_tensors(path, weights, dataclasses.asdict(card))


def load_tensors(path: Path) -> tuple[Weights, dict[str, Any]]:
    """Returns the tensors and the header of a file that ``save_tensors`` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or not one of kdtrain's.
    """
    try:
        with open_regular(path) as opened:
            _check_header(opened.read(8))
            with safetensors.safe_open(name_of(opened), framework="numpy") as file:
                text = (file.metadata() or {}).get(_HEADER)
                if text is None:
                    raise CheckpointError(f"{path} is a safetensors file, but not one that kdtrain wrote.")
                names = file.keys()
                if len(names) > MOST_TENSORS:
                    raise CheckpointError(
                        f"{path} holds {len(names):,} tensors; at most {MOST_TENSORS:,} are read."
                    )
                weights = {name: file.get_tensor(name) for name in names}
        header = json.loads(text)
        stated = header.pop("sha256", None) if isinstance(header, dict) else None
        actual = fingerprint(weights, header)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {sought(path)}.") from None
    except (OSError, ValueError, RecursionError, TypeError, AttributeError, SafetensorError) as error:
        # TypeError and AttributeError: the tensor has a type that NumPy does not know
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} is not a checkpoint, or it is damaged: {reason}.") from error
    if stated is None or stated != actual:
        raise CheckpointError(f"{path} is damaged: its content does not have the checksum that it states.")
    return weights, header


def load_card(path: Path) -> ModelCard:
    """Returns what a model in a file of kdtrain's is for; its network may be one that must not be built.

    Raises:
        CheckpointError: it cannot be read, or holds no model.
    """
    return _card_in(load_tensors(path)[1], path)


def _check_header(begin: bytes) -> None:
    """Raises ValueError where a header, of which the first bytes tell the size, is larger than any needs.

    Reading it takes much longer, and far more memory, than reading as many bytes of weights.
    """
    size = int.from_bytes(begin[:8], "little")
    if size > MOST_HEADER:
        raise ValueError(f"its header has {size:,} bytes, and should have at most {MOST_HEADER:,}")


def load_model(
    path: Path | str, fallback: ModelCard | None = None, *, arch: str | None = None, flag: str = "--arch"
) -> SavedModel:
    """Reads a model: a file of kdtrain's, or a directory that ``oneflow.save`` wrote.

    No code of the user's is run for a file that names it, neither here nor when the network is
    built, unless ``arch`` names it as well.

    Args:
        path: the file or the directory.
        fallback: what the weights in a directory are taken for; it does not say so itself. Its
            architecture is replaced by the one in the registry that has those tensors.
        arch: what the network must be; None takes whatever kdtrain or flowvision has.
        flag: where ``arch`` comes from, for an error's text.

    Raises:
        CheckpointError: it cannot be read, holds no model, or one of another architecture.
    """
    path = Path(path)
    if os.path.isdir(path):
        weights = read_oneflow_directory(path)
        if fallback is None:
            raise CheckpointError(f"{path} does not say what it is for, and there is nothing to go by.")
        known = arch or _recognise(weights, fallback)
        return SavedModel(path, dataclasses.replace(fallback, arch=known), weights)
    weights, header = load_tensors(path)
    others = ("optimizer/", "term/")
    weights = {
        name.removeprefix("model/"): array for name, array in weights.items() if not name.startswith(others)
    }
    card = _card_in(header, path)
    _check_architecture(card.arch, path, arch, flag)
    return SavedModel(path, dataclasses.replace(card, arch=arch or card.arch), weights)


def _card_in(header: dict[str, Any], path: Path) -> ModelCard:
    return read_card(header.get("model", header), path)  # `last` holds a model among other things


def _check_architecture(named: str, path: Path, wanted: str | None, flag: str) -> None:
    """Raises CheckpointError unless a network of the kind that a card names may be built.

    A FILE.py:FACTORY is told by its name: the file may lie in another folder than it did in training.
    """
    if wanted is not None:
        if short(named) != short(wanted):
            raise CheckpointError(
                f"{path} is a {short(named)}, but {flag} is {wanted}: give the one that it is, or choose "
                "another file."
            )
        return
    if runs_code(named):
        raise CheckpointError(
            f"{path} is for a network that the code in {named} makes, and no code is run because a file "
            f"names it. If you trust that code, allow it with {flag} {shlex.quote(named)}."
        )
    try:
        check_architecture(named)
    except UsageError as error:
        raise CheckpointError(
            f"{path} is for the architecture {named!r}, which this kdtrain does not have."
        ) from error


def _recognise(weights: Weights, card: ModelCard) -> str:
    """Returns the architecture whose parameters have just these names and shapes."""
    shapes = {name: array.shape for name, array in weights.items()}
    for arch in dict.fromkeys((card.arch, *ARCHITECTURES)):
        try:
            model = build_model(arch, card.image_shape, len(card.classes))
        except UsageError:
            continue  # not made for images of this size
        if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes:
            return arch
    return card.arch  # building it will list what does not fit


def _describe(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Returns a tensor's shape, and its type if it is not the one that weights usually have."""
    text = size_text(shape) or "a scalar"
    return text if dtype == np.float32 else f"{text} of {dtype}"


def _type_of(tensor: flow.Tensor) -> np.dtype[Any]:
    """Returns NumPy's name for a tensor's type, without looking at its values."""
    dtype: np.dtype[Any] = flow.empty(0, dtype=tensor.dtype).numpy().dtype
    return dtype
