"""Processes that train one network together, each on its share of every batch."""

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

_CHUNK = 1 << 20  # numbers that are added up at once: 4 MB per rank


class Ranks:
    """A group of processes that train one network, as one of them sees it; here, a group of one.

    Every rank holds the same weights and makes the same steps. What the ranks compute from their
    own images is added up in one place, so that all of them go on with the same bits.

    Attributes:
        rank: this process's number, from 0. Only rank 0 writes files that last.
        size: how many processes there are.
        batch_multiplier: how many times ``--batch-size`` all of them see in a step.
    """

    rank = 0
    size = 1
    batch_multiplier = 1

    def all_reduce(self, values: Floats) -> Floats:
        """Returns the sum of every rank's ``values``, to all of them."""
        return values

    def all_gather(self, rows: Floats) -> Floats:
        """Returns every rank's rows, those of rank 0 first, to all of them."""
        return rows

    def any_rank(self, condition: bool) -> bool:
        """Returns whether ``condition`` holds on any rank."""
        return condition if self.size == 1 else bool(self.all_reduce(np.array([condition], np.float32)).any())

    def check_same(self, what: str, value: bytes) -> None:
        """Makes sure that all ranks hold the same: those on other machines have files of their own.

        Args:
            what: its name, in the plural.
            value: its content, or a fingerprint of it.

        Raises:
            KdtrainError: they do not; on all ranks.
        """
        if self.size == 1:
            return
        digest = np.frombuffer(hashlib.sha256(value).digest(), np.uint8).astype(np.float32)
        digests = self.all_gather(digest[None])
        if (digests != digests[0]).any():
            raise KdtrainError(f"{what} are not the same on all machines: give each of them the same files.")

    def shard(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns this rank's part of ``items``; the parts' lengths differ by one at most."""
        return items if self.size == 1 else np.array_split(items, self.size)[self.rank]

    def average_gradients(
        self, optimizer: flow.optim.Optimizer, losses: Mapping[str, flow.Tensor], batch: Sized
    ) -> Mapping[str, flow.Tensor]:
        """Makes gradients and losses those of the whole batch: means over all ranks' images.

        Args:
            optimizer: its parameters' gradients are replaced.
            losses: mean losses over this rank's images.
            batch: those images.

        Returns:
            The mean losses over the whole batch.
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
        """Makes what layers gather from the images, such as running means, the mean over all ranks.

        Until then it is each rank's own, and evaluations would be those of different networks.
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
    """Ranks that one process has forked: they add up in memory that they share.

    Args:
        rank: this process's number.
        size: how many there are.
        pipes: to ranks 1, 2, ... on rank 0; to rank 0 on the others.
        memory: what ``shared_memory(size)`` has returned before the ranks were forked.
    """

    def __init__(self, rank: int, size: int, pipes: Sequence[Connection], memory: mmap.mmap) -> None:
        self.rank = rank
        self.size = size
        self.pipes = pipes
        self._buffers = np.frombuffer(memory, np.float32).reshape(2, size, _CHUNK)
        self._turn = 0

    def all_reduce(self, values: Floats) -> Floats:
        """Returns the sum of every rank's ``values``, to all of them."""
        result = np.empty_like(values)
        for start in range(0, len(values), _CHUNK):
            # Two buffers, in turn: nobody writes into one while another rank may still read it,
            # because everyone has to arrive at the other buffer's meeting in between.
            self._turn = 1 - self._turn
            part = values[start : start + _CHUNK]
            buffer = self._buffers[self._turn, :, : len(part)]
            buffer[self.rank] = part
            self._meet()
            np.sum(buffer, axis=0, out=result[start : start + _CHUNK])
        return result

    def all_gather(self, rows: Floats) -> Floats:
        """Returns every rank's rows, those of rank 0 first, to all of them."""
        with _loss_explained():
            if self.rank > 0:
                self.pipes[0].send(rows)
                gathered: Floats = self.pipes[0].recv()
                return gathered
            gathered = np.concatenate([rows, *(pipe.recv() for pipe in self.pipes)])
            for pipe in self.pipes:
                pipe.send(gathered)
            return gathered

    def _meet(self) -> None:
        """Waits until every rank has come here."""
        with _loss_explained():
            if self.rank > 0:
                self.pipes[0].send_bytes(b"here")
                self.pipes[0].recv_bytes()
                return
            for pipe in self.pipes:
                pipe.recv_bytes()
            for pipe in self.pipes:
                pipe.send_bytes(b"all here")


class OneFlowRanks(Ranks):
    """Ranks that oneflow has connected, in processes that ``--nproc-per-node`` or its launcher has started.

    Args:
        device: where collectives work: ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.rank = flow.env.get_rank()
        self.size = self.batch_multiplier = flow.env.get_world_size()
        self.device = device
        self._waiting = ThreadPoolExecutor(1, "oneflow")

    def all_reduce(self, values: Floats) -> Floats:
        """Returns the sum of every rank's ``values``, to all of them.

        A thread waits for it: no signal would interrupt oneflow's wait, which has no end where a rank
        has stopped.
        """
        summed = flow.tensor(values).to(self.device)
        flow.comm.all_reduce(summed)
        result: Floats = self._waiting.submit(lambda: summed.numpy().copy()).result()
        return result

    def all_gather(self, rows: Floats) -> Floats:
        """Returns every rank's rows, those of rank 0 first, to all of them."""
        counts = np.zeros(self.size, np.float32)
        counts[self.rank] = len(rows)
        start = np.concatenate([[0], np.cumsum(self.all_reduce(counts))]).astype(int)
        everything = np.zeros((start[-1], *rows.shape[1:]), np.float32)
        everything[start[self.rank] : start[self.rank + 1]] = rows
        return self.all_reduce(everything)


def shared_memory(size: int) -> mmap.mmap:
    """Returns what ``size`` ranks add up in; pages that nobody uses take no memory."""
    return mmap.mmap(-1, 2 * size * _CHUNK * np.dtype(np.float32).itemsize)


@contextlib.contextmanager
def _loss_explained() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise RankLostError("a process that trains a share of each batch has ended.") from error
