"""TensorBoard's event files: scalars, hyperparameters and images of a run."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdtrain.errors import KdtrainError
from kdtrain.store.event_records import read_records


class EventFile:
    """One of TensorBoard's event files, written by whoever calls.

    tensorboardX's ``SummaryWriter`` leaves that to a thread, whose errors reach nobody: on a full
    disk it ends with a traceback, and the next events wait for it without end.

    Where a run was interrupted, its directory holds a file already, perhaps with points of an epoch
    that is now repeated: the new file takes the points before those along, and replaces it.

    Args:
        directory: where the file goes; TensorBoard takes it for the run.
        suffix: tells the files of several writers apart.
        up_to: the step up to which earlier points are taken along, ``run.step``; none by default.

    Attributes:
        earlier: tag and step of the points that were taken along.
    """

    def __init__(self, directory: Path, suffix: str = "", *, up_to: int = -1) -> None:
        from tensorboardX import RecordWriter  # imports protobuf: not for every command
        from tensorboardX.proto.event_pb2 import Event

        self.directory = directory
        self.earlier: set[tuple[str, int]] = set()
        replaced = [path for path in sorted(directory.glob("events.*")) if _suffix(path) == suffix]
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}{suffix}"
        with self._explained():
            self._records = RecordWriter(str(directory / name))
            self._records.write(
                Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
            )
            try:
                self._take_along(replaced, up_to)
                self._records.flush()
            except BaseException:
                self._records.close()
                (directory / name).unlink()
                raise
            for path in replaced:
                path.unlink()

    def add(self, summary: Any, step: int = 0) -> None:
        """Writes one of tensorboardX's summaries.

        Raises:
            KdtrainError: the file cannot be written, here as in the methods below.
        """
        from tensorboardX.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        with self._explained():
            self._records.write(event.SerializeToString())

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes a point of each of several curves, as one record."""
        from tensorboardX.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(Summary(value=points), step)

    def flush(self) -> None:
        """Brings the file up to date on disk."""
        with self._explained():
            self._records.flush()

    def close(self) -> None:
        """Ends the file."""
        with self._explained():
            try:
                self._records.flush()
            finally:
                self._records.close()

    def _take_along(self, files: Sequence[Path], up_to: int) -> None:
        """Copies other files' points, each once; an end that was cut off by a crash is left out."""
        for file in files:
            for event, record in _events(file):
                own = {(value.tag, event.step) for value in event.summary.value}
                if own and event.step <= up_to and not own & self.earlier:
                    self.earlier |= own
                    self._records.write(record)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KdtrainError(
                f"cannot write TensorBoard's file in {self.directory}: {error.strerror or error}."
            ) from error


def _events(file: Path) -> Iterator[tuple[Any, bytes]]:
    """Yields a file's events, each with the record that it was in.

    Raises:
        KdtrainError: the file cannot be read, or a record is no event.
    """
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    try:
        for record in read_records(file):
            yield Event.FromString(record), record
    except (OSError, DecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KdtrainError(f"{file} cannot be read: {reason}. Move it away.") from error


def _suffix(path: Path) -> str:
    """Returns what comes after the process number in an event file's name."""
    return "" if path.suffix[1:].isdecimal() else path.suffix


def write_results(
    directory: Path,
    hparams: Mapping[str, Any],
    metrics: Mapping[str, float],
    step: int,
    *,
    later: Sequence[str] = (),
) -> None:
    """Adds a finished run's final metrics and its line in the HParams tab.

    Args:
        directory: of the run.
        hparams: what it was made with.
        metrics: by tag.
        step: the last one.
        later: tags of further metrics for the tab, which somebody else is going to write.
    """
    from tensorboardX import summary

    with contextlib.closing(EventFile(directory, ".results")) as file:
        file.add_scalars(metrics, step)
        # add_hparams would make a run of its own, under a time stamp: these belong to this one.
        for line in summary.hparams(dict(hparams), dict.fromkeys([*metrics, *later])):
            file.add(line)


def write_image(directory: Path, tag: str, png: Path) -> None:
    """Adds a picture to the images of the run in ``directory``."""
    import numpy as np
    from PIL import Image
    from tensorboardX import summary

    with contextlib.closing(EventFile(directory, ".picture")) as file, Image.open(png) as image:
        file.add(summary.image(tag, np.asarray(image.convert("RGB")), dataformats="HWC"))
