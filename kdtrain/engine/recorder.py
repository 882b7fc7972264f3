"""Networks whose inner layers' outputs are recorded beside their logits: the student, and a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.teacher_network import Ensemble, TeacherNetwork, images_for, members_of
from kdtrain.errors import KdtrainError, UsageError, unknown_name_message
from kdtrain.nn.layers import channels_first, fork
from kdtrain.runtime import flow
from kdtrain.runtime.processor import zero_upper_avx
from kdtrain.runtime.user_code import call_network

Shape = tuple[int, ...]
"""The shape of a layer's output for one image, such as (channels, height, width)."""


class Output(NamedTuple):
    """A network's output for a batch.

    Attributes:
        logits: (B, C) float32, unnormalised log-probabilities.
        features: outputs of the recorded layers by name, (B, ...) float32 each.
    """

    logits: flow.Tensor
    features: Mapping[str, flow.Tensor] = MappingProxyType({})


class Recorder:
    """A network whose layers' outputs are recorded beside its logits, by forward hooks.

    The hooks are in place only while the network runs, so that it is not changed.

    A layer's output is what the layer itself returns: an activation that is a function, such as
    ``relu`` in the network's ``forward``, is applied after it. If the network calls a layer several
    times, the last output is recorded.

    Args:
        network: the network.
        role: its name in messages: ``student`` or ``teacher``.
        images: example inputs, (B, C, H, W) float32, from which ``record`` finds the layers' shapes.
    """

    def __init__(self, network: flow.nn.Module, role: str, images: flow.Tensor | None = None) -> None:
        self.network = network
        self.role = role
        self.images = images
        self._layers: dict[str, flow.nn.Module] = {}
        self._shapes: dict[str, Shape] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that are recorded."""
        return tuple(self._layers)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of each recorded layer's output for one image, by name."""
        return MappingProxyType(self._shapes)

    def record(self, layer: str) -> Shape:
        """Records a layer's output from now on.

        Args:
            layer: its name, as in ``network.named_modules()``.

        Returns:
            The shape of the layer's output for one image.

        Raises:
            UsageError: the network has no such layer (the message lists its layers), or does not use it.
            KdtrainError: the recorder has no example images.
        """
        modules = self._modules()
        if layer not in modules:
            where = f"layer of the {self.role} ({type(self._inner).__name__})"
            raise UsageError(unknown_name_message(where, layer, modules))
        output = self._try({layer: modules[layer]}).get(layer)
        if output is None:
            raise UsageError(
                f"the {self.role}'s layer {layer!r} does not put out a tensor when the network runs."
            )
        self._layers[layer], self._shapes[layer] = modules[layer], tuple(output.shape[1:])
        return self._shapes[layer]

    def forget(self, layer: str) -> None:
        """Ends the recording of a layer."""
        del self._layers[layer], self._shapes[layer]

    def hidden_layers(self) -> dict[str, Shape]:
        """Returns the layers that could be recorded and compared: those before the logits that have weights.

        Blocks of such layers are among them. A bias alone, or the scales of a normalisation, do not count.

        Returns:
            The shape of a layer's output for one image, by its name, in execution order.

        Raises:
            UsageError: the network has no layers.
            KdtrainError: the recorder has no example images.
        """
        modules = {
            name: module
            for name, module in self._modules().items()
            if any(parameter.ndim > 1 for parameter in module.parameters())
        }
        outputs = self._try({**modules, "": self._inner})
        logits = outputs.pop("").numpy().copy()
        images = len(logits)
        hidden = {
            name: tuple(output.shape[1:])
            for name, output in outputs.items()
            if output.ndim > 1
            and len(output) == images
            and not (tuple(output.shape) == logits.shape and np.array_equal(output.numpy(), logits))
        }
        if len(hidden) == len(outputs) and hidden:  # a function of the last layer's output is put out
            hidden.popitem()
        return hidden

    @property
    def _inner(self) -> flow.nn.Module:
        """The network that has the layers."""
        return self.network.network if isinstance(self.network, TeacherNetwork) else self.network

    def _modules(self) -> dict[str, flow.nn.Module]:
        modules = {name: module for name, module in self._inner.named_modules() if name}
        if not modules:
            raise UsageError(
                f"the {self.role} ({type(self._inner).__name__}) has no layers that can be compared: choose "
                "a method that compares logits."
            )
        return modules

    def _try(self, layers: Mapping[str, flow.nn.Module]) -> dict[str, flow.Tensor]:
        """Runs the network on the example images; returns the outputs of layers by name."""
        if self.images is None:
            raise KdtrainError(f"the {self.role}'s layers can be recorded in configure, within a fit, only.")
        outputs: dict[str, flow.Tensor] = {}
        with evaluating(self.network), self._recording(layers, outputs):
            call_network(self.network, self.images)
        return outputs

    def __call__(self, inputs: flow.Tensor) -> Output:
        """Runs the network.

        Args:
            inputs: (B, C, H, W) float32.

        Returns:
            The logits, and the recorded layers' outputs by name.
        """
        features: dict[str, flow.Tensor] = {}
        with self._recording(self._layers, features):
            logits = call_network(self.network, inputs)
        zero_upper_avx()
        return Output(logits, features)

    @contextlib.contextmanager
    def _recording(
        self, layers: Mapping[str, flow.nn.Module], features: dict[str, flow.Tensor]
    ) -> Iterator[None]:
        """Installs the hooks for the duration of the block.

        OneFlow returns no handle to remove one by, so it gets a key here.
        """
        for name, module in layers.items():
            module._forward_hooks[self, name] = _keep(features, name)
        try:
            yield
        finally:
            for name, module in layers.items():
                del module._forward_hooks[self, name]


