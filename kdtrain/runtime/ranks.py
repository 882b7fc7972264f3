"""Ranks: the place of this process among those that train one network together, and the group of one."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


LOCAL_SIZE = "LOCAL_WORLD_SIZE"
"""Environment variable: the number of ranks on this machine, as torchrun sets it, too."""


def rank() -> int | None:
    """Returns this process's rank, or None if it trains on its own.

    oneflow itself sets RANK to -1 in a process that trains on its own.
    """
    number, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    grouped = number.isdecimal() and size.isdecimal() and int(size) > 1
    return int(number) if grouped else None


@functools.cache
def ranks_of_machine() -> int:
    """Returns the number of ranks that share this machine's cores, by the variable that launchers set."""
    size = os.environ.get(LOCAL_SIZE, "")
    return max(int(size), 1) if rank() is not None and size.isdecimal() else 1


def prepare_rank() -> None:
    """Prepares one of several processes for the import of oneflow."""
    number = rank()
    if number is None:
        return
    if os.environ.get("MASTER_ADDR", "").startswith(("127.", "localhost")):
        # oneflow counts processes with one address as one machine, whichever launcher started them.
        # It aborts if two of them have the same local rank.
        os.environ["LOCAL_RANK"] = str(number)
    if number > 0:
        time.sleep(0.5)  # a rank that connects before rank 0 listens tries again only after ten seconds


class Ranks:
    """A group of processes that train one network; this class is a group of one process.

    Every rank holds the same weights and takes the same steps. ``cluster`` has the group of several.

    Attributes:
        rank: this process's number, from 0. Only rank 0 writes files that last.
        size: how many processes there are.
    """

    rank = 0
    size = 1

    def shard(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns this rank's shard of ``items``; the lengths of the shards differ by one at most.

        Args:
            items: (N,) int64, equal on all ranks, such as the indices of a batch.
        """
        import numpy as np  # here: commands that ask for the rank alone do without it

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
