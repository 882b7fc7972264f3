"""The rank of a fit that several processes share: its settings, and what must equal those of the others."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdtrain._version import __version__
from kdtrain.experiment.config import FitConfig, flag_of, kind_of
from kdtrain.runtime import console
from kdtrain.runtime.files import temporary_folder
from kdtrain.runtime.launch import rank


@contextlib.contextmanager
def as_rank(config: FitConfig) -> Iterator[FitConfig]:
    """Yields the configuration for this process, which is changed where its rank is not 0.

    Such a process says nothing, and writes into a folder that is removed in the end.
    """
    number = rank()
    if number is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", number)) % len(cores)]})
    if not number:
        yield config
        return
    console.enter_child(notes=False, bars=False)
    with (
        temporary_folder(Path(tempfile.gettempdir())) as copies,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        tempfile.tempdir = str(copies)  # so that what a worker leaves when it is killed is removed as well
        try:
            yield dataclasses.replace(
                config,
                logdir=copies,
                model_save_dir=config.models,
                image_save_dir=None,
                image_save_name=None,
            )
        except KeyboardInterrupt as error:
            error.args = ()  # how to go on is rank 0's to say: this run directory is no more
            raise
        finally:
            tempfile.tempdir = None


def shared_facts(config: FitConfig) -> dict[str, str]:
    """Returns what has to be the same in all processes. Where files lie may differ."""
    facts = {"kdtrain": __version__, "oneflow": importlib.metadata.version("oneflow")}
    for name, value in config.resolved().items():
        if kind_of(name)[0] is not Path and name != "nproc_per_node":
            text = value.partition(":")[0] if name == "dataset" else str(value)
            facts[flag_of(name)] = re.sub(r"[^\s:='\"]*/", "", text)
    return facts
