"""Checkpoints: one safetensors file, whose header holds all that is needed to use the weights.

Reading a checkpoint runs no code from it.
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

from kdtrain.errors import CheckpointError, UsageError, listed, os_reason, size_text
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
from kdtrain.runtime.locations import missing_path_text, short_name
from kdtrain.runtime.regular_files import descriptor_path, open_regular
from kdtrain.store.card import ModelCard, read_card
from kdtrain.store.oneflow_directory import read_oneflow_directory

Weights = dict[str, npt.NDArray[np.generic]]

_MOST_LISTED = 10  # weights that do not fit, in a message
_HEADER = "kdtrain"  # a single key, because safetensors does not keep the order of several


@dataclass(frozen=True, eq=False, repr=False)
class SavedModel:
    """The weights of a file, with their card.

    Attributes:
        path: the file or directory.
        card: the network and the data that the weights are for.
        weights: each parameter and buffer, by name, in its own shape and dtype.
    """

    path: Path
    card: ModelCard
    weights: Weights

    def __repr__(self) -> str:
        values = sum(array.size for array in self.weights.values())
        network = f"{short_name(self.card.arch)}, {values:,} values, for {self.card.dataset}"
        return f"<SavedModel {network} ({self.path})>"

    def build(self, device: str = "cpu") -> flow.nn.Module:
        """Returns the network with these weights, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the architecture (the text lists the differences), or are
                not finite. The network's outputs do not always show that: oneDNN's ReLU of NaN is 0.
        """
        source = f"{self.path} ({self.card.arch})"
        fewest = fewest_values(self.card.arch, self.card.image_shape)
        different = {id(array): (name, array) for name, array in self.weights.items()}.values()
        given = sum(array.size for _, array in different)
        if given < fewest:  # a card of a few bytes may name a network of gigabytes
            raise CheckpointError(
                f"the weights in {source} do not fit the network: it has at least {fewest:,} values, and "
                f"the file has {given:,}."
            )
        for name, array in different:
            if not np.isfinite(array).all():
                raise CheckpointError(
                    f"the weights in {source} cannot be used: {name} holds NaN or infinity."
                )
        model = build_model(self.card.arch, self.card.image_shape, len(self.card.classes))
        load_weights(model, self.weights, source)
        return model.to(device).eval()


def snapshot(model: flow.nn.Module) -> Weights:
    """Returns a copy of the weights, by name, which later optimizer steps do not change."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def load_weights(model: flow.nn.Module, weights: Weights, source: str) -> None:
    """Copies ``weights`` into ``model``.

    Args:
        model: the network.
        weights: each parameter and buffer, by name.
        source: the origin of the weights, for messages.

    Raises:
        CheckpointError: names, shapes or dtypes differ; the text lists the differences.
    """
    state = model.state_dict()
    expected = {name: _describe(tensor.shape, _type_of(tensor)) for name, tensor in state.items()}
    given = {name: _describe(array.shape, array.dtype) for name, array in weights.items()}
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    problems += [
        f"{name} is {given[name]} instead of {wanted}"
        for name, wanted in expected.items()
        if given.get(name, wanted) != wanted
    ]
    if problems:
        text = listed(problems, _MOST_LISTED, "; ")
        raise CheckpointError(f"the weights in {source} do not fit the network: {text}.")
    model.load_state_dict(
        {name: flow.tensor(np.asarray(array, order="C")) for name, array in weights.items()}
    )


def save_tensors(path: Path, tensors: Mapping[str, npt.NDArray[np.generic]], header: dict[str, Any]) -> None:
    """Writes tensors, a header and a checksum of both to a safetensors file, atomically.

    Args:
        path: the file.
        tensors: arrays of any shape and dtype that safetensors has, by name.
        header: plain values, which JSON can hold.

    Raises:
        CheckpointError: the header is too large to be read again.
        KdtrainError: the file cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in sorted(tensors.items())}
    header = json.loads(json.dumps(header))  # as it will be read: all keys become texts
    header["sha256"] = fingerprint(arrays, header)
    content = safetensors.numpy.save(arrays, {_HEADER: json.dumps(header, sort_keys=True)})
    try:
        _check_header(content)
    except ValueError as error:  # a file that could not be read is not written
        raise CheckpointError(f"{path} cannot be written: {error}.") from error
    write_bytes(path, content)


def fingerprint(tensors: Mapping[str, npt.NDArray[np.generic]], header: object) -> str:
    """Returns the SHA-256 (hex) of tensors, with names, dtypes and shapes, and of a JSON value."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_model(path: Path, weights: Weights, card: ModelCard) -> None:
    """Writes a model file, which ``load_model`` reads."""
    save_tensors(path, weights, dataclasses.asdict(card))


