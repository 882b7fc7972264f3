"""The command ``kdtrain launch``: one fit in the processes of several machines, by oneflow's launcher."""

from __future__ import annotations

import argparse

from kdtrain.errors import UsageError


def run(options: argparse.Namespace) -> int:
    """Starts this machine's processes, and waits for them; 1 if one of them fails."""
    for name, lowest, end in (
        ("nnodes", 1, None),
        ("node_rank", 0, options.nnodes),
        ("nproc_per_node", 1, None),
        ("master_port", 1, 1 << 16),
    ):
        value = getattr(options, name)
        if value < lowest or (end is not None and value >= end):
            bound = f"at least {lowest}" if end is None else f"from {lowest} to {end - 1}"
            raise UsageError(f"--{name.replace('_', '-')} is {value}: it must be {bound}.")
    if options.fit[:1] != ["fit"]:
        raise UsageError("end the command with the fit: `kdtrain launch --nnodes 2 fit --mode student`.")
    from kdtrain.cluster.launch import launch_with_oneflow

    names = ("nnodes", "node_rank", "nproc_per_node", "master_addr", "master_port")
    return launch_with_oneflow({name: getattr(options, name) for name in names}, options.fit)
