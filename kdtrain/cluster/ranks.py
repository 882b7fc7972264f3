"""Ranks: processes that train one network together, each on its shard of a batch, and their collectives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from kdtrain.errors import KdtrainError
from kdtrain.runtime import flow

Floats = npt.NDArray[np.float32]


class Ranks:
    """A group of processes that train one network; this class is a group of one process.

    Every rank holds the same weights and takes the same steps.

    Attributes:
        rank: this process's number, from 0. Only rank 0 writes files that last.
        size: how many processes there are.
        batch_multiplier: images of a step over all ranks, as a multiple of ``--batch-size``.
    """

    rank = 0
    size = 1
    batch_multiplier = 1

    def shard(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns this rank's shard of ``items``; the lengths of the shards differ by one at most.

        Args:
            items: (N,) int64, equal on all ranks, such as the indices of a batch.
        """
        return np.array_split(items, self.size)[self.rank]

    def all_gather(self, rows: Floats) -> Floats:
        """Returns, on all ranks, the rows of every rank, those of rank 0 first.

        Args:
            rows: (N, ...) float32. N may differ between ranks, the other axes must not.

        Returns:
            (sum of all N, ...) float32.
        """
        return rows

    def any_rank(self, condition: bool) -> bool:
        """Returns, on all ranks, whether ``condition`` holds on any rank."""
        return condition

    def check_same(self, what: str, value: bytes) -> None:
        """Checks that all ranks hold the same value: those on other machines read files of their own.

        Args:
            what: the value's name, in the plural.
            value: its content, or a fingerprint of it.

        Raises:
            KdtrainError: the values differ; raised on all ranks.
        """

    def average_gradients(
        self, optimizer: flow.optim.Optimizer, losses: Mapping[str, flow.Tensor], batch: Sized
    ) -> Mapping[str, flow.Tensor]:
        """Replaces gradients by their means over the images of all ranks.

        Args:
            optimizer: the optimizer whose parameters' gradients, float32 tensors of any shape, are replaced.
            losses: scalar mean losses over this rank's images, by name.
            batch: this rank's images; only their number counts.

        Returns:
            The mean losses over the images of all ranks, scalar float32 tensors; those of several ranks
            are on the CPU.
        """
        return losses

    def average_buffers(self, model: flow.nn.Module) -> None:
        """Replaces float32 buffers, such as running means of batch norm, by their means over all ranks.

        Training updates the buffers on each rank separately. Without this, the ranks would evaluate
        different networks.
        """


class OneFlowRanks(Ranks):
    """Ranks that oneflow connects, in processes started by ``--nproc-per-node`` or oneflow's launcher.

    Sums over ranks are computed once and sent to all, so that the weights stay equal bit by bit.

    Args:
        device: device of the collectives, ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.rank = flow.env.get_rank()
        self.size = self.batch_multiplier = flow.env.get_world_size()
        self.device = device
        self._waiting = ThreadPoolExecutor(1, "oneflow")

    def all_reduce(self, values: Floats) -> Floats:
        """Returns, on all ranks, the element-wise sum over ranks.

        A thread waits for the result: no signal interrupts oneflow's own wait, which never ends if a rank
        has stopped.

        Args:
            values: float32 of any shape, the same shape on every rank.

        Returns:
            The sum, float32 of that shape.
        """
        summed = flow.tensor(values).to(self.device)
        flow.comm.all_reduce(summed)
        result: Floats = self._waiting.submit(lambda: summed.numpy().copy()).result()
        return result

    def all_gather(self, rows: Floats) -> Floats:
        """As in ``Ranks``."""
        counts = np.zeros(self.size, np.float32)
        counts[self.rank] = len(rows)
        start = np.concatenate([[0], np.cumsum(self.all_reduce(counts))]).astype(int)
        everything = np.zeros((start[-1], *rows.shape[1:]), np.float32)
        everything[start[self.rank] : start[self.rank + 1]] = rows
        return self.all_reduce(everything)

    def any_rank(self, condition: bool) -> bool:
        """As in ``Ranks``."""
        return bool(self.all_reduce(np.array([condition], np.float32)).any())

    def check_same(self, what: str, value: bytes) -> None:
        """As in ``Ranks``."""
        digest = np.frombuffer(hashlib.sha256(value).digest(), np.uint8).astype(np.float32)
        digests = self.all_gather(digest[None])
        if (digests != digests[0]).any():
            raise KdtrainError(f"{what} are not the same on all machines: give each of them the same files.")

    def average_gradients(
        self, optimizer: flow.optim.Optimizer, losses: Mapping[str, flow.Tensor], batch: Sized
    ) -> Mapping[str, flow.Tensor]:
        """As in ``Ranks``."""
        parameters = [p for group in optimizer.param_groups for p in group.parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        values = [gradient.numpy().ravel() for gradient in gradients]
        values.append(np.array([*(loss.item() for loss in losses.values()), 1.0], np.float32))
        flat = np.concatenate(values)
        flat *= np.float32(len(batch))
        mean = self.all_reduce(flat)
        mean /= mean[-1]
        for gradient in gradients:
            gradient.copy_(mean[: gradient.numel()].reshape(gradient.shape))
            mean = mean[gradient.numel() :]
        return MappingProxyType(
            {name: flow.tensor(float(value)) for name, value in zip(losses, mean[:-1], strict=True)}
        )

    def average_buffers(self, model: flow.nn.Module) -> None:
        """As in ``Ranks``."""
        buffers = [buffer for buffer in model.buffers() if buffer.dtype == flow.float32]
        if not buffers:
            return
        mean = self.all_reduce(np.concatenate([buffer.numpy().ravel() for buffer in buffers]))
        mean /= self.size
        for buffer in buffers:
            buffer.copy_(mean[: buffer.numel()].reshape(buffer.shape))
            mean = mean[buffer.numel() :]
