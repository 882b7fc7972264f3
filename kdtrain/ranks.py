"""Processes that train one network together, each on its share of every batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.errors import KdtrainError
from kdtrain.runtime import flow

Floats = npt.NDArray[np.float32]


class RankLostError(KdtrainError):
    """Another process of the group has ended; its own error is the one to report."""


class Ranks:
    """A group of processes that train one network, as one of them sees it; here, a group of one.

    Every rank holds the same weights and makes the same steps. What the ranks compute from their
    own images is added up in one place, so that all of them go on with the same bits.

    Attributes:
        rank: this process's number, from 0. Only rank 0 writes files that last.
        size: how many processes there are.
    """

    rank = 0
    size = 1

    def total(self, values: Floats) -> Floats:
        """Returns the sum of every rank's ``values``, to all of them."""
        return values

    def gather(self, rows: Floats) -> Floats:
        """Returns every rank's rows, those of rank 0 first, to all of them."""
        return rows

    def any(self, condition: bool) -> bool:
        """Returns whether ``condition`` holds on any rank."""
        return condition if self.size == 1 else bool(self.total(np.array([condition], np.float32)).any())

    def share(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns this rank's part of ``items``; the parts' lengths differ by one at most."""
        return np.array_split(items, self.size)[self.rank]

    def average(
        self, parameters: Sequence[flow.Tensor], losses: Mapping[str, flow.Tensor], images: int
    ) -> tuple[Mapping[str, flow.Tensor], int]:
        """Makes gradients and losses those of the whole batch: means over all ranks' images.

        Args:
            parameters: their gradients are replaced.
            losses: mean losses over this rank's images.
            images: how many those are.

        Returns:
            The mean losses over the whole batch, and how many images that has.
        """
        if self.size == 1:
            return losses, images
        gradients = [p.grad for p in parameters if p.grad is not None]
        values = [gradient.numpy().ravel() for gradient in gradients]
        values.append(np.array([*(loss.item() for loss in losses.values()), 1.0], np.float32))
        summed = self.total(np.concatenate(values) * np.float32(images))
        mean = summed / summed[-1]
        for gradient in gradients:
            gradient.copy_(mean[: gradient.numel()].reshape(gradient.shape))
            mean = mean[gradient.numel() :]
        of_batch = {name: flow.tensor(float(value)) for name, value in zip(losses, mean[:-1], strict=True)}
        return MappingProxyType(of_batch), round(float(summed[-1]))


class ForkedRanks(Ranks):
    """Ranks that one process has forked, with a pipe between rank 0 and each of the others.

    Args:
        rank: this process's number.
        size: how many there are.
        pipes: to ranks 1, 2, ... on rank 0; to rank 0 on the others.
    """

    def __init__(self, rank: int, size: int, pipes: Sequence[Connection]) -> None:
        self.rank = rank
        self.size = size
        self.pipes = pipes

    def total(self, values: Floats) -> Floats:
        """Returns the sum of every rank's ``values``, to all of them."""
        return self._combine(values, functools.partial(functools.reduce, np.add))

    def gather(self, rows: Floats) -> Floats:
        """Returns every rank's rows, those of rank 0 first, to all of them."""
        return self._combine(rows, np.concatenate)

    def _combine(self, values: Floats, combine: Callable[[list[Floats]], Any]) -> Floats:
        """Returns what rank 0 makes of every rank's values."""
        try:
            if self.rank == 0:
                result: Floats = combine([values, *(pipe.recv() for pipe in self.pipes)])
                for pipe in self.pipes:
                    pipe.send(result)
                return result
            self.pipes[0].send(values)
            return self.pipes[0].recv()  # type: ignore[no-any-return]
        except (EOFError, OSError) as error:
            raise RankLostError("a process that trains a share of each batch has ended.") from error
