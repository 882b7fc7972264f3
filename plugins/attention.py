"""Attention transfer: a loss between the places where student's and teacher's feature maps are strong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdtrain import FeatureLoss, FeatureMethod, Shape, UsageError, flow

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_SHORTEST = 1e-12  # a map that is shorter counts as zeros


class Attention(FeatureMethod):
    """Adds the distance between attention maps: the mean over channels of the squared features.

    Zagoruyko, Komodakis, "Paying More Attention to Attention" (2017), section 3.1, equation 2. The
    mean over pixels instead of a sum, and the weight, are those of mdistiller's implementation
    (megvii-research/mdistiller, distillers/AT.py). If the maps differ in size, the larger one is averaged
    down. Give the option several times for several pairs of layers. ``--alpha 0`` removes the soft targets.

    Card:
        Copies: where in the image the layers respond, not what to.
        Helps: convolutional networks of one family, whose maps show the same things at the same depth (the
            paper's case).
        Hurts: networks of different kinds, and weights from other data: the maps then hold the student back.
        Cost: sums over the channels of all maps, as large as the layers.
        Measured: not yet.

    Args:
        student_layer: name of a layer with feature maps, in the student; ``auto`` chooses.
        teacher_layer: name of a layer with feature maps, in the teacher; ``auto`` chooses.
        weight: the term's weight, above 0.
    """

    def __init__(
        self, student_layer: str = "auto", teacher_layer: str = "auto", weight: float = 1000.0
    ) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss.

        Raises:
            UsageError: a layer has no feature maps.
        """
        layers = ("student", self.student_layer, student), ("teacher", self.teacher_layer, teacher)
        for role, layer, shape in layers:
            if len(shape) != 3:
                size = " x ".join(map(str, shape)) or "one value"
                raise UsageError(
                    "attention transfer needs feature maps (channels x height x width), but the "
                    f"{role}'s layer {layer!r} puts out {size} per image: choose a convolution in a "
                    "network that has one."
                )
        return attention_loss


def attention_loss(student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
    """Returns the mean squared difference of the attention maps, each of length 1.

    It is computed by NumPy, with the gradient in closed form: OneFlow takes ten times as long for the sums
    over channels. The maps are float64, because squares of small differences lose float32's digits.

    Args:
        student: features, (B, C, H, W) float32; the gradient flows here.
        teacher: features, (B, C', H', W') float32.

    Returns:
        A float32 scalar, the mean over images and pixels.
    """
    sizes = tuple(student.shape[2:]), tuple(teacher.shape[2:])
    height, width = (min(pair) for pair in zip(*sizes, strict=True))
    rows, columns = _averages(student.shape[2], height), _averages(student.shape[3], width)
    features = _resized(student.detach().numpy(), rows, columns)
    other = _averages(teacher.shape[2], height), _averages(teacher.shape[3], width)
    mapped, scale = attention_map(features)
    difference = mapped - attention_map(_resized(teacher.detach().numpy(), *other))[0]
    slope = 2 / difference.size * difference
    slope = (slope - mapped * (slope * mapped).sum(axis=1, keepdims=True)) * scale  # by the strength
    slope = (2 / features.shape[1] * slope).astype(np.float32).reshape(len(features), 1, height, width)
    slopes = _resized(features * slope, *(None if m is None else m.T for m in (rows, columns)))
    linear = (student * flow.from_numpy(slopes).to(student.device)).sum()
    return linear - linear.detach() + float(np.square(difference).mean())  # has the gradient ``slopes``


def attention_map(features: Floats) -> tuple[Array, Array]:
    """Returns the mean over the channels of squared features, each row of length 1.

    Args:
        features: (B, C, H, W) float32.

    Returns:
        The maps, (B, H * W) float64, and what each was multiplied by, (B, 1). A map of zeros stays as it is,
        and the factor 0 keeps its gradient finite.
    """
    flat = features.reshape(*features.shape[:2], -1)
    strength = np.einsum("bcp,bcp->bp", flat, flat).astype(np.float64) / flat.shape[1]
    length = np.sqrt(np.square(strength).sum(axis=1, keepdims=True))
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > _SHORTEST)
    return strength * scale, scale


def _averages(size: int, wanted: int) -> Floats | None:
    """Returns the matrix, (wanted, size), that averages a row of pixels down; None if it is as wanted.

    The pixels that a new one is the mean of are those of adaptive average pooling: from i * size // wanted
    up to (i + 1) * size / wanted, rounded up.
    """
    if size == wanted:
        return None
    first = np.arange(wanted)[:, None] * size // wanted
    end = -(-(np.arange(wanted)[:, None] + 1) * size // wanted)
    inside = (np.arange(size) >= first) & (np.arange(size) < end)
    matrix: Floats = (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _resized(maps: Floats, rows: Floats | None, columns: Floats | None) -> Floats:
    """Returns maps, (B, C, H, W), times ``rows`` from the left and the transposed ``columns``."""
    maps = maps if rows is None else rows @ maps
    return maps if columns is None else maps @ columns.T
