"""The targets of the fuzzer: every place where kdtrain reads a file that somebody else wrote."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from kdtrain.callbacks.checkpoint import Checkpoint
from kdtrain.callbacks.early_stopping import EarlyStopping
from kdtrain.callbacks.plugins import load_plugin
from kdtrain.data import cifar
from kdtrain.data.idx import read_idx
from kdtrain.data.images.digit_photo import to_mnist
from kdtrain.data.images.image_file import read_grey
from kdtrain.data.images.resize import is_grey, read_image, to_channels
from kdtrain.data.npz import load_npz, load_only_array
from kdtrain.engine.callback import CallbackList
from kdtrain.engine.events import EpochEnd
from kdtrain.engine.resume import load_state, save_state
from kdtrain.errors import KdtrainError, UsageError
from kdtrain.experiment.settings.load import load_config, resumed_config
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import Weights, fingerprint, load_model
from kdtrain.store.metrics_file import NAME, read_metrics
from kdtrain.store.oneflow_directory import read_oneflow_directory
from scripts.fuzzing import seeds
from scripts.fuzzing.edits import Edits
from scripts.fuzzing.seeds import CARD, SEPARATOR

Check = Callable[[bytes], object]

_PLUGIN = """
from pathlib import Path
from typing import Literal
from kdtrain import Callback

class Watch(Callback):
    def __init__(self, every: int = 50, rate: float = 0.5, on: bool = False, name: str = "x",
                 path: Path = Path("p"), limit: int | None = None, mode: Literal["max", "min"] = "max",
                 either: int | str = 0) -> None: ...

class Plain(Callback): ...
number = 3
"""


class Target(NamedTuple):
    """A reader, by what it starts from and by what makes a check for a folder of its own."""

    seeds: Callable[[], Iterable[bytes]]
    prepare: Callable[[Path], Check]


def _file(read: Callable[[Path], object], wrap: Callable[[bytes], bytes] = bytes) -> Callable[[Path], Check]:
    """Returns what checks ``read`` on a file that holds the input."""

    def prepare(folder: Path) -> Check:
        path = folder / "file"

        def check(data: bytes) -> object:
            path.write_bytes(wrap(data))
            return read(path)

        return check

    return prepare


def _metrics(folder: Path) -> Check:
    def check(data: bytes) -> object:
        (folder / NAME).write_bytes(data)
        return read_metrics(folder)

    return check


def _model_with_checksum(folder: Path) -> Check:
    """A model whose header and tensors are edited; its checksum is right again."""
    path, weights, card = folder / "model.safetensors", seeds.small_weights(), dataclasses.asdict(CARD)

    def check(data: bytes) -> object:
        _write_edited(path, weights, json.loads(json.dumps(card)), Edits(data))
        return load_model(path).build("cpu")

    return check


def _state(folder: Path) -> Check:
    """The state of a fit, edited likewise, is put into an optimizer that then makes a step."""
    last = folder / "last.safetensors"
    network, makers = partial(flow.nn.Linear, 3, 2), (flow.optim.Adam, flow.optim.SGD, flow.optim.Adadelta)
    callbacks = CallbackList([EarlyStopping(3), Checkpoint(CARD)])
    saved: list[tuple[Weights, Any]] = []
    for make in makers:
        model = network()
        optimizer = make(model.parameters(), lr=0.1, **_momentum(make))
        _step(model, optimizer)
        end = EpochEnd(1, 1, {"val/accuracy": 0.5}, 10, 1.0, 1.0, 0.1)
        save_state(last, CARD, [model], optimizer, callbacks.state_dict(), "data", end)
        saved.append(_read(last))

    def check(data: bytes) -> None:
        edits = Edits(data)
        which = edits.number(len(makers))
        _write_edited(last, *saved[which], edits)
        state, model = load_state(last), network()
        optimizer = makers[which](model.parameters(), lr=0.1, **_momentum(makers[which]))
        state.restore([model], optimizer)
        callbacks.load_state_dict(state.callbacks)
        _step(model, optimizer)

    return check


def _directory(folder: Path) -> Check:
    """Names, description and values of a directory's tensors."""
    saved = folder / "saved"
    for number in range(3):
        (saved / f"tensor_{number}").mkdir(parents=True)

    def check(data: bytes) -> object:
        pickled, meta, out = (*data.split(SEPARATOR, 2), b"", b"")[:3]
        (saved / "pickled_data").write_bytes(pickled)
        for number in range(3):
            (saved / f"tensor_{number}" / "meta").write_bytes(meta)
            (saved / f"tensor_{number}" / "out").write_bytes(out)
        return read_oneflow_directory(saved)

    return check


