"""Trained networks as teachers: each converts images to its own input and maps its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from kdtrain.data.images.resize import InputConversion, InputForm
from kdtrain.data.loader import Loader
from kdtrain.errors import UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.user_code import call_network

Logits = npt.NDArray[np.float32]


class TeacherNetwork(flow.nn.Module):
    """A trained network that takes the student's images and knows the student's classes.

    It is for use without gradients.

    Args:
        network: the network.
        conversion: brings the student's images to the network's form; None if they have it.
        classes: the network's class for each class of the student; None if they are the same.

    Attributes:
        own_form: the form of the network's images, if they have another size than the student's: it gets
            those that ``images_for`` reads, and no conversion, where images are files.
    """

    def __init__(
        self,
        network: flow.nn.Module,
        conversion: InputConversion | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.conversion = conversion
        self.classes = None if classes is None else tuple(classes)
        self.own_form: InputForm | None = None
        if conversion is not None and conversion.source.shape[1:] != conversion.target.shape[1:]:
            self.own_form = conversion.target

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """Returns the logits of the student's classes, (B, classes) float32.

        The softmax of a part of the logits renormalises the probabilities of these classes.

        Args:
            images: (B, C, H, W) float32, in the student's form, or in the network's own if the sizes differ.
        """
        is_own = self.own_form is not None and tuple(images.shape[1:]) == self.own_form.shape
        if self.conversion is not None and not is_own:
            # OneFlow reuses the memory behind .numpy(); the conversion makes a new array.
            images = flow.from_numpy(self.conversion(images.numpy())).to(images.device)
        logits = call_network(self.network, images)
        if self.classes is None:
            return logits
        return logits.index_select(1, flow.tensor(self.classes, dtype=flow.int64).to(logits.device))

    def extra_repr(self) -> str:
        """Returns the conversion and the classes. The fingerprint includes ``repr(network)``."""
        return f"{self.conversion}, classes={self.classes}"


def images_for(network: flow.nn.Module, images: Loader) -> Loader:
    """Returns images as a teacher takes them: read again at its own size, if that is not the students'.

    Args:
        network: a member of a teacher, or any other network, which gets the images as they are.
        images: the students' images.
    """
    form = network.own_form if isinstance(network, TeacherNetwork) else None
    return images if form is None else images.in_form(form)


class Ensemble(flow.nn.Module):
    """Several trained networks, whose probabilities are averaged.

    Args:
        members: the networks; each takes the student's images and returns logits of the student's classes.
        weights: the weight of each, above 0.
    """

    def __init__(self, members: Sequence[flow.nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.members = flow.nn.ModuleList(members)
        shares = np.array(weights, np.float64)
        self.shares: tuple[float, ...] = tuple(shares / shares.sum())

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """Returns the logarithm of the mean probabilities, (B, classes) float32, of (B, C, H, W) images."""
        return self.combine([call_network(member, images) for member in self.members])

    def combine(self, logits: Sequence[flow.Tensor], temperature: float = 1.0) -> flow.Tensor:
        """Returns logits whose softened probabilities are the mean of the members' softened probabilities.

        With p_k the softmax of the member's logits divided by T and w_k its share, they are
        T log sum_k w_k p_k, computed in float64 from logarithms: the arithmetic mean of the predictive
        distributions (Hinton, Vinyals, Dean 2015, section 1, name it and the geometric one).

        Args:
            logits: (B, classes) float32 of each member.
            temperature: T, above 0.

        Returns:
            (B, classes) float32.
        """
        return flow.from_numpy(
            mean_logits([member.numpy() for member in logits], self.shares, temperature)
        ).to(logits[0].device)

    def extra_repr(self) -> str:
        """Returns the members' shares."""
        return f"shares={self.shares}"


class GivenLogits(flow.nn.Module):
    """A teacher without a network: logits of all training images, which were computed elsewhere.

    Args:
        path: the file that holds them, for messages.
        variants: the logits of each variant of the images, (N, classes) float32, in the data set's order.
        digest: SHA-256 (hex) of all logits.
        validation: the logits of the data set's own validation images, if it has any and the file too.
        test: the logits of the test images, if the file has them.
    """

    def __init__(
        self,
        path: Path,
        variants: Sequence[Logits],
        digest: str,
        validation: Logits | None = None,
        test: Logits | None = None,
    ) -> None:
        super().__init__()
        self.path, self.digest = path, digest
        self.variants, self.validation, self.test = tuple(variants), validation, test

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """Raises UsageError: a table has logits of its own images only."""
        raise UsageError(
            f"--teacher-logits {self.path} has logits of the training images only: it has no layers, "
            "and with --views 0 each epoch has new images."
        )

    def of_split(self, name: str) -> Logits:
        """Returns the logits of the images of a split as they are, (N, classes) float32.

        Args:
            name: ``train``, ``validation`` or ``test``.

        Raises:
            UsageError: the file does not hold them.
        """
        logits = {"train": self.variants[0], "validation": self.validation, "test": self.test}[name]
        if logits is None:
            raise UsageError(
                f"--teacher-logits {self.path} has no array {name!r}: give the teacher's logits of the "
                f"{name} images too."
            )
        return logits

    def extra_repr(self) -> str:
        """Returns the digest of the logits."""
        return self.digest


def check_views(path: Path, given: int, count: int) -> None:
    """Raises UsageError if a table of logits has not as many variants of the images as the students have.

    Args:
        path: the file of the table.
        given: the number of its variants.
        count: the number of the students' variants; 0 for new ones in each epoch.
    """
    if given == count:
        return
    remedy = "--augment none" if given == 1 else f"--augment with --views {given}"
    own, other = (f"have {count}", f", or logits of {count}") if count else ("are new in each epoch", "")
    raise UsageError(
        f"--teacher-logits {path} has logits of {given} variant{'s' * (given != 1)} of each image, and the "
        f"students' images {own} (--augment and --views): give {remedy}{other}."
    )


def members_of(network: flow.nn.Module) -> tuple[flow.nn.Module, ...]:
    """Returns the networks that an ensemble averages, or the network itself."""
    return tuple(network.members) if isinstance(network, Ensemble) else (network,)


def mean_logits(
    logits: Sequence[npt.NDArray[np.float32]], shares: Sequence[float], temperature: float = 1.0
) -> npt.NDArray[np.float32]:
    """Returns T log sum_k w_k softmax(z_k / T): the arrays' form of ``Ensemble.combine``.

    Args:
        logits: z, (N, classes) float32 of each member.
        shares: w, of the sum 1.
        temperature: T, above 0.

    Returns:
        (N, classes) float32, a new array.
    """
    log_p = np.stack([member.astype(np.float64) for member in logits]) / temperature
    log_p -= logsumexp(log_p, axis=2, keepdims=True)
    log_p += np.log(shares)[:, None, None]
    mean: npt.NDArray[np.float32] = (temperature * logsumexp(log_p, axis=0)).astype(np.float32)
    return mean
