"""Dropout at other rates than those that a network was written with."""

from __future__ import annotations

from kdtrain import Callback, Dropout, Objective, UsageError


class DropoutRates(Callback):
    """Sets how much a network's dropout layers drop in training.

    Hinton et al., "Improving neural networks by preventing co-adaptation of feature detectors" (2012),
    section 2, drop half of the hidden units and a fifth of the pixels. Where every image is changed
    each time that it is seen (``--augment``), less is better.

    Args:
        hidden: the fraction that a layer drops, from 0 up to, not including, 1.
        inputs: the same for one that stands before all weights, and so drops pixels.
    """

    def __init__(self, hidden: float = 0.5, inputs: float = 0.2) -> None:
        for name, rate in {"hidden": hidden, "inputs": inputs}.items():
            if not 0.0 <= rate < 1.0:
                raise UsageError(f"{name}={rate}: it must be from 0 to below 1.")
        self.hidden = hidden
        self.inputs = inputs

    def configure(self, objective: Objective) -> Objective:
        """Changes the layers of the network that is trained; returns the objective as it is.

        Raises:
            UsageError: the network has no dropout.
        """
        layers = list(objective.student.network.modules())
        weighted = [list(layer.parameters(recurse=False)) != [] for layer in layers]
        first = weighted.index(True) if True in weighted else len(layers)
        # Whoever wrote the network, its dropout is kdtrain's by now, which follows the seed.
        dropping = [place for place, layer in enumerate(layers) if isinstance(layer, Dropout)]
        if not dropping:
            raise UsageError("--plugin dropout: the network has no dropout layer.")
        for place in dropping:
            layers[place].p = self.inputs if place < first else self.hidden
        return objective
