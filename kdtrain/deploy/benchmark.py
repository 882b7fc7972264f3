"""What a model costs and what it is worth: size, accuracy, and how long it takes to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdtrain.data.dataset import Normalization, Split
from kdtrain.deploy.latency import Ask, Clock, Images, Timing, measure, stopwatch
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.models.registry import count_parameters
from kdtrain.runtime import flow
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import SavedModel


@dataclass(frozen=True)
class Contender:
    """A model file that can be asked.

    Attributes:
        model: the file, read.
        threads: how many onnxruntime computes with; oneflow's CPU kernels use one, always.
    """

    model: SavedModel | OnnxModel
    threads: int = 1

    @property
    def path(self) -> Path:
        """The file."""
        return self.model.path

    @property
    def card(self) -> ModelCard:
        """What it is for."""
        return self.model.card

    @property
    def runtime(self) -> str:
        """What computes it, and in which precision."""
        if isinstance(self.model, SavedModel):
            return "oneflow"
        return f"onnx {self.model.precision}"

    @property
    def parameters(self) -> int:
        """The number of trainable values in the network."""
        if isinstance(self.model, SavedModel):
            return count_parameters(self.model.build())
        return self.model.parameters

    @property
    def size(self) -> int:
        """Bytes on disk, of all files if it is a folder."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def ask(self) -> Ask:
        """Returns the network, ready to be asked."""
        return self.model.logits if isinstance(self.model, OnnxModel) else _network(self.model)

    def clock(self) -> Clock:
        """Returns the network, ready to be timed on the cores of this process."""
        if isinstance(self.model, OnnxModel):
            return OnnxModel.load(self.path, self.threads).seconds
        return stopwatch(_network(self.model))


def _network(model: SavedModel) -> Ask:
    """Returns a network of oneflow's, in this process."""
    network, normalization = model.build(), Normalization(model.card.mean, model.card.std)

    def ask(images: Images) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        parts = []
        with flow.no_grad():
            for start in range(0, len(images), IMAGES_AT_ONCE):
                inputs = flow.from_numpy(normalization.apply(images[start : start + IMAGES_AT_ONCE]))
                parts.append(network(inputs).numpy().copy())  # a view of memory that oneflow reuses
        return np.concatenate(parts)

    return ask


@dataclass(frozen=True)
class Result:
    """What was found out about one model."""

    contender: Contender
    test: Evaluation
    timing: Timing


def run_benchmark(
    contenders: Sequence[Contender], test: Split, *, batch_size: int, rounds: int
) -> list[Result]:
    """Tests and times models on a data set's test images, on as many cores as onnxruntime has threads."""
    tests = [Evaluation.from_logits(contender.ask()(test.images), test.labels) for contender in contenders]
    makers = {str(number): contender.clock for number, contender in enumerate(contenders)}
    timings = measure(
        makers, test.images[:batch_size], rounds, max(contender.threads for contender in contenders)
    )
    return [
        Result(contender, tests[number], timings[str(number)]) for number, contender in enumerate(contenders)
    ]
