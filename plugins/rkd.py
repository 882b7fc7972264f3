"""Relational distillation: a loss on the distances and angles between the images of a batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from kdtrain import FeatureLoss, FeatureMethod, Shape, UsageError, flow

Array = npt.NDArray[np.float64]
_EPSILON = 1e-12  # the least squared distance; a smaller one counts as this, and sends no gradient


class Rkd(FeatureMethod):
    """Adds the differences between the networks in the distances and angles among a batch's images.

    Park et al., "Relational Knowledge Distillation" (2019), sections 3.2.1 and 3.2.2, as in the
    authors' code (lenscloth/RKD): means over all pairs and triples, including those of an image with itself.
    The weights are those for classification in megvii-research/mdistiller. Feature maps are averaged over
    their pixels. The relations are those within a batch; with ``--nproc-per-node``, within a process's own
    batch. The triples make a step of 128 images several times as long as a small student's alone.
    ``--alpha 0`` removes the soft targets.

    Card:
        Copies: the distances between the images of a batch, and the angles of each three.
        Helps: layers of different width: only relations are compared, up to their scale.
        Hurts: large batches: the angles grow with the third power of their size.
        Cost: the cosines of all triples of a batch, six to seven times a small student's step.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.88 points, 6.7 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +1.27 points, 8.2 x the epoch; mnist, student_mlp, 5000
            labels: +1.42 points, 11.2 x the epoch. See docs/methods.md.

    Args:
        student_layer: name of a layer of the student; ``auto`` chooses.
        teacher_layer: name of a layer of the teacher; ``auto`` chooses.
        distance: weight of the distances, 0 or more.
        angle: weight of the angles, 0 or more.
    """

    def __init__(
        self,
        student_layer: str = "auto",
        teacher_layer: str = "auto",
        distance: float = 25.0,
        angle: float = 50.0,
    ) -> None:
        if not (min(distance, angle) >= 0.0 and 0.0 < distance + angle < float("inf")):
            raise UsageError(f"distance={distance}, angle={angle}: neither may be below 0, nor both be 0.")
        super().__init__(student_layer, teacher_layer)
        self.distance = distance
        self.angle = angle

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the weighted sum of both losses; the layers may have any shape."""
        return partial(rkd_loss, distance=self.distance, angle=self.angle)


def rkd_loss(student: flow.Tensor, teacher: flow.Tensor, distance: float, angle: float) -> flow.Tensor:
    """Returns ``distance`` times the loss of the distances plus ``angle`` times the loss of the angles.

    It is computed by NumPy in float64, with the gradient in closed form, because B^3 cosines take ten times
    as long in OneFlow.

    Args:
        student: features, (B, D) or (B, C, H, W) float32; the gradient flows here.
        teacher: features, (B, D') or (B, C', H', W') float32.
        distance: the weight of the distances.
        angle: the weight of the angles.

    Returns:
        A float32 scalar.
    """
    x = _flat(student)
    relations, teacher_relations = _Relations(_points(x)), _Relations(_points(_flat(teacher)))
    value, gradient = 0.0, np.zeros_like(relations.gram)
    for weight, loss_of in ((distance, distances), (angle, angles)):
        if weight > 0:
            loss, slope = loss_of(relations, teacher_relations)
            value, gradient = value + weight * loss, gradient + weight * slope
    slopes = flow.tensor(((gradient + gradient.T) @ relations.points).astype(np.float32)).to(x.device)
    linear = (x * slopes).sum()
    return linear - linear.detach() + value  # equal to value, with the gradient ``slopes``


def _flat(features: flow.Tensor) -> flow.Tensor:
    """Returns one vector per image, (B, D); maps are averaged over their pixels."""
    return features.reshape(*features.shape[:2], -1).mean(dim=2) if features.ndim > 2 else features


def _points(vectors: flow.Tensor) -> Array:
    """Returns a tensor's values as a float64 array, without gradient."""
    points: Array = vectors.detach().numpy().astype(np.float64)
    return points