def _configuration(folder: Path) -> Check:
    """A file that can be read can be written, and means the same then; also resumed with flags."""
    path = folder / "config.toml"

    def check(data: bytes) -> None:
        text, _, flags = data.partition(SEPARATOR)
        path.write_bytes(text)
        config = load_config({}, path)
        with contextlib.suppress(UsageError):
            resumed_config(_flags(flags), folder)
        path.write_text(config.to_toml(), encoding="utf-8")
        assert load_config({}, path).resolved() == config.resolved()

    return check


def _plugin(folder: Path) -> Check:
    """An argument of --plugin, alone and behind the name of a file."""
    os.chdir(folder)
    Path("mine.py").write_text(_PLUGIN)

    def check(data: bytes) -> None:
        spec = os.fsdecode(data)
        with contextlib.suppress(KdtrainError):
            load_plugin(f"mine.py{spec}")
        load_plugin(spec)

    return check


def _photo(path: Path) -> None:
    result = to_mnist(read_grey(path))
    assert result.shape == (28, 28)
    assert result.max() == 255


def _picture(path: Path) -> None:
    pixels = read_image(path, (9, 7))
    assert pixels.shape == (3, 9, 7)
    if is_grey(pixels):
        assert (to_channels(pixels, 1) == pixels[:1]).all()


def _cifar(folder: Path) -> Check:
    """CIFAR's archive, of which a damaged tar file is put under a right gzip."""
    path = folder / "cifar-10-python.tar.gz"

    def check(data: bytes) -> object:
        path.write_bytes(gzip.compress(data, 1))
        return cifar.load_cifar("cifar10", folder, folder)

    return check


def _flags(data: bytes) -> dict[str, Any]:
    name, _, text = data.decode("utf-8", errors="replace").partition("=")
    known = {"epochs": int, "batch_size": int, "schedule": str, "logdir": Path}
    return {name: known[name](text)} if name in known and (known[name] is not int or text.isdecimal()) else {}


def _write_edited(path: Path, tensors: Weights, header: Any, edits: Edits) -> None:
    for _ in range(1 + edits.number(3)):
        if edits.number(2):
            tensors = edits.damage(tensors) if tensors else tensors
        else:
            header = edits.change(header)
    if isinstance(header, dict):
        header = {**header, "sha256": fingerprint(tensors, header)}
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items() if name != "__metadata__"}
    path.write_bytes(safetensors.numpy.save(arrays, {"kdtrain": json.dumps(header)}))


def _read(path: Path) -> tuple[Weights, Any]:
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["kdtrain"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    del header["sha256"]
    return tensors, header


def _momentum(make: Any) -> dict[str, float]:
    return {"momentum": 0.9} if make is flow.optim.SGD else {}


def _step(model: flow.nn.Module, optimizer: flow.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(flow.ones(4, 3)).sum().backward()
    optimizer.step()


TARGETS = {
    "idx": Target(seeds.idx, _file(read_idx)),
    "gzip": Target(seeds.gzipped, _file(read_idx)),
    "gzipped idx": Target(seeds.idx, _file(read_idx, partial(gzip.compress, compresslevel=1))),
    "checkpoint": Target(seeds.checkpoints, _file(load_model)),
    "model": Target(lambda: [bytes(40), bytes(range(40))], _model_with_checksum),
    "state": Target(lambda: [bytes(40), bytes(range(40))], _state),
    "directory": Target(seeds.directories, _directory),
    "configuration": Target(seeds.configurations, _configuration),
    "metrics": Target(seeds.metrics, _metrics),
    "plugin": Target(seeds.plugins, _plugin),
    "photo": Target(seeds.photos, _file(_photo)),
    "picture": Target(seeds.photos, _file(_picture)),
    "npz": Target(seeds.archives_of_arrays, _file(load_npz)),
    "arrays": Target(seeds.arrays, _file(load_npz, lambda data: seeds.archived(data.split(SEPARATOR)))),
    "array": Target(seeds.single_arrays, _file(load_only_array)),
    "cifar": Target(seeds.cifar_archives, _cifar),
}
