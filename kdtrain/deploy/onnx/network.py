"""A classifier in an ONNX file of any program, as a network that can teach."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import LazyImages
from kdtrain.deploy.onnx.process import OnnxProcess
from kdtrain.deploy.onnx.reader import Assumed, OnnxForm
from kdtrain.errors import CheckpointError
from kdtrain.metrics.probabilities import to_logits
from kdtrain.runtime import flow
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.processes import available_cores


class OnnxClassifier:
    """A classifier in an ONNX file; a process of its own computes it, within limits of memory and time.

    Args:
        path: the file.
        assumed: decides what the file leaves open.

    Attributes:
        path: the file.
        form: the form of its images.
        classes: the number of its classes.

    Raises:
        CheckpointError: the file cannot be used; the text names the reason.
        KdtrainError: onnx is not installed.
    """

    def __init__(self, path: Path, assumed: Assumed) -> None:
        self.path = path
        self._process = OnnxProcess(path, len(available_cores()), assumed)
        self.form, self.classes = self._process.form, self._process.classes

    def outputs(self, images: npt.NDArray[np.float32] | LazyImages) -> npt.NDArray[np.float32]:
        """Returns the network's own output, (N, classes) float32.

        Args:
            images: (N, C, H, W) float32, scaled as the network takes them.

        Raises:
            CheckpointError: onnxruntime cannot compute it.
        """
        starts = range(0, len(images), IMAGES_AT_ONCE)
        parts = (images[start : start + IMAGES_AT_ONCE] for start in starts)
        return np.concatenate([self._process.compute(part, len(part))[0] for part in parts])


class OnnxNetwork(flow.nn.Module):
    """A classifier as a network of the teacher, without layers and without gradients.

    Its process starts when it is first used, in each process of kdtrain anew.

    Args:
        path: the file.
        assumed: decides what the file leaves open.
        form: the form that its graph had when the command began.
        gives_probabilities: whether its output is probabilities, of which logarithms are taken.
    """

    def __init__(self, path: Path, assumed: Assumed, form: OnnxForm, gives_probabilities: bool) -> None:
        super().__init__()
        self.path, self.assumed, self.form = path, assumed, form
        self.gives_probabilities = gives_probabilities
        self._started: tuple[int, OnnxClassifier] | None = None

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """Returns logits, (B, classes) float32.

        Args:
            images: (B, C, H, W) float32, scaled as the network takes them.

        Raises:
            CheckpointError: onnxruntime cannot compute them, or the file has been replaced.
        """
        if self._started is None or self._started[0] != os.getpid():
            classifier = OnnxClassifier(self.path, self.assumed)
            if classifier.form != self.form:
                raise CheckpointError(f"{self.path} has been replaced: start the command again.")
            self._started = os.getpid(), classifier
        outputs = self._started[1].outputs(images.numpy())
        return flow.from_numpy(to_logits(outputs) if self.gives_probabilities else outputs).to(images.device)

    def extra_repr(self) -> str:
        """Returns the file's digest and what else decides the logits."""
        return f"{self.form.digest}, {self.assumed}, gives_probabilities={self.gives_probabilities}"
