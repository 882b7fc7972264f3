"""A convolution by its definition, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def convolve(x: Array, weight: Array) -> Array:
    """Returns the convolution of images (N, C, H, W) with a weight (O, C, I, J), without padding."""
    height, width = x.shape[2] - weight.shape[2] + 1, x.shape[3] - weight.shape[3] + 1
    y = np.zeros((len(x), len(weight), height, width))
    for i, j in np.ndindex(weight.shape[2:]):
        y += np.einsum("nchw,oc->nohw", x[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    return y
