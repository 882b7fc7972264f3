"""``kdtrain infer``."""

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

from kdtrain.cli.common import Logits, is_named, logits_of, open_any_model, open_data
from kdtrain.cli.fit import picture_path
from kdtrain.cli.flags import check_flags
from kdtrain.cli.output import Output
from kdtrain.data.images.image_file import open_picture
from kdtrain.data.images.model_input import picture_input
from kdtrain.data.images.resize import to_rgb
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.errors import CheckpointError, UsageError, clipped
from kdtrain.metrics.probabilities import probabilities
from kdtrain.report.prediction import prediction_figure
from kdtrain.report.style import save_figure
from kdtrain.runtime.locations import missing_path_text, short_name
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.value_checks import MOST_NUMBER, positive
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import SavedModel, load_card
from kdtrain.store.kept_models import kept_models

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """An image to be recognised, (C, H, W) as the network sees it, and where it comes from.

    ``label`` goes into the name of the picture that is drawn of it.
    """

    name: str
    label: str
    pixels: npt.NDArray[np.uint8]
    original: Image.Image | None = None
    truth: str | None = None


def run(options: argparse.Namespace) -> int:
    """Recognises images; prints the answers and draws a picture of each."""
    _check(options)
    path = options.checkpoint or _kept(options)
    device = resolve_device(options.device)
    model = open_any_model(path, options.arch, mode=options.model_type)
    questions = _questions(options, model)
    ask = logits_of(model, device)
    answers = [_answer(question, ask, model, options) for question in questions]
    if options.json:
        print(json.dumps(answers, indent=2))
    else:
        for answer in answers:
            _print(answer)
    return 0


def _check(options: argparse.Namespace) -> None:
    if (options.picture_index is None) == (not options.images):
        raise UsageError("name image files, or one image of the test set with --picture-index N.")
    check_flags(options, temperature=positive(MOST_NUMBER))
    if options.image_save_name is not None and len(options.images) > 1:
        raise UsageError(
            "--image-save-name names one picture, but there are several images: use --image-save-dir."
        )


def _kept(options: argparse.Namespace) -> Path:
    """Returns the trained model to be asked; of several the one that fits the flags best, then the first."""
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


def _questions(options: argparse.Namespace, model: SavedModel | OnnxModel) -> list[Question]:
    if options.picture_index is None:
        return [_picture(path, label, model.card) for path, label in _labelled(options.images)]
    data = open_data(model, options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt)
    index = options.picture_index
    if not 0 <= index < len(data.test):
        raise UsageError(
            f"--picture-index {clipped(index)}: the test set has images 0 to {len(data.test) - 1}."
        )
    truth = data.classes[int(data.test.labels[index])]
    return [Question(f"test image {index}", str(index), data.test.images[index], truth=truth)]


def _picture(path: Path, label: str, card: ModelCard) -> Question:
    pixels = picture_input(path, card.dataset, card.image_shape)
    original = open_picture(path, lambda image: to_rgb(ImageOps.exif_transpose(image)))
    return Question(str(path), label, pixels, original)


def _answer(
    question: Question, ask: Logits, model: SavedModel | OnnxModel, options: argparse.Namespace
) -> dict[str, Any]:
    """Asks the network, draws the picture, and returns what to print."""
    card = model.card
    logits = ask(question.pixels[np.newaxis])[0].astype(np.float64)
    hard, soft = probabilities(logits, 1.0), probabilities(logits, options.temperature)
    best = int(hard.argmax())
    folder = options.image_save_dir or (None if options.image_save_name else Path("logs/images"))
    picture = picture_path(folder, options.image_save_name, Path(f"{model.path.stem}_{question.label}.png"))
    title = (
        f"{question.name}: {card.classes[best]} with {hard[best]:.1%} ({card.mode}, {short_name(card.arch)})"
    )
    figure = prediction_figure(
        question.pixels, logits, card.classes, options.temperature, title, question.original, question.truth
    )
    save_figure(figure, picture)
    return {
        "image": question.name,
        "prediction": card.classes[best],
        "truth": question.truth,
        "temperature": options.temperature,
        "probabilities": dict(zip(card.classes, hard.tolist(), strict=True)),
        "softened": dict(zip(card.classes, soft.tolist(), strict=True)),
        "model": str(model.path),
        "picture": str(picture),
    }


def _labelled(paths: list[Path]) -> list[tuple[Path, str]]:
    """Returns each file with its name, numbered where several have the same: no picture replaces another."""
    names = [path.stem for path in paths]
    return [
        (path, path.stem if names.count(path.stem) == 1 else f"{path.stem}_{number}")
        for number, path in enumerate(paths, start=1)
    ]


def _print(answer: dict[str, Any]) -> None:
    output = Output()
    truth = f" (it is {answer['truth']})" if answer["truth"] is not None else ""
    output.text(Text.assemble(f"{answer['image']}: ", (answer["prediction"], "bold"), truth))
    output.text(f"  {'class':<12} {'T=1':>8} {'T=' + format(answer['temperature'], 'g'):>8}")
    for name, hard in sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:10]:
        output.text(f"  {name:<12} {hard:>8.2%} {answer['softened'][name]:>8.2%}")
    output.text(f"  picture: {answer['picture']}")
