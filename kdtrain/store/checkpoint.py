"""Checkpoints: one safetensors file, with all that is needed to use its weights in the header.

Nothing that is read here can run code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

import kdtrain
from kdtrain.errors import CheckpointError
from kdtrain.models.registry import ARCHITECTURES, build_model
from kdtrain.runtime import flow
from kdtrain.store.atomic import write_bytes
from kdtrain.store.oneflow_directory import read_oneflow_directory

Weights = dict[str, npt.NDArray[np.generic]]

_HEADER = "kdtrain"  # one key only: safetensors does not keep the order of several


@dataclass(frozen=True)
class ModelCard:
    """What weights are for: enough to build the network and to feed it.

    Attributes:
        mode: how it was trained: teacher, student_kd or student.
        arch: the network's name in the registry.
        dataset: the name of the data it was trained on.
        image_shape: channels, height, width.
        classes: the classes' names, in the order of the logits.
        mean: per channel, of pixels scaled to 0..1.
        std: per channel, likewise.
        metrics: of the epoch that these weights are from.
        versions: of kdtrain and oneflow.
    """

    mode: str
    arch: str
    dataset: str
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(
        default_factory=lambda: {"kdtrain": kdtrain.__version__, "oneflow": str(flow.__version__)}
    )


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

    def build(self, device: str) -> flow.nn.Module:
        """Returns the network with these weights, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the architecture; the text names those that do not.
        """
        model = build_model(self.card.arch, self.card.image_shape, len(self.card.classes))
        load_weights(model, self.weights, f"{self.path} ({self.card.arch})")
        return model.to(device).eval()


def snapshot(model: flow.nn.Module) -> Weights:
    """Returns a copy of the weights; later optimizer steps do not change it."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def load_weights(model: flow.nn.Module, weights: Weights, source: str) -> None:
    """Puts ``weights`` into ``model``.

    Raises:
        CheckpointError: names or shapes differ; the text lists which.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in own]
    problems += [
        f"{name} is {_shape(weights[name].shape)} instead of {_shape(shape)}"
        for name, shape in own.items()
        if name in weights and weights[name].shape != shape
    ]
    if problems:
        raise CheckpointError(f"the weights in {source} do not fit the network: {'; '.join(problems)}.")
    model.load_state_dict({name: flow.tensor(np.ascontiguousarray(array)) for name, array in weights.items()})


def save_tensors(path: Path, tensors: Mapping[str, npt.NDArray[np.generic]], header: dict[str, Any]) -> None:
    """Writes tensors and a header of plain values into one safetensors file, atomically."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}
    write_bytes(path, safetensors.numpy.save(contiguous, {_HEADER: json.dumps(header, sort_keys=True)}))


def save_model(path: Path, weights: Weights, card: ModelCard) -> None:
    """Writes a model that ``load_model`` reads."""
    save_tensors(path, weights, dataclasses.asdict(card))


def load_tensors(path: Path) -> tuple[Weights, dict[str, Any]]:
    """Returns the tensors and the header of a file that ``save_tensors`` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or not one of kdtrain's.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        header = json.loads(metadata[_HEADER])
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.") from None
    except KeyError:
        raise CheckpointError(f"{path} is a safetensors file, but not one that kdtrain wrote.") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a checkpoint, or it is damaged: {error}.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a damaged header: it should be a table of values.")
    return weights, header


def load_model(path: Path, fallback: ModelCard | None = None) -> SavedModel:
    """Reads a model: a file of kdtrain's, or a directory that ``oneflow.save`` wrote.

    Args:
        path: the file or the directory.
        fallback: what the weights in a directory are taken for; it does not say so itself. Its
            architecture is replaced by the one in the registry that has those tensors.

    Raises:
        CheckpointError: it cannot be read, or it holds no model.
    """
    if path.is_dir():
        weights = read_oneflow_directory(path)
        if fallback is None:
            raise CheckpointError(f"{path} does not say what it is for, and there is nothing to go by.")
        return SavedModel(
            path, dataclasses.replace(fallback, arch=_recognise(weights, fallback, path)), weights
        )
    weights, header = load_tensors(path)
    header = header.get("model", header)  # `last` holds a model among other things
    weights = {
        name.removeprefix("model/"): w for name, w in weights.items() if not name.startswith("optimizer/")
    }
    return SavedModel(path, _card(header, path), weights)


def _card(header: dict[str, Any], path: Path) -> ModelCard:
    try:
        channels, height, width = (int(n) for n in header["image_shape"])
        card = ModelCard(
            mode=str(header["mode"]),
            arch=str(header["arch"]),
            dataset=str(header["dataset"]),
            image_shape=(channels, height, width),
            classes=tuple(str(name) for name in header["classes"]),
            mean=tuple(float(x) for x in header["mean"]),
            std=tuple(float(x) for x in header["std"]),
            metrics={str(k): float(v) for k, v in header["metrics"].items()},
            versions={str(k): str(v) for k, v in header["versions"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error!r}.") from error
    if card.arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} is for the architecture {card.arch!r}, which this kdtrain does not have."
        )
    return card


def _recognise(weights: Weights, card: ModelCard, path: Path) -> str:
    """Returns the architecture whose parameters have just these names and shapes."""
    shapes = {name: array.shape for name, array in weights.items()}
    for arch in (card.arch, *ARCHITECTURES):
        model = build_model(arch, card.image_shape, len(card.classes))
        if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes:
            return arch
    return card.arch  # building it will list what does not fit


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape) or "a scalar"