def load_tensors(path: Path) -> tuple[Weights, dict[str, Any]]:
    """Returns the tensors and the header of a file that ``save_tensors`` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or not written by kdtrain.
    """
    try:
        with open_regular(path) as opened:
            _check_header(opened.read(8))
            with safetensors.safe_open(descriptor_path(opened), framework="numpy") as file:
                text = (file.metadata() or {}).get(_HEADER)
                if text is None:
                    raise CheckpointError(f"{path} is a safetensors file that kdtrain did not write.")
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
        raise CheckpointError(f"there is no checkpoint {missing_path_text(path)}.") from None
    except (OSError, ValueError, RecursionError, TypeError, AttributeError, SafetensorError) as error:
        # TypeError and AttributeError: NumPy lacks the tensor's dtype
        raise CheckpointError(f"{path} is not a checkpoint, or it is damaged: {os_reason(error)}.") from error
    if stated is None or stated != actual:
        raise CheckpointError(f"{path} is damaged: its content does not have the checksum that it states.")
    return weights, header


def load_card(path: Path) -> ModelCard:
    """Returns the card of a model file, whatever network it names.

    Raises:
        CheckpointError: the file cannot be read, or holds no model.
    """
    return _card_in(load_tensors(path)[1], path)


def _check_header(begin: bytes) -> None:
    """Raises ValueError if the header, whose size the first 8 bytes state, is too large.

    Parsing a header takes much more time and memory than reading as many bytes of weights.
    """
    size = int.from_bytes(begin[:8], "little")
    if size > MOST_HEADER:
        raise ValueError(f"its header has {size:,} bytes, and should have at most {MOST_HEADER:,}")


def load_model(
    path: Path | str, fallback: ModelCard | None = None, *, arch: str | None = None, flag: str = "--arch"
) -> SavedModel:
    """Reads a model: a file of kdtrain's, or a directory that ``oneflow.save`` wrote.

    A file that names a user's code does not make it run, neither here nor when the network is built,
    unless ``arch`` names the same code.

    Args:
        path: the file or the directory.
        fallback: the card for the weights in a directory, which has none. Its architecture is replaced
            by the one in the registry that has these tensors.
        arch: the architecture that is required; None admits all of kdtrain's and flowvision's.
        flag: the flag that ``arch`` comes from, for messages.

    Raises:
        CheckpointError: the path cannot be read, holds no model, or one of another architecture.
    """
    path = Path(path)
    if os.path.isdir(path):
        weights = read_oneflow_directory(path)
        if fallback is None:
            raise CheckpointError(f"{path} holds weights without a card: give a file that kdtrain wrote.")
        recognised = arch or _recognise(weights, fallback)
        return SavedModel(path, dataclasses.replace(fallback, arch=recognised), weights)
    tensors, header = load_tensors(path)
    rest_of_state = ("optimizer/", "term/")
    weights = {
        name.removeprefix("model/"): array
        for name, array in tensors.items()
        if not name.startswith(rest_of_state)
    }
    card = _card_in(header, path)
    _check_architecture(card.arch, path, arch, flag)
    return SavedModel(path, dataclasses.replace(card, arch=arch or card.arch), weights)


def _card_in(header: dict[str, Any], path: Path) -> ModelCard:
    return read_card(header.get("model", header), path)  # a resume state holds a model among other entries


def _check_architecture(named: str, path: Path, wanted: str | None, flag: str) -> None:
    """Raises CheckpointError unless the network that a card names may be built.

    Of a FILE.py:FACTORY only the file name is compared: the file may have moved since training.
    """
    if wanted is not None:
        if short_name(named) != short_name(wanted):
            raise CheckpointError(
                f"{path} is a {short_name(named)}, but {flag} is {wanted}: set {flag} to the former, "
                "or choose another file."
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
    """Returns the architecture whose parameters have exactly these names and shapes."""
    shapes = {name: array.shape for name, array in weights.items()}
    for arch in dict.fromkeys((card.arch, *ARCHITECTURES)):
        try:
            model = build_model(arch, card.image_shape, len(card.classes))
        except UsageError:
            continue  # not for images of this size
        if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes:
            return arch
    return card.arch  # building it lists the differences


def _describe(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Returns a tensor's shape as a text, with its dtype unless that is float32."""
    text = size_text(shape) or "a scalar"
    return text if dtype == np.float32 else f"{text} of {dtype}"


def _type_of(tensor: flow.Tensor) -> np.dtype[Any]:
    """Returns NumPy's dtype of a tensor, without reading its values."""
    dtype: np.dtype[Any] = flow.empty(0, dtype=tensor.dtype).numpy().dtype
    return dtype
