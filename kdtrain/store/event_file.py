"""TensorBoard's event files: scalars, hyperparameters and images of a run."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdtrain.errors import KdtrainError, os_reason
from kdtrain.runtime.regular_files import open_regular

_LARGEST = 1 << 28  # bytes of a file; an hour of training writes less than a million
_HEAD, _FOOT = 12, 4  # bytes: length and its checksum before a record, the record's checksum after it


class EventFile:
    """A TensorBoard event file, written in the calling thread.

    tensorboardX's ``SummaryWriter`` writes in a thread of its own, whose errors are lost: on a full
    disk the thread ends with a traceback, and the next events block for ever.

    The directory of a resumed run holds a file already, perhaps with points of an epoch that is now
    repeated. The new file copies the points before that epoch, and replaces the old file. A
    ``SessionLog.START`` event, by which TensorBoard drops later points, would do so with the points of all
    files in the directory, also of those that the resumed run has written just before.

    Args:
        directory: the folder of the file; TensorBoard shows it as the run.
        suffix: the end of the file's name, which differs for each writer.
        up_to: the last step whose earlier points are copied, ``run.step``; no point by default.

    Attributes:
        earlier: tag and step of the points that were copied.
    """

    def __init__(self, directory: Path, suffix: str = "", *, up_to: int = -1) -> None:
        from tensorboardX import RecordWriter  # here: it imports protobuf, which few commands need
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
                self._copy_points(replaced, up_to)
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
        """Writes a point of each curve, by tag, as one record."""
        from tensorboardX.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(Summary(value=points), step)

    def flush(self) -> None:
        """Writes buffered records to disk."""
        with self._explained():
            self._records.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        with self._explained():
            try:
                self._records.flush()
            finally:
                self._records.close()

    def _copy_points(self, files: Sequence[Path], up_to: int) -> None:
        """Copies the points of other files, each once, without a last record that a crash cut off."""
        for file in files:
            for event, record in _events(file):
                points = {(value.tag, event.step) for value in event.summary.value}
                if points and event.step <= up_to and not points & self.earlier:
                    self.earlier |= points
                    self._records.write(record)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KdtrainError(
                f"cannot write TensorBoard's file in {self.directory}: {os_reason(error)}."
            ) from error


def _events(file: Path) -> Iterator[tuple[Any, bytes]]:
    """Yields a file's events, each with its record, up to the first record that is damaged or cut off.

    Raises:
        KdtrainError: the file cannot be read, is larger than 256 MiB, or a record is no event.
    """
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    try:
        with open_regular(file, _LARGEST) as opened:
            left = os.fstat(opened.fileno()).st_size
            while left >= _HEAD + _FOOT:
                head = opened.read(_HEAD)
                length, check = struct.unpack("<QI", head)
                left -= _HEAD + length + _FOOT
                if left < 0 or check != masked_crc32c(head[:8]):
                    return
                record = opened.read(length)
                if opened.read(_FOOT) != struct.pack("<I", masked_crc32c(record)):
                    return
                yield Event.FromString(record), record
    except (OSError, DecodeError) as error:
        raise KdtrainError(f"{file} cannot be read: {os_reason(error)}. Move it away.") from error


def _suffix(path: Path) -> str:
    """Returns the part of an event file's name after the process number."""
    return "" if path.suffix[1:].isdecimal() else path.suffix


def write_results(
    directory: Path,
    hparams: Mapping[str, Any],
    metrics: Mapping[str, float],
    step: int,
    *,
    later: Sequence[str] = (),
) -> None:
    """Adds a finished run's final metrics and its row in the HParams tab.

    Args:
        directory: the run directory.
        hparams: the settings of the run, by name.
        metrics: the final figures, by tag.
        step: the last step of the run.
        later: tags of further metrics in the tab, which are written by others.
    """
    from tensorboardX import summary

    with contextlib.closing(EventFile(directory, ".results")) as file:
        file.add_scalars(metrics, step)
        # tensorboardX's add_hparams would write them as another run, named after a time stamp.
        for line in summary.hparams(dict(hparams), dict.fromkeys([*metrics, *later])):
            file.add(line)


def write_image(directory: Path, tag: str, png: Path) -> None:
    """Adds a PNG file to the images of the run in ``directory``."""
    import numpy as np
    from PIL import Image
    from tensorboardX import summary

    with contextlib.closing(EventFile(directory, ".picture")) as file, Image.open(png) as image:
        file.add(summary.image(tag, np.asarray(image.convert("RGB")), dataformats="HWC"))
