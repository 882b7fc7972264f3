"""A fit's share on one of several ranks: collectives, the averages of each step, and the common end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Batch
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd, EpochEnd
from kdtrain.engine.run import Run
from kdtrain.engine.trainer import backward
from kdtrain.errors import KdtrainError
from kdtrain.runtime import flow
from kdtrain.runtime.ranks import Ranks

Floats = npt.NDArray[np.float32]


class OneFlowRanks(Ranks):
    """Ranks that oneflow connects, in processes started by ``--nproc-per-node`` or oneflow's launcher.

    Sums over ranks are computed once and sent to all, so that the weights stay equal bit by bit.

    Args:
        device: device of the collectives, ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.rank = flow.env.get_rank()
        self.size = flow.env.get_world_size()
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


class SharedFit(Callback):
    """What several ranks do together in a fit; the last of its callbacks.

    It averages the gradients of each step and the buffers of each epoch, and ends the fit on every rank
    when a callback of any rank has called ``run.stop``.

    Args:
        ranks: the processes that share each batch.
    """

    def __init__(self, ranks: OneFlowRanks) -> None:
        self.ranks = ranks

    def backward(
        self, losses: Mapping[str, flow.Tensor], optimizer: flow.optim.Optimizer, batch: Batch
    ) -> Mapping[str, flow.Tensor]:
        """Computes gradients, and replaces them and the losses by their means over the images of all ranks.

        Args:
            losses: scalar mean losses over this rank's images, by name.
            optimizer: its parameters' gradients are float32 tensors of any shape.
            batch: this rank's images; only their number counts.

        Returns:
            The mean losses, scalar float32 tensors on the CPU.
        """
        losses = backward(losses, optimizer, batch)
        parameters = [p for group in optimizer.param_groups for p in group.parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        values = [gradient.numpy().ravel() for gradient in gradients]
        values.append(np.array([*(loss.item() for loss in losses.values()), 1.0], np.float32))
        mean = self.ranks.all_reduce(np.concatenate(values) * np.float32(len(batch)))
        mean = _copy_to(gradients, mean / mean[-1])
        return MappingProxyType(
            {name: flow.tensor(float(value)) for name, value in zip(losses, mean[:-1], strict=True)}
        )

    def on_fit_start(self, run: Run) -> None:
        """Ends a fit that another rank does not begin."""
        self._stop_together(run)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Averages float32 buffers, such as running means of batch norm, after the last batch of an epoch.

        Training updates them on each rank separately: the ranks would evaluate different networks.
        """
        self._stop_together(run)
        if run.stopping or event.step % len(run.train) == 0:
            buffers = [buffer for buffer in run.model.buffers() if buffer.dtype == flow.float32]
            if buffers:
                total = self.ranks.all_reduce(np.concatenate([buffer.numpy().ravel() for buffer in buffers]))
                _copy_to(buffers, total / self.ranks.size)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Ends the fit if another rank does."""
        self._stop_together(run)

    def _stop_together(self, run: Run) -> None:
        if self.ranks.any_rank(run.stopping) and not run.stopping:
            run.stop("a callback of another process asked for it")


def _copy_to(tensors: list[flow.Tensor], values: Floats) -> Floats:
    """Copies flat values to tensors, one after another; returns those that are left."""
    for tensor in tensors:
        tensor.copy_(values[: tensor.numel()].reshape(tensor.shape))
        values = values[tensor.numel() :]
    return values
