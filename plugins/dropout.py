"""Dropout rates for networks that have dropout layers."""

from __future__ import annotations

from kdtrain import Callback, Dropout, Objective, UsageError


class DropoutRates(Callback):
    """Sets the rates of a network's dropout layers.

    Hinton et al., "Improving neural networks by preventing co-adaptation of feature detectors" (2012),
    section 2, drop half of the hidden units and a fifth of the pixels. Lower rates are better with
    augmented images (``--augment``).

    Args:
        hidden: the fraction of units that a layer drops, at least 0 and below 1.
        inputs: the same for a layer before all weights, which drops pixels.
    """

    def __init__(self, hidden: float = 0.5, inputs: float = 0.2) -> None:
        for name, rate in {"hidden": hidden, "inputs": inputs}.items():
            if not 0.0 <= rate < 1.0:
                raise UsageError(f"{name}={rate}: it must be from 0 to below 1.")
        self.hidden = hidden
        self.inputs = inputs

    def configure(self, objective: Objective) -> Objective:
        """Sets the rates in the student; returns the objective unchanged.

        Raises:
            UsageError: the network has no dropout layer.
        """
        layers = list(objective.student.network.modules())
        weighted = [list(layer.parameters(recurse=False)) != [] for layer in layers]
        first = weighted.index(True) if True in weighted else len(layers)
        # ``build_model`` has replaced every ``nn.Dropout`` by kdtrain's layer.
        positions = [position for position, layer in enumerate(layers) if isinstance(layer, Dropout)]
        if not positions:
            raise UsageError("--plugin dropout: the network has no dropout layer.")
        for position in positions:
            layers[position].p = self.inputs if position < first else self.hidden
        return objective
