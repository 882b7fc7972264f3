"""The command ``kdtrain launch``: one fit in the processes of several machines, by oneflow's launcher."""

from __future__ import annotations

import argparse

from kdtrain.cli.flags import whole_number
from kdtrain.errors import UsageError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "Start this machine's processes of one fit by OneFlow's launcher. Give the command on each machine, "
        "with its --node-rank: `kdtrain launch --nnodes 2 --node-rank 0 --master-addr ADDRESS fit ...`."
    )
    numbers = {
        "--nnodes": ("number of machines", 1),
        "--node-rank": ("number of this machine, from 0 on", 0),
        "--nproc-per-node": ("number of processes on each machine", 1),
        "--master-port": ("free port of machine 0, at which the processes connect", 29500),
    }
    for flag, (text, default) in numbers.items():
        parser.add_argument(flag, type=whole_number, default=default, metavar="N", help=f"{text} [{default}]")
    parser.add_argument(
        "--master-addr", default="127.0.0.1", metavar="ADDRESS", help="address of machine 0 [127.0.0.1]"
    )
    parser.add_argument(
        "fit", nargs=argparse.REMAINDER, metavar="fit ...", help="`fit` with its flags, for every process"
    )


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
