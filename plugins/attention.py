"""Attention transfer: the student's maps are to be strong where the teacher's are."""

from __future__ import annotations

from kdtrain import FeatureLoss, FeatureMethod, Shape, UsageError, flow

F = flow.nn.functional


class Attention(FeatureMethod):
    """Adds the distance between attention maps: the mean over channels of the squared features.

    Zagoruyko, Komodakis, "Paying More Attention to Attention" (2017), section 3.1, equation 2; the
    mean over pixels instead of a sum, and the weight, are those of mdistiller's implementation
    (megvii-research/mdistiller, distillers/AT.py). Of maps of different size the larger is averaged
    down. Several
    pairs of layers: the option several times. Without soft targets: ``--alpha 0``.

    Args:
        student_layer: name of a layer with feature maps, in the student.
        teacher_layer: name of one in the teacher.
        weight: above 0.
    """

    def __init__(self, student_layer: str, teacher_layer: str, weight: float = 1000.0) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss, if both layers have maps."""
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

    From the maps on in float64: the squares of small differences would lose what float32 has.

    Args:
        student: (B, C, H, W); the gradient flows here.
        teacher: (B, C', H', W').
    """
    sizes = tuple(min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
    with flow.no_grad():
        theirs = attention_map(teacher, sizes)
    difference = attention_map(student, sizes) - theirs
    return (difference * difference).mean().float()


def attention_map(features: flow.Tensor, size: Shape) -> flow.Tensor:
    """Returns the mean over the channels of squared features, (B, H * W), each row of length 1."""
    if tuple(features.shape[2:]) != size:
        features = F.adaptive_avg_pool2d(features, size)
    strength = (features * features).mean(dim=1).double().reshape(len(features), -1)
    # Of a map of zeros it is not 0, so that the root has a slope.
    length = (strength * strength).sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
    return strength / length
