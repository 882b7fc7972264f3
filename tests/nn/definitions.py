"""Operations on images and their gradients by their definitions, in float64; images are (N, H, W, C)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating[Any]]
Pair = tuple[int, int]


class Windows:
    """The pixels under a window that moves over padded images.

    Args:
        images: N, H, W, C.
        window, stride, padding, dilation: for rows and columns.

    Attributes:
        inside: (H', W', kh, kw, 1) bool, false where a place is in the padding.
    """

    def __init__(
        self, images: tuple[int, ...], window: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
    ) -> None:
        (_, *size, _), places = images, []
        for length, width, step, pad, gap in zip(size, window, stride, padding, dilation, strict=True):
            starts = np.arange(-pad, length + pad - gap * (width - 1), step)
            places.append(starts[:, None] + gap * np.arange(width))
        self._images = images
        self._rows, self._columns = np.broadcast_arrays(
            places[0][:, None, :, None], places[1][None, :, None, :]
        )
        self._pad = max(padding)
        inside = [
            (place >= 0) & (place < n) for place, n in zip((self._rows, self._columns), size, strict=True)
        ]
        self.inside = (inside[0] & inside[1])[..., None]

    def read(self, x: Numbers, outside: float = 0.0) -> Array:
        """Returns the pixels under each place of the window, (N, H', W', kh, kw, C)."""
        margin = (self._pad, self._pad)
        padded = np.pad(x, ((0, 0), margin, margin, (0, 0)), constant_values=outside)
        return np.asarray(padded[:, self._rows + self._pad, self._columns + self._pad], np.float64)

    def add_up(self, pixels: Numbers) -> Array:
        """Returns images (N, H, W, C), each pixel the sum of what is given for it under all places."""
        count, height, width, channels = self._images
        margin = 2 * self._pad
        padded = np.zeros((count, height + margin, width + margin, channels))
        for place in np.ndindex(self._rows.shape[2:]):
            rows, columns = (index[:, :, place[0], place[1]] for index in (self._rows, self._columns))
            padded[:, rows + self._pad, columns + self._pad] += pixels[:, :, :, place[0], place[1]]
        return padded[:, self._pad : self._pad + height, self._pad : self._pad + width]


def convolve(x: Array, weight: Array) -> Array:
    """Returns the convolution of images (N, C, H, W) with a weight (O, C, I, J), without padding."""
    height, width = x.shape[2] - weight.shape[2] + 1, x.shape[3] - weight.shape[3] + 1
    y = np.zeros((len(x), len(weight), height, width))
    for i, j in np.ndindex(weight.shape[2:]):
        y += np.einsum("nchw,oc->nohw", x[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    return y


def convolution(
    x: Numbers, weight: Numbers, dy: Numbers, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Array, Array, Array]:
    """Returns the convolution without a bias, and the gradients of images and weights."""
    windows = Windows(x.shape, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    y, dpixels, dweight = [], [], []
    given = (windows.read(x), -1), (weight.astype(np.float64), 0), (dy.astype(np.float64), -1)
    parts = (np.split(array, groups, axis) for array, axis in given)
    for pixels, part, gradient in zip(*parts, strict=True):
        y.append(np.einsum("nhwijc,ocij->nhwo", pixels, part, optimize=True))
        dpixels.append(np.einsum("nhwo,ocij->nhwijc", gradient, part, optimize=True))
        dweight.append(np.einsum("nhwo,nhwijc->ocij", gradient, pixels, optimize=True))
    return np.concatenate(y, -1), windows.add_up(np.concatenate(dpixels, -1)), np.concatenate(dweight)


def max_pooling(windows: Windows, x: Numbers, dy: Numbers) -> tuple[Array, Array]:
    """Returns the largest pixels, and the gradient: it goes to the first of equal pixels."""
    pixels = windows.read(x, -np.inf)
    flat = pixels.reshape(*pixels.shape[:3], -1, pixels.shape[-1])
    chosen = np.arange(flat.shape[3])[:, None] == flat.argmax(3)[:, :, :, None]
    gradient = (chosen * dy[:, :, :, None]).reshape(pixels.shape)
    return flat.max(3), windows.add_up(gradient)


def mean_pooling(windows: Windows, x: Numbers, dy: Numbers, *, with_padding: bool) -> tuple[Array, Array]:
    """Returns the means, in which padding counts as 0 or not at all, and the gradient."""
    count = np.ones(windows.inside.shape) if with_padding else windows.inside
    count = count.sum((2, 3), keepdims=True, dtype=float)
    y = (windows.read(x) / count).sum((3, 4))
    return y, windows.add_up(dy[:, :, :, None, None] / count * np.ones(windows.inside.shape))


def normalization(
    x: Numbers, scale: Numbers, shift: Numbers, mean: Numbers, variance: Numbers, epsilon: float
) -> Array:
    """Returns the normalised images."""
    y: Array = (x - mean) / np.sqrt(variance + epsilon) * scale + shift
    return y


def gradients_of_normalization(
    dy: Numbers,
    x: Numbers,
    scale: Numbers,
    mean: Numbers,
    variance: Numbers,
    epsilon: float,
    *,
    of_images: bool,
) -> tuple[Array, Array, Array]:
    """Returns the gradients of images, scale and shift; the moments are those of the images, or given."""
    deviation = np.sqrt(variance + epsilon)
    normal = (x - mean) / deviation
    dscale, dshift = (dy * normal).sum((0, 1, 2)), dy.sum((0, 1, 2))
    count = x.size / x.shape[-1]
    centred = dy - (dshift + normal * dscale) / count if of_images else dy
    return centred * scale / deviation, dscale, dshift