class Teacher(Recorder):
    """A trained network that is used in evaluation mode, without gradients, and never changed.

    It runs on exactly the student's inputs, once a batch for all terms. Where tables hold the outputs for
    all training images, they are looked up instead.

    Args:
        network: the network, or an ``Ensemble``; it is put into evaluation mode.
        images: example inputs, (B, C, H, W) float32, from which ``record`` finds the layers' shapes: those
            of the student (``objective.student.images``).
    """

    def __init__(self, network: flow.nn.Module, images: flow.Tensor | None = None) -> None:
        super().__init__(network.eval(), "teacher", images)
        self._tables: tuple[Callable[[Batch], flow.Tensor], ...] = ()
        self._feature_tables: Mapping[str, Callable[[Batch], flow.Tensor]] = {}
        self._images: list[Loader | None] = [None] * len(members_of(network))
        self._latest: tuple[flow.Tensor, Output] | None = None
        self._latest_features: tuple[flow.Tensor, Mapping[str, flow.Tensor]] | None = None
        self._latest_members: tuple[flow.Tensor, list[flow.Tensor]] | None = None

    def use_table(self, *tables: Callable[[Batch], flow.Tensor]) -> None:
        """Makes ``logits`` look the logits up from now on, instead of running the network.

        Args:
            tables: returns the logits for a batch of training images, (B, C) float32; one table for each
                member of an ensemble.
        """
        self._tables = tables

    def use_images(self, train: Loader) -> None:
        """Makes networks of another input size get the images of batches at their own size from now on.

        Args:
            train: the images that the student is trained on.
        """
        own = [images_for(member, train) for member in members_of(self.network)]
        self._images = [None if images is train else images for images in own]

    def use_feature_tables(self, tables: Mapping[str, Callable[[Batch], flow.Tensor]]) -> None:
        """Makes ``features`` look the layers' outputs up from now on, instead of running the network.

        Args:
            tables: for each recorded layer, returns its outputs for a batch of training images, (B, ...)
                float32.
        """
        self._feature_tables = tables

    def logits(self, batch: Batch, temperature: float = 1.0) -> flow.Tensor:
        """Returns the logits for a batch of training images, (B, C) float32.

        Args:
            batch: images of the loader that the student is trained on.
            temperature: T, by which the caller divides the logits. It matters for several teachers only: the
                softmax of their logits divided by T is the mean of their softened probabilities.
        """
        if isinstance(self.network, Ensemble):
            return self.network.combine(self._members(batch), temperature)
        if self._tables:
            return self._tables[0](batch)
        return self._output(batch).logits

    def features(self, batch: Batch) -> Mapping[str, flow.Tensor]:
        """Returns the recorded layers' outputs by name, (B, ...) float32 each.

        Args:
            batch: images of the loader that the student is trained on.
        """
        if not self._feature_tables:
            return self._output(batch).features
        if self._latest_features is None or self._latest_features[0] is not batch.inputs:
            features = {layer: table(batch) for layer, table in self._feature_tables.items()}
            self._latest_features = batch.inputs, features
        return self._latest_features[1]

    def _members(self, batch: Batch) -> list[flow.Tensor]:
        """Returns the logits of each member of an ensemble, (B, C) float32 each."""
        if self._tables:
            return [table(batch) for table in self._tables]
        if self._latest_members is None or self._latest_members[0] is not batch.inputs:
            with evaluating(self.network):
                outputs = [
                    call_network(member, _inputs(batch, images))
                    for member, images in zip(members_of(self.network), self._images, strict=True)
                ]
            self._latest_members = batch.inputs, outputs
        return self._latest_members[1]

    def _output(self, batch: Batch) -> Output:
        """Returns the network's output for a batch; the latest one is kept for the batch's other terms."""
        if self._latest is None or self._latest[0] is not batch.inputs:
            with evaluating(self.network):
                self._latest = batch.inputs, self(_inputs(batch, self._images[0]))
        return self._latest[1]


def _inputs(batch: Batch, images: Loader | None) -> flow.Tensor:
    """Returns the images of a batch, or the same ones of another loader in the same variants."""
    if images is None:
        return batch.inputs
    variants = None if batch.variants is None else batch.variants.numpy().copy()
    return images.batch(batch.indices.numpy().copy(), variants).inputs


@contextlib.contextmanager
def evaluating(network: flow.nn.Module) -> Iterator[None]:
    """Puts the network into evaluation mode, without gradients, and restores its mode."""
    was_training = network.training
    network.eval()
    try:
        with flow.no_grad():
            yield
    finally:
        if was_training:
            network.train()


def _keep(features: dict[str, flow.Tensor], name: str) -> Any:
    """Returns a forward hook that puts the layer's output into ``features``.

    Images are recorded in the layout that OneFlow's operations are fast in, whatever the network uses.
    """

    def hook(module: flow.nn.Module, inputs: object, output: object) -> flow.Tensor | None:
        if not isinstance(output, flow.Tensor):
            return None
        recorded, output = fork(output)
        features.pop(name, None)  # the order is that of the last calls
        features[name] = channels_first(recorded)
        return output

    return hook
