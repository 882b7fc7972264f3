"""One rank of a fit with several processes: its settings, and the facts that all ranks must share."""

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
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.schema import flag_of, kind_of
from kdtrain.runtime import console
from kdtrain.runtime.files import temporary_folder
from kdtrain.runtime.ranks import rank


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
                config,
                logdir=copies,
                model_save_dir=config.models,
                image_save_dir=None,
                image_save_name=None,
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
