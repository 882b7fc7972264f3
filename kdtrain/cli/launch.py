"""The command ``kdtrain launch``: one fit in several processes; and what each of them does differently."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdtrain._version import __version__
from kdtrain.cli.flags import whole_number
from kdtrain.errors import UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.schema import flag_of, kind_of
from kdtrain.runtime import console
from kdtrain.runtime.files import temporary_folder
from kdtrain.runtime.ranks import rank


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


@contextlib.contextmanager
def as_rank(config: FitConfig) -> Iterator[FitConfig]:
    """Yields the configuration for this process.

    Ranks other than 0 print nothing and write into a temporary folder.
    """
    number = rank()
    if number is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", number)) % len(cores)]})
    if not number:
        yield config
        return
    console.set_level(console.OFF)
    with (
        temporary_folder(Path(tempfile.gettempdir())) as copies,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        tempfile.tempdir = str(copies)  # also removes the files of a killed worker
        try:
            yield dataclasses.replace(
                config, logdir=copies, model_save_dir=config.models, image_save_dir=None, image_save_name=None
            )
        except KeyboardInterrupt as error:
            error.args = ()  # no hint to --resume: this run directory is deleted, and rank 0 prints its own
            raise
        finally:
            tempfile.tempdir = None


def shared_facts(config: FitConfig) -> dict[str, str]:
    """Returns versions and settings that must be equal on all ranks; paths of files may differ."""
    facts = {"kdtrain": __version__, "oneflow": importlib.metadata.version("oneflow")}
    for name, value in config.resolved().items():
        if kind_of(name)[0] is not Path and name != "nproc_per_node":
            text = value.partition(":")[0] if name == "dataset" else str(value)
            facts[flag_of(name)] = re.sub(r"(?<![^\s:='\"])[^\s:='\"]*/", "", text)
    return facts
