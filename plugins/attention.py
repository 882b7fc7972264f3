"""Attention transfer: a loss between the places where student's and teacher's feature maps are strong."""

from __future__ import annotations

from kdtrain import FeatureLoss, FeatureMethod, Shape, UsageError, flow

F = flow.nn.functional


class Attention(FeatureMethod):
    """Adds the distance between attention maps: the mean over channels of the squared features.

    Zagoruyko, Komodakis, "Paying More Attention to Attention" (2017), section 3.1, equation 2. The
    mean over pixels instead of a sum, and the weight, are those of mdistiller's implementation
    (megvii-research/mdistiller, distillers/AT.py). If the maps differ in size, the larger one is averaged
    down. Give the option several times for several pairs of layers. ``--alpha 0`` removes the soft targets.

    Args:
        student_layer: name of a layer with feature maps, in the student.
        teacher_layer: name of a layer with feature maps, in the teacher.
        weight: the term's weight, above 0.
    """

    def __init__(self, student_layer: str, teacher_layer: str, weight: float = 1000.0) -> None:
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

    The maps are computed in float64, because squares of small differences lose float32's digits.

    Args:
        student: features, (B, C, H, W) float32; the gradient flows here.
        teacher: features, (B, C', H', W') float32.

    Returns:
        A float32 scalar, the mean over images and pixels.
    """
    size = tuple(min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
    with flow.no_grad():
        teacher_map = attention_map(teacher, size)
    difference = attention_map(student, size) - teacher_map
    return (difference * difference).mean().float()


def attention_map(features: flow.Tensor, size: Shape) -> flow.Tensor:
    """Returns the mean over the channels of squared features, each row of length 1.

    Args:
        features: (B, C, H', W') float32.
        size: (H, W), to which the features are averaged down.

    Returns:
        (B, H * W) float64.
    """
    if tuple(features.shape[2:]) != size:
        features = F.adaptive_avg_pool2d(features, size)
    strength = (features * features).mean(dim=1).double().reshape(len(features), -1)
    # Clamped, so that the root has a finite slope at a map of zeros.
    length = (strength * strength).sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
    return strength / length
