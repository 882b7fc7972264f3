"""The command ``kdtrain infer``: the classes of single images, with a drawing of the probabilities."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.text import Text

from kdtrain.cli.output import Output
from kdtrain.deploy.opening import is_named
from kdtrain.errors import CheckpointError, UsageError
from kdtrain.experiment.comparison_run import picture_path
from kdtrain.experiment.infer import Prediction, check_images, infer
from kdtrain.report.table import Column, Table
from kdtrain.runtime.locations import missing_path_text
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_card
from kdtrain.store.kept_models import kept_models

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    """Classifies images; prints the predictions and draws each."""
    check_images(options.images, options.picture_index, options.temperature)
    if options.image_save_name is not None and len(options.images) > 1:
        raise UsageError(
            "--image-save-name names one file, but there are several images: use --image-save-dir."
        )
    predictions = infer(
        options.checkpoint or _kept_model(options),
        *options.images,
        picture_index=options.picture_index,
        temperature=options.temperature,
        model_type=options.model_type,
        arch=options.arch,
        dataset=options.dataset,
        data_dir=options.data_dir,
        skip_corrupt=options.skip_corrupt,
        device=options.device,
    )
    entries = [_drawn(prediction, options) for prediction in predictions]
    if options.json:
        print(json.dumps(entries, indent=2))
    else:
        for entry in entries:
            _print(entry)
    return 0


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
    cards: dict[Path, ModelCard] = {path: load_card(path) for path in paths}

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


def _drawn(prediction: Prediction, options: argparse.Namespace) -> dict[str, Any]:
    """Saves the drawing of a prediction; returns the entries to print."""
    folder = options.image_save_dir or (None if options.image_save_name else Path("logs/images"))
    default = Path(f"{prediction.model.stem}_{prediction.label}.png")
    drawing = picture_path(folder, options.image_save_name, default)
    prediction.save(drawing)
    return {
        "image": prediction.image,
        "prediction": prediction.prediction,
        "truth": prediction.truth,
        "temperature": prediction.temperature,
        "probabilities": prediction.probabilities,
        "softened": prediction.softened,
        "model": str(prediction.model),
        "picture": str(drawing),
    }


def _print(prediction: dict[str, Any]) -> None:
    output = Output()
    truth = f" (it is {prediction['truth']})" if prediction["truth"] is not None else ""
    output.sentence(Text.assemble(f"{prediction['image']}: ", (prediction["prediction"], "bold"), truth))
    output.print(Padding.indent(class_table(prediction), 2))
    output.text(f"  picture: {prediction['picture']}")


def class_table(prediction: dict[str, Any]) -> Table:
    """Returns a row for each of the ten most probable classes."""
    softened = f"T={prediction['temperature']:g}"
    table = Table(Column("class", words=True), Column("T=1"), Column(softened))
    for name, hard in sorted(prediction["probabilities"].items(), key=lambda item: -item[1])[:10]:
        table.row(name, f"{hard:.2%}", f"{prediction['softened'][name]:.2%}")
    return table
