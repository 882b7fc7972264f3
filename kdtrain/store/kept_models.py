"""The folder of models: for each mode, data set and architecture it holds the best one of all runs."""

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

_PATIENCE = 30.0  # seconds; another process holds the folder for some milliseconds


def kept_models(folder: Path, mode: str) -> list[Path]:
    """Returns the models of a mode; the one that is named after the mode alone comes first."""
    first = folder / f"{mode}.safetensors"
    return [first] * first.exists() + sorted(folder.glob(f"{mode}-*.safetensors"))


def keep_model(
    saved: SavedModel, mode: str, folder: Path, *, always: bool, siblings: Sequence[ModelCard] = ()
) -> str | None:
    """Copies a run's best model into the folder, unless the one that is there has to stay.

    Models of other data sets or architectures are left alone. One of the same is replaced if its
    accuracy on the same held-out images is lower.

    Args:
        saved: the model, in its run directory.
        mode: teacher, student or student_kd.
        folder: where it goes.
        always: replaces a model that is as good, or was measured on other images, as well.
        siblings: models of other seeds that this one was chosen from. A model that is there and was
            measured on the images of one of them is compared with that one.

    Returns:
        A sentence about it; None if the model is the first of its mode, or is there already.

    Raises:
        KdtrainError: it cannot be written, or another process does not let go of the folder.
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
        # Of equals the one that is there stays, unless the rival has a sibling that is better still.
        better = any((card.accuracy, saved.card.accuracy) > (there.accuracy,) * 2 for card in rivals)
        if always or better:
            write_bytes(path, content)
    said = f"{path} {'is replaced' if always or better else 'stays'}: held-out accuracy {there.accuracy_text}"
    if saved.card not in rivals:
        said += f", measured on {'other' if there.held_out else 'unknown'} images"
    said += f"; this run's is {saved.card.accuracy_text}."
    return said if always or rivals else f"{said} To replace it: {resume} --replace"


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _place(card: ModelCard, mode: str, folder: Path, resume: str) -> tuple[Path, ModelCard | None]:
    """Returns where a model belongs, and the card of the one of its kind that is there already.

    The data may have had another name then. A file that cannot be read, or is of another kind, is
    passed over: nothing is lost.
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
    """Returns as much of the name of a data set or an architecture as a file's name can take."""
    return re.sub(r"[^\w.]+", "_", Path(name.rpartition(":")[2]).name, flags=re.ASCII)[:40]


@contextlib.contextmanager
def _locked(folder: Path, resume: str) -> Iterator[None]:
    """Keeps other processes from changing the models; a lock ends with its process, however that ends.

    Raises:
        KdtrainError: another process holds it for too long.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise KdtrainError(f"cannot open the directory {folder}: {error.strerror}.") from error
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _try_to_lock(descriptor):
            if time.monotonic() > deadline:
                raise KdtrainError(
                    f"another process has been holding {folder} for {_PATIENCE:g} s. "
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
    except OSError:  # a file system without locks: better without one than not at all
        pass
    return True
