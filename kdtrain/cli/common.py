"""What the commands that read a model share: the model, and the data that go with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.datasets import BUILT_IN, load_dataset
from kdtrain.data.loader import Loader
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.engine.predict import predict_logits
from kdtrain.errors import CheckpointError, UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import SavedModel, load_model

Logits = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def open_model(path: Path, mode: str = "", arch: str | None = None) -> SavedModel:
    """Reads a checkpoint; a OneFlow directory is taken for one of the sample's, trained on MNIST.

    Args:
        path: the file or directory.
        mode: teacher, student or student_kd, where that is known.
        arch: what the network must be; without it, no file gets code of the user's run.
    """
    guess = "teacher_cnn" if mode in ("", "teacher") else "student_mlp"
    digits = tuple(str(digit) for digit in range(10))
    sample = ModelCard(mode or "unknown", guess, "mnist", (1, 28, 28), digits, mean=(0.1307,), std=(0.3081,))
    return load_model(path, fallback=sample, arch=arch)


def open_any_model(
    path: Path, arch: str | None = None, threads: int = 1, mode: str = ""
) -> SavedModel | OnnxModel:
    """Reads a checkpoint, or an ONNX file, which onnxruntime will compute with so many threads."""
    return OnnxModel.load(path, threads) if path.suffix == ".onnx" else open_model(path, mode, arch)


def logits_of(model: SavedModel | OnnxModel, device: str) -> Logits:
    """Returns what answers a few images, (N, C, H, W) with pixels 0..255: logits (N, classes)."""
    if isinstance(model, OnnxModel):
        return model.logits
    network, normalization = model.build(device), Normalization(model.card.mean, model.card.std)

    def logits(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with flow.no_grad():  # the copy matters: .numpy() is a view of memory that OneFlow may use again
            inputs = flow.tensor(normalization.apply(pixels)).to(device)
            found: npt.NDArray[np.float32] = network(inputs).numpy().copy()
        return found

    return logits


def answer_test_images(
    model: SavedModel | OnnxModel, data: Dataset, device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Returns a model's logits (images, classes) for the test images."""
    if isinstance(model, OnnxModel):
        return model.logits(data.test.images)
    inputs = data.test.normalized(Normalization(model.card.mean, model.card.std))
    test = Loader(inputs, data.test.labels, IMAGES_AT_ONCE, num_classes=data.num_classes, device=device)
    return predict_logits(model.build(device), test, description="test set")


def open_data(
    model: SavedModel | OnnxModel, dataset: str | None, data_dir: Path | None, *, skip_corrupt: bool = False
) -> Dataset:
    """Returns the data set that a flag names, or else the built-in one that the model was trained on.

    Nothing else is opened because a model names it: a stranger's may name any file, any folder, or code.
    The pictures of a folder are brought to the size that the model takes.

    Raises:
        UsageError: the model was trained on other data than built-in ones, and no flag names them.
        CheckpointError: the model is for other images or other classes.
    """
    name = model.card.dataset if dataset is None else dataset
    if dataset is None and name not in BUILT_IN:
        if data_dir is None:
            flag = (
                f"say so with --dataset {shlex.quote(name)}" if ":" in name else "say where with --data-dir"
            )
            raise UsageError(
                f"{model.path} was trained on {name}: {flag}. What a model names is not opened, unless it is "
                "one of kdtrain's own data sets."
            )
        name = "mnist"  # the files decide
    _, height, width = model.card.image_shape
    folder = name.startswith("folder:")
    size = height if folder and height == width else None  # else all pictures have one size
    data = load_dataset(name, data_dir, image_size=size, skip_corrupt=skip_corrupt)
    check_fits(model, data)
    return data


def is_named(card: ModelCard, dataset: str | None, data_dir: Path | None) -> bool:
    """Returns whether flags name the data set that a model was trained on, as far as names can tell."""
    named = str(data_dir.resolve()) if data_dir is not None else dataset or ""
    return _last_part(named) == _last_part(card.dataset)


def _last_part(name: str) -> str:
    """Returns what is left of, say, ``folder:/home/me/pets`` wherever the folder is: ``pets``."""
    return Path(name.rpartition(":")[2]).name


def check_fits(model: SavedModel | OnnxModel, data: Dataset) -> None:
    """Raises CheckpointError if a model is for other images or other classes than these."""
    if data.image_shape != model.card.image_shape or data.num_classes != len(model.card.classes):
        raise CheckpointError(
            f"{model.path} is for {_describe(model.card.image_shape, len(model.card.classes))}; "
            f"{data.name} has {_describe(data.image_shape, data.num_classes)}."
        )


def _describe(shape: tuple[int, int, int], classes: int) -> str:
    return f"images of {'x'.join(str(n) for n in shape)} in {classes} classes"