class _Relations:
    """Points, (B, D), shifted to mean 0; their inner products, distances and 1 / distances, (B, B) each.

    The inverse is 0 between a point and itself, and between two equal points.
    """

    def __init__(self, points: Array) -> None:
        self.points = points - points.mean(axis=0)
        self.gram = self.points @ self.points.T
        squares = self.gram.diagonal()
        between = squares[:, None] + squares - 2 * self.gram
        self.apart = between > _EPSILON
        np.fill_diagonal(self.apart, False)
        self.distance = np.sqrt(np.maximum(between, _EPSILON))
        np.fill_diagonal(self.distance, 0.0)
        self.inverse = np.divide(1.0, self.distance, out=np.zeros_like(between), where=self.apart)

    def slope_of_distances(self, slope: Array) -> Array:
        """Returns a loss's gradient by the inner products, (B, B), from its gradient by the distances."""
        squared = slope * self.inverse / 2
        gradient: Array = -2 * squared
        gradient[np.diag_indices_from(gradient)] += squared.sum(axis=0) + squared.sum(axis=1)
        return gradient


def distances(student: _Relations, teacher: _Relations) -> tuple[float, Array]:
    """Returns the loss of the distances, in units of their mean, and its gradient by ``student.gram``."""
    scaled, mean = _scaled_distances(student)
    difference = scaled - _scaled_distances(teacher)[0]
    slope = np.clip(difference, -1, 1)
    value = _huber(difference, slope) / difference.size
    slope /= difference.size
    spread = (slope * scaled).sum() / max(np.count_nonzero(student.distance), 1)
    return value, student.slope_of_distances((slope - spread) / mean)


def _scaled_distances(relations: _Relations) -> tuple[Array, float]:
    """Returns the distances in units of their mean, (B, B), and the mean over pairs of different points."""
    pairs = max(np.count_nonzero(relations.distance), 1)
    mean = max(relations.distance.sum() / pairs, _EPSILON)
    return relations.distance / mean, mean


def angles(student: _Relations, teacher: _Relations) -> tuple[float, Array]:
    """Returns the loss of the cosines at each image between any two others, and its gradient.

    The cosine at image i between j and k is that between k and j, so only k > j is computed, for all i at
    once, and counts twice. The cosine between j and itself is 1, or 0 where i and j are equal points.
    Arrays have a row for each k, so that parts of them are contiguous, which matters more than their size.
    """
    count = len(student.gram)
    value = np.count_nonzero(student.apart != teacher.apart) / 2
    gradient, by_inverse, by_cosine = (np.zeros_like(student.gram) for _ in range(3))
    corners, memory, ones = (_Corners(student), _Corners(teacher)), np.empty((3, count**2)), np.ones(count)
    for j in range(count - 1):
        later = slice(j + 1, None)
        own, difference, slope = (flat[: count * (count - 1 - j)].reshape(-1, count) for flat in memory)
        corners[0].cosines(j, own)
        corners[1].cosines(j, difference)
        np.subtract(own, difference, out=difference)
        np.minimum(difference, 1, out=slope)
        np.maximum(slope, -1, out=slope)
        value += 2 * _huber(difference, slope)
        own *= slope
        by_inverse[j] += ones[later] @ own
        by_inverse[later] += own
        slope *= student.inverse[j]
        slope *= student.inverse[later]
        by_cosine[j] += ones[later] @ slope
        by_cosine[later] += slope
        gradient[later, j] = 2 * (slope @ ones)
    gradient -= 2 * by_cosine
    gradient[np.diag_indices(count)] += by_cosine.sum(axis=0)
    by_inverse *= -2 * student.inverse
    size = count**3
    return value / size, (gradient + student.slope_of_distances(by_inverse)) / size


class _Corners:
    """The cosines of the angles at each point between two others, which are computed for one of these."""

    def __init__(self, relations: _Relations) -> None:
        self.gram, self.inverse = relations.gram, relations.inverse
        self.fixed = (relations.gram.diagonal() - relations.gram) * relations.inverse

    def cosines(self, j: int, out: Array) -> None:
        """Writes the cosines at i between j and k > j into ``out``, (B - 1 - j, B): a row for each k."""
        np.subtract(self.gram[j + 1 :, j, None], self.gram[j], out=out)
        out *= self.inverse[j + 1 :]
        out += self.fixed[j + 1 :]
        out *= self.inverse[j]


def _huber(difference: Array, clipped: Array) -> float:
    """Returns the sum of Huber losses: d^2 / 2 where |d| <= 1, and |d| - 1/2 elsewhere."""
    return float(np.vdot(clipped, difference) - np.vdot(clipped, clipped) / 2)
