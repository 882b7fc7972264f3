"""Writes what TensorBoard shows."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdtrain.callback import Callback
from kdtrain.errors import KdtrainError
from kdtrain.events import BatchEnd, EpochEnd, EvalEnd, FitEnd
from kdtrain.run import Run


class TensorBoard(Callback):
    """Scalars over optimizer steps, and the configuration as text.

    The losses and the learning rate are written every few steps, accuracy, cross-entropy and
    images per second once an epoch.

    Args:
        config: the resolved configuration (TOML), shown as text; left out when empty.
        every: steps between two points of the losses.
    """

    def __init__(self, config: str = "", every: int = 50) -> None:
        self.config = config
        self.every = every
        self._file: EventFile | None = None

    def on_fit_start(self, run: Run) -> None:
        """Opens the event file in the run's directory; a resumed run's points are taken along.

        A process that was killed may have written points of an epoch that is now repeated, and not
        the last one of the epoch that it had finished.
        """
        from tensorboardX import summary

        earlier = [path for path in sorted(run.directory.glob("events.*")) if path.suffix[1:].isdecimal()]
        self._file = EventFile(run.directory)
        tags = self._file.copy(earlier, up_to=run.step)
        for path in earlier:
            path.unlink()
        if self.config and not tags:
            self._file.add(summary.text("config", f"```toml\n{self.config.strip()}\n```"))
        if run.resumed is not None and ("images_per_second", run.step) not in tags:
            self._scalars({"images_per_second": run.resumed.images_per_second}, run.step)
        self._file.flush()

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Writes the losses at the first step and at every ``every``-th."""
        if event.step == 1 or event.step % self.every == 0:
            losses = {f"loss/{name}": loss.item() for name, loss in event.losses.items()}
            self._scalars({**losses, "learning_rate": event.learning_rate}, event.step)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Writes the evaluation against the same steps."""
        evaluation = {name: value for name, value in event.metrics.items() if name.startswith("eval/")}
        self._scalars(evaluation, event.step)
        if self._file is not None:
            self._file.flush()  # before a checkpoint says that this epoch is finished

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Writes the throughput, and brings the file up to date on disk."""
        self._scalars({"images_per_second": event.images_per_second}, event.step)
        if self._file is not None:
            self._file.flush()

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._file is not None:
            self._file.add_scalars(values, step)


class EventFile:
    """One of TensorBoard's event files, written by whoever calls.

    tensorboardX's ``SummaryWriter`` leaves that to a thread, whose errors reach nobody: on a full
    disk it ends with a traceback, and the next events wait for it without end.

    Args:
        directory: where the file goes; TensorBoard takes it for the run.
        suffix: tells several files of one directory apart.
    """

    def __init__(self, directory: Path, suffix: str = "") -> None:
        from tensorboardX import RecordWriter  # imports protobuf: not for every command
        from tensorboardX.proto.event_pb2 import Event

        self.directory = directory
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}{suffix}"
        with self._explained():
            self._records = RecordWriter(str(directory / name))
            self._records.write(
                Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
            )

    def add(self, summary: Any, step: int = 0) -> None:
        """Writes one of tensorboardX's summaries.

        Raises:
            KdtrainError: the file cannot be written, here as in the methods below.
        """
        from tensorboardX.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        with self._explained():
            self._records.write(event.SerializeToString())

    def copy(self, files: Sequence[Path], up_to: int) -> set[tuple[str, int]]:
        """Copies other files' points up to a step, each once; returns their tags and steps.

        A file's end that was cut off by a crash is left out.
        """
        tags: set[tuple[str, int]] = set()
        if not files:
            return tags
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboardX.proto.event_pb2 import Event

        for file in files:
            for record in RawEventFileLoader(str(file)).Load():
                event = Event.FromString(record)
                own = {(value.tag, event.step) for value in event.summary.value}
                if own and event.step <= up_to and not own & tags:
                    tags |= own
                    with self._explained():
                        self._records.write(record)
        return tags

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

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KdtrainError(
                f"cannot write TensorBoard's file in {self.directory}: {error.strerror or error}."
            ) from error


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

    for earlier in directory.glob("events.*.results"):
        earlier.unlink()  # of the same run, before it was resumed
    with contextlib.closing(EventFile(directory, ".results")) as file:
        file.add_scalars(metrics, step)
        # add_hparams would make a run of its own, under a time stamp: these belong to this one.
        for line in summary.hparams(dict(hparams), dict.fromkeys([*metrics, *later])):
            file.add(line)


def write_picture(directory: Path, tag: str, png: Path) -> None:
    """Adds a picture to the images of the run in ``directory``."""
    import numpy as np
    from PIL import Image
    from tensorboardX import summary

    with contextlib.closing(EventFile(directory, ".picture")) as file, Image.open(png) as image:
        file.add(summary.image(tag, np.asarray(image.convert("RGB")), dataformats="HWC"))
