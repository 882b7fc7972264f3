"""Ranks: processes that train one network together, each on its shard of a batch, and their collectives."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from kdtrain.errors import KdtrainError
from kdtrain.runtime import flow
from kdtrain.runtime.root_cause import RankLostError

Floats = npt.NDArray[np.float32]

_CHUNK = 1 << 20  # numbers that are summed at once: 4 MB per rank


class Ranks:
    """A group of processes that train one network; this class is a group of one process.

    Every rank holds the same weights and takes the same steps. Sums over ranks are computed once and
    sent to all, so that the weights stay equal bit by bit.

    Attributes:
        rank: this process's number, from 0. Only rank 0 writes files that last.
        size: how many processes there are.
        batch_multiplier: images of a step over all ranks, as a multiple of ``--batch-size``.
    """

    rank = 0
    size = 1
    batch_multiplier = 1

    def all_reduce(self, values: Floats) -> Floats:
        """Returns, on all ranks, the element-wise sum over ranks.

        Args:
            values: float32 of any shape, the same shape on every rank.

        Returns:
            The sum, float32 of that shape.
        """
        return values

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
        return condition if self.size == 1 else bool(self.all_reduce(np.array([condition], np.float32)).any())

    def check_same(self, what: str, value: bytes) -> None:
        """Checks that all ranks hold the same value: those on other machines read files of their own.

        Args:
            what: the value's name, in the plural.
            value: its content, or a fingerprint of it.

        Raises:
            KdtrainError: the values differ; raised on all ranks.
        """
        if self.size == 1:
            return
        digest = np.frombuffer(hashlib.sha256(value).digest(), np.uint8).astype(np.float32)
        digests = self.all_gather(digest[None])
        if (digests != digests[0]).any():
            raise KdtrainError(f"{what} are not the same on all machines: give each of them the same files.")

    def shard(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns this rank's shard of ``items``; the lengths of the shards differ by one at most.

        Args:
            items: (N,) int64, equal on all ranks, such as the indices of a batch.
        """
        return items if self.size == 1 else np.array_split(items, self.size)[self.rank]

    def average_gradients(
        self, optimizer: flow.optim.Optimizer, losses: Mapping[str, flow.Tensor], batch: Sized
    ) -> Mapping[str, flow.Tensor]:
        """Replaces gradients and losses by their means over the images of all ranks.

        Args:
            optimizer: the optimizer whose parameters' gradients, float32 tensors of any shape, are replaced.
            losses: scalar mean losses over this rank's images, by name.
            batch: this rank's images; only their number counts.

        Returns:
            The mean losses over the images of all ranks, scalar float32 tensors on the CPU.
        """
        if self.size == 1:
            return losses
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
        """Replaces float32 buffers, such as running means of batch norm, by their means over all ranks.

        Training updates the buffers on each rank separately. Without this, the ranks would evaluate
        different networks.
        """
        buffers = [buffer for buffer in model.buffers() if buffer.dtype == flow.float32]
        if self.size == 1 or not buffers:
            return
        mean = self.all_reduce(np.concatenate([buffer.numpy().ravel() for buffer in buffers]))
        mean /= self.size
        for buffer in buffers:
            buffer.copy_(mean[: buffer.numel()].reshape(buffer.shape))
            mean = mean[buffer.numel() :]


class ForkedRanks(Ranks):
    """Ranks that one process has forked. They sum in shared memory.

    Args:
        rank: this process's number.
        size: how many there are.
        pipes: to ranks 1, 2, ... on rank 0; to rank 0 on the others.
        memory: the result of ``shared_memory(size)``, made before the ranks were forked.
    """

    def __init__(self, rank: int, size: int, pipes: Sequence[Connection], memory: mmap.mmap) -> None:
        self.rank = rank
        self.size = size
        self.pipes = pipes
        self._buffers = np.frombuffer(memory, np.float32).reshape(2, size, _CHUNK)
        self._turn = 0

    def all_reduce(self, values: Floats) -> Floats:
        """As in ``Ranks``."""
        flat = values.ravel()
        result = np.empty_like(flat)
        for start in range(0, len(flat), _CHUNK):
            # Two buffers are used in turn. No rank writes into a buffer that another one may still read,
            # because all ranks have to pass the other buffer's barrier in between.
            self._turn = 1 - self._turn
            part = flat[start : start + _CHUNK]
            buffer = self._buffers[self._turn, :, : len(part)]
            buffer[self.rank] = part
            self._barrier()
            np.sum(buffer, axis=0, out=result[start : start + _CHUNK])
        return result.reshape(values.shape)

    def all_gather(self, rows: Floats) -> Floats:
        """As in ``Ranks``."""
        with _loss_explained():
            if self.rank > 0:
                self.pipes[0].send(rows)
                gathered: Floats = self.pipes[0].recv()
                return gathered
            gathered = np.concatenate([rows, *(pipe.recv() for pipe in self.pipes)])
            for pipe in self.pipes:
                pipe.send(gathered)
            return gathered

    def _barrier(self) -> None:
        """Waits until every rank has called this."""
        with _loss_explained():
            if self.rank > 0:
                self.pipes[0].send_bytes(b"arrived")
                self.pipes[0].recv_bytes()
                return
            for pipe in self.pipes:
                pipe.recv_bytes()
            for pipe in self.pipes:
                pipe.send_bytes(b"go on")


class OneFlowRanks(Ranks):
    """Ranks that oneflow connects, in processes started by ``--nproc-per-node`` or oneflow's launcher.

    Args:
        device: device of the collectives, ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.rank = flow.env.get_rank()
        self.size = self.batch_multiplier = flow.env.get_world_size()
        self.device = device
        self._waiting = ThreadPoolExecutor(1, "oneflow")

    def all_reduce(self, values: Floats) -> Floats:
        """As in ``Ranks``.

        A thread waits for the result: no signal interrupts oneflow's own wait, which never ends if a rank
        has stopped.
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


def shared_memory(size: int) -> mmap.mmap:
    """Returns the memory in which ``size`` ranks sum. Pages that are not used take none."""
    return mmap.mmap(-1, 2 * size * _CHUNK * np.dtype(np.float32).itemsize)


@contextlib.contextmanager
def _loss_explained() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise RankLostError("a process that trains a share of each batch has ended.") from error
