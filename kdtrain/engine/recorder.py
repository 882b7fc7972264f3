"""Networks as terms see them: what they make of a batch, with the outputs of layers that are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Batch
from kdtrain.errors import KdtrainError, UsageError, unknown_name_message
from kdtrain.runtime import flow
from kdtrain.runtime.user_code import answer

Shape = tuple[int, ...]


class Output(NamedTuple):
    """What a network made of a batch.

    Attributes:
        logits: (B, classes) float32.
        features: outputs of inner layers, by name, where a callback records them.
    """

    logits: flow.Tensor
    features: Mapping[str, flow.Tensor] = MappingProxyType({})


class Recorder:
    """A network whose layers' outputs can be had beside its logits; the network is not changed.

    A layer's output is what the layer itself returns: an activation that is a function, such as
    ``relu`` in the network's ``forward``, comes after it. If a layer is used several times, its last
    output counts.

    Args:
        network: the network.
        role: what messages call it: ``student`` or ``teacher``.
        images: a few inputs, (B, C, H, W), to find out the shapes with.
    """

    def __init__(self, network: flow.nn.Module, role: str, images: flow.Tensor | None = None) -> None:
        self.network = network
        self.role = role
        self.images = images
        self._layers: dict[str, flow.nn.Module] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that are recorded."""
        return tuple(self._layers)

    def record(self, layer: str) -> Shape:
        """Has a layer's output recorded from here on; returns its shape for one image.

        Args:
            layer: its name, as in ``network.named_modules()``.

        Raises:
            UsageError: there is no such layer, or the network does not use it; the text lists those
                that there are.
        """
        known = {name: module for name, module in self.network.named_modules() if name}
        if layer not in known:
            where = f"layer of the {self.role} ({type(self.network).__name__})"
            raise UsageError(unknown_name_message(where, layer, known))
        if self.images is None:
            raise KdtrainError(f"the {self.role}'s layers can be recorded in configure, within a fit, only.")
        self._layers[layer] = known[layer]
        with _evaluating(self.network):
            features = self(self.images).features
        if layer not in features:
            raise UsageError(
                f"the {self.role}'s layer {layer!r} does not put out a tensor when the network computes."
            )
        return tuple(features[layer].shape[1:])

    def __call__(self, inputs: flow.Tensor) -> Output:
        """Returns what the network makes of ``inputs``, with the recorded layers' outputs by name."""
        if not self._layers:
            return Output(answer(self.network, inputs))
        features: dict[str, flow.Tensor] = {}
        with self._recording(features):
            logits = answer(self.network, inputs)
        return Output(logits, features)

    @contextlib.contextmanager
    def _recording(self, features: dict[str, flow.Tensor]) -> Iterator[None]:
        """Has hooks in place meanwhile. OneFlow gives no handle to take one away by: its key is ours."""
        for name, module in self._layers.items():
            module._forward_hooks[self, name] = _keep(features, name)
        try:
            yield
        finally:
            for name, module in self._layers.items():
                del module._forward_hooks[self, name]


class Teacher(Recorder):
    """A trained network that teaches: in evaluation mode, without gradients, never changed.

    It is asked about each batch, on exactly the student's inputs, and once only, however many terms
    want to know; its logits are looked up instead where they are known for all the training images.
    """

    def __init__(self, network: flow.nn.Module) -> None:
        super().__init__(network.eval(), "teacher")
        self._table: flow.Tensor | None = None
        self._asked: tuple[flow.Tensor, Output] | None = None

    def use_table(self, logits: npt.NDArray[np.float32], device: str) -> None:
        """Looks the logits up from here on: row i of ``logits`` belongs to index i of the batches."""
        self._table = flow.tensor(logits).to(device)

    def logits(self, batch: Batch) -> flow.Tensor:
        """Returns the teacher's logits for a batch of training images, (B, classes)."""
        if self._table is not None:
            return self._table.index_select(0, batch.indices)
        return self._ask(batch).logits

    def features(self, batch: Batch) -> Mapping[str, flow.Tensor]:
        """Returns the outputs of the recorded layers for a batch, by name. That runs the network."""
        return self._ask(batch).features

    def _ask(self, batch: Batch) -> Output:
        if self._asked is None or self._asked[0] is not batch.inputs:
            with _evaluating(self.network):
                self._asked = batch.inputs, self(batch.inputs)
        return self._asked[1]


@contextlib.contextmanager
def _evaluating(network: flow.nn.Module) -> Iterator[None]:
    """Puts the network into evaluation mode, without gradients, and its mode back."""
    was_training = network.training
    network.eval()
    try:
        with flow.no_grad():
            yield
    finally:
        if was_training:
            network.train()


def _keep(features: dict[str, flow.Tensor], name: str) -> Any:
    def hook(module: flow.nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, flow.Tensor):
            features[name] = output

    return hook
