"""The folder of kept models: the best of all runs for each mode, data set and architecture."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdtrain.errors import CheckpointError, KdtrainError
from kdtrain.runtime.files import make_folder, write_bytes
from kdtrain.runtime.regular_files import open_regular
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import SavedModel, fingerprint, load_card

_LOCK_TIMEOUT = 30.0  # seconds; a process usually holds the lock for some milliseconds


def kept_models(folder: Path, mode: str) -> list[Path]:
    """Returns the models of a mode; ``MODE.safetensors`` comes first."""
    first = folder / f"{mode}.safetensors"
    return [first] * first.exists() + sorted(folder.glob(f"{mode}-*.safetensors"))


def keep_model(
    saved: SavedModel, mode: str, folder: Path, *, always: bool, siblings: Sequence[ModelCard] = ()
) -> str | None:
    """Copies a run's best model into the folder, unless the folder has a better one of its kind.

    A kept model of the same data and architecture is replaced if its accuracy on the same held-out
    images is lower. Models of other data or architectures stay.

    Args:
        saved: the model, in its run directory.
        mode: teacher, student or student_kd.
        folder: the folder of kept models.
        always: replaces a kept model too that is as good, or was measured on other images.
        siblings: the models of other seeds that this one was chosen from. A kept model that was
            measured on the held-out images of one of them is compared with that one.

    Returns:
        A note for the user; None if the model is the first of its mode, or is kept already.

    Raises:
        KdtrainError: the model cannot be written, or another process holds the lock for too long.
    """
    make_folder(folder)
    content = _content(saved.path)
    resume = f"kdtrain fit --resume {shlex.quote(str(saved.path.parent.parent))}"
    with _locked(folder, resume):
        path, there = _place(saved.card, mode, folder, resume)
        if there is None:
            write_bytes(path, content)
            first = path.stem == mode
            return None if first else f"Kept as {path}: {mode}.safetensors holds another model."
        if _content(path) == content:
            return None
        rivals = [card for card in (saved.card, *siblings) if card.held_out == there.held_out != ""]
        # An equally good rival counts as better only if the saved model itself is better.
        better = any((card.accuracy, saved.card.accuracy) > (there.accuracy,) * 2 for card in rivals)
        if always or better:
            write_bytes(path, content)
    note = f"{path} {'is replaced' if always or better else 'stays'}: held-out accuracy {there.accuracy_text}"
    if saved.card not in rivals:
        note += f", measured on {'other' if there.held_out else 'unknown'} images"
    note += f"; this run's is {saved.card.accuracy_text}."
    return note if always or rivals else f"{note} To replace it: {resume} --replace"


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _place(card: ModelCard, mode: str, folder: Path, resume: str) -> tuple[Path, ModelCard | None]:
    """Returns the path for a model, and the card of the kept model of its kind, if there is one.

    Kinds are compared by content, because data may have been renamed. Files that cannot be read, or
    are of another kind, are skipped and stay.
    """
    arch = _short(card.arch)
    long = f"{mode}-{_short(card.dataset)}-{arch}"
    digest = fingerprint({}, [card.data, card.arch])[:8]
    paths = [folder / f"{stem}.safetensors" for stem in (mode, long, f"{long}-{digest}")]
    for path in [*paths, *sorted(folder.glob(f"{mode}-*-{arch}*.safetensors"))]:
        with contextlib.suppress(CheckpointError):
            there = load_card(path)
            if (there.data, there.arch) == (card.data, card.arch):
                return path, there
    for path in paths:
        if not os.path.lexists(path):
            return path, None
    raise KdtrainError(f"the model cannot be kept: {paths[-1]} is another file. Move it away, then: {resume}")


def _short(name: str) -> str:
    """Returns the name of a data set or an architecture, in at most 40 characters for a file name."""
    return re.sub(r"[^\w.]+", "_", Path(name.rpartition(":")[2]).name, flags=re.ASCII)[:40]


@contextlib.contextmanager
def _locked(folder: Path, resume: str) -> Iterator[None]:
    """Locks the folder of models; the system releases the lock when the process ends in any way.

    Raises:
        KdtrainError: another process holds the lock for too long.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise KdtrainError(f"cannot open the directory {folder}: {error.strerror}.") from error
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while not _try_to_lock(descriptor):
            if time.monotonic() > deadline:
                raise KdtrainError(
                    f"another process has locked {folder} for {_LOCK_TIMEOUT:g} s. "
                    f"The model is in its run directory; to keep it: {resume}"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _try_to_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks: the model is kept without one
        pass
    return True
