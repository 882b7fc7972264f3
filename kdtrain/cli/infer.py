"""The command ``kdtrain infer``: the classes of single images, with a drawing of the probabilities."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from rich.text import Text

from kdtrain.cli.common import is_named, open_data, open_model
from kdtrain.cli.fit import picture_path
from kdtrain.cli.flags import check_flags
from kdtrain.cli.output import Output
from kdtrain.data.images.image_file import open_image
from kdtrain.data.images.model_input import model_input
from kdtrain.data.images.resize import to_rgb
from kdtrain.deploy.predictor import Predictor
from kdtrain.errors import CheckpointError, UsageError, clipped
from kdtrain.metrics.tempered_softmax import tempered_softmax
from kdtrain.report.prediction import prediction_figure
from kdtrain.report.style import save_figure
from kdtrain.runtime.locations import missing_path_text, short_name
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.value_checks import MOST_NUMBER, positive
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_card
from kdtrain.store.kept_models import kept_models

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputImage:
    """An image to classify.

    Attributes:
        name: the image's name in the output.
        label: the image's part of the drawing's file name.
        pixels: (C, H, W) uint8, the network's input.
        original: the photo or scan that ``pixels`` were made from; None for an image of a data set.
        truth: the true class, if it is known.
    """

    name: str
    label: str
    pixels: npt.NDArray[np.uint8]
    original: Image.Image | None = None
    truth: str | None = None


def run(options: argparse.Namespace) -> int:
    """Classifies images; prints the predictions and draws each."""
    _check(options)
    path = options.checkpoint or _kept_model(options)
    device = resolve_device(options.device)
    model = open_model(path, options.arch, mode=options.model_type, device=device)
    predictions = [_predict(image, model, options) for image in _input_images(options, model)]
    if options.json:
        print(json.dumps(predictions, indent=2))
    else:
        for prediction in predictions:
            _print(prediction)
    return 0


def _check(options: argparse.Namespace) -> None:
    if (options.picture_index is None) == (not options.images):
        raise UsageError("name image files, or an image of the test set with --picture-index N.")
    check_flags(options, temperature=positive(MOST_NUMBER))
    if options.image_save_name is not None and len(options.images) > 1:
        raise UsageError(
            "--image-save-name names one file, but there are several images: use --image-save-dir."
        )


def _kept_model(options: argparse.Namespace) -> Path:
    """Returns a trained model in --model-save-dir: the first of those that fit the other flags best."""
    mode = options.model_type
    paths = kept_models(options.model_save_dir, mode)
    if not paths:
        raise CheckpointError(
            f"there is no {mode} model in {missing_path_text(options.model_save_dir)}: train one with "
            f"`kdtrain fit --mode {mode}`, or name a file with --checkpoint."
        )
    if len(paths) == 1:
        return paths[0]
    cards = {path: load_card(path) for path in paths}

    def misfit(path: Path) -> tuple[bool, bool]:
        card = cards[path]
        return not is_named(card, options.dataset, options.data_dir), options.arch not in (None, card.arch)

    chosen = min(paths, key=misfit)
    others = ", ".join(path.name for path in paths if path != chosen)
    logger.info(
        f"The model is {chosen} ({cards[chosen].dataset}, {cards[chosen].arch}). There are others: {others}. "
        "Choose with --dataset, --arch or --checkpoint."
    )
    return chosen


def _input_images(options: argparse.Namespace, model: Predictor) -> list[InputImage]:
    if options.picture_index is None:
        return [_from_file(path, label, model.card) for path, label in _labelled(options.images)]
    data = open_data(model, options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt)
    index = options.picture_index
    if not 0 <= index < len(data.test):
        raise UsageError(
            f"--picture-index {clipped(index)}: the test set has images 0 to {len(data.test) - 1}."
        )
    truth = data.classes[int(data.test.labels[index])]
    return [InputImage(f"test image {index}", str(index), data.test.images[index], truth=truth)]


def _from_file(path: Path, label: str, card: ModelCard) -> InputImage:
    pixels = model_input(path, card.dataset, card.image_shape)
    original = open_image(path, lambda image: to_rgb(ImageOps.exif_transpose(image)))
    return InputImage(str(path), label, pixels, original)


def _predict(image: InputImage, model: Predictor, options: argparse.Namespace) -> dict[str, Any]:
    """Classifies an image, saves the drawing, and returns the entries to print."""
    card = model.card
    logits = model.logits(image.pixels[np.newaxis])[0].astype(np.float64)
    hard, soft = tempered_softmax(logits, 1.0), tempered_softmax(logits, options.temperature)
    best = int(hard.argmax())
    folder = options.image_save_dir or (None if options.image_save_name else Path("logs/images"))
    drawing = picture_path(folder, options.image_save_name, Path(f"{model.path.stem}_{image.label}.png"))
    title = f"{image.name}: {card.classes[best]} with {hard[best]:.1%} ({card.mode}, {short_name(card.arch)})"
    figure = prediction_figure(
        image.pixels, logits, card.classes, options.temperature, title, image.original, image.truth
    )
    save_figure(figure, drawing)
    return {
        "image": image.name,
        "prediction": card.classes[best],
        "truth": image.truth,
        "temperature": options.temperature,
        "probabilities": dict(zip(card.classes, hard.tolist(), strict=True)),
        "softened": dict(zip(card.classes, soft.tolist(), strict=True)),
        "model": str(model.path),
        "picture": str(drawing),
    }


def _labelled(paths: list[Path]) -> list[tuple[Path, str]]:
    """Returns each file with a label, numbered where names repeat, so that no drawing replaces another."""
    names = [path.stem for path in paths]
    return [
        (path, path.stem if names.count(path.stem) == 1 else f"{path.stem}_{number}")
        for number, path in enumerate(paths, start=1)
    ]


def _print(prediction: dict[str, Any]) -> None:
    output = Output()
    truth = f" (it is {prediction['truth']})" if prediction["truth"] is not None else ""
    output.text(Text.assemble(f"{prediction['image']}: ", (prediction["prediction"], "bold"), truth))
    output.text(f"  {'class':<12} {'T=1':>8} {'T=' + format(prediction['temperature'], 'g'):>8}")
    for name, hard in sorted(prediction["probabilities"].items(), key=lambda item: -item[1])[:10]:
        output.text(f"  {name:<12} {hard:>8.2%} {prediction['softened'][name]:>8.2%}")
    output.text(f"  picture: {prediction['picture']}")
