"""Normalised distillation: the label's probability, and the other classes' among themselves."""

from __future__ import annotations

from kdtrain import Batch, LogitMethod, Output, flow, positive

F = flow.nn.functional


class Nkd(LogitMethod):
    """Weighs the label's loss by the teacher's probability of it, and compares the other classes' shares.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels" (ICCV 2023), section 3, the NKD loss. The defaults are the
    authors' for ImageNet (yzd-v/cls_KD, mmcls/models/dis_losses/nkd.py); for CIFAR-100 they have gamma=3.5,
    temperature=3. The first part has no temperature. The loss is computed in float64. A mixed image has it
    for either label, where the authors' code takes the larger share's. It replaces the soft targets, under
    their weight; ``--alpha 0.5`` gives the paper's sum with the labels' loss.

    Card:
        Copies: the teacher's probability of the label, and the shares of the other classes among themselves.
        Helps: where soft targets help little because the label has nearly all the probability.
        Hurts: where labels are few: images without a label teach nothing.
        Cost: two softmaxes for one.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.47 points, 1.4 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +0.52 points, 1.5 x the epoch; mnist, student_mlp, 5000
            labels: +0.02 points, 2.1 x the epoch. See docs/methods.md.

    Args:
        gamma: weight of the other classes, above 0.
        temperature: T of the other classes, above 0.
    """

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        self.gamma = positive("gamma", gamma)
        self.temperature = positive("temperature", temperature)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the mean of ``nkd_losses`` over the images: a float32 scalar, in nats."""
        teacher = self.teacher.logits(batch)

        def losses(labels: flow.Tensor) -> flow.Tensor:
            return nkd_losses(output.logits, teacher, labels, self.gamma, self.temperature)

        return batch.label_loss(losses).float()


def nkd_losses(
    student: flow.Tensor, teacher: flow.Tensor, labels: flow.Tensor, gamma: float, temperature: float
) -> flow.Tensor:
    """Returns -p(y) log s(y) - gamma T^2 sum q log r, for each image.

    p and s are the teacher's and the student's probabilities at T = 1, and y is the label. q and r are their
    probabilities among the other classes, at T. Both parts are cross-entropies, so a student that is like its
    teacher has the teacher's entropy left, not 0.

    Args:
        student: logits, (B, C) float32; the gradient flows here.
        teacher: logits, (B, C) float32; no gradient flows here.
        labels: (B,) int64.
        gamma: weight of the second part.
        temperature: T.

    Returns:
        (B,) float64, in nats.
    """
    student, teacher = student.double(), teacher.detach().double()
    column = labels.unsqueeze(1)
    p = flow.softmax(teacher, dim=1).gather(1, column).squeeze(1)
    of_label = p * F.log_softmax(student, dim=1).gather(1, column).squeeze(1)
    # About -1e9 makes the label's probability among the other classes exactly 0.
    without_label = F.one_hot(labels, student.shape[1]).double() * 1e9
    q = flow.softmax(teacher / temperature - without_label, dim=1)
    log_r = F.log_softmax(student / temperature - without_label, dim=1)
    return -of_label - (q * log_r).sum(dim=1) * (gamma * temperature**2)
