"""The command ``kdtrain infer``: the classes of single images, with a drawing of the probabilities."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.text import Text

from kdtrain.cli.flags import (
    choice,
    data_flags,
    decimal,
    device_flag,
    json_flag,
    model_folder_flag,
    whole_number,
)
from kdtrain.cli.output import Stdout, after_model
from kdtrain.errors import KdtrainError, UsageError
from kdtrain.report.table import Column, Table
from kdtrain.runtime.bars import progress_bar
from kdtrain.runtime.files import copy_new, ensure_writable, make_folder, temporary_folder, write_bytes
from kdtrain.runtime.signals import defer_signals
from kdtrain.runtime.value_checks import DEFAULT_TEMPERATURE, between, check_value
from kdtrain.store.record import SINGLE_MODES

if TYPE_CHECKING:  # the help needs this file, but no OneFlow
    from kdtrain.deploy.predict.infer import FailedImage, Prediction

logger = logging.getLogger(__name__)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="image files to classify, or folders of image files, in order of name; for a model of MNIST, "
        "photos or scans of one digit each",
    )
    parser.add_argument(
        "--picture-index",
        type=whole_number,
        metavar="N",
        help="classify image N of the test set, counted from 0, in place of files",
    )
    parser.add_argument(
        "--model-type",
        **choice(*SINGLE_MODES),
        default="student_kd",
        help="mode of the trained model to use [student_kd]",
    )
    model_folder_flag(parser)
    parser.add_argument(
        "--checkpoint",
        "--model-load-dir",
        type=Path,
        metavar="MODEL",
        help="use this model: a .safetensors file, a OneFlow checkpoint directory, an .onnx file from "
        "`kdtrain export`, or a folder with the model of --model-type [the folder --model-save-dir]",
    )
    _figure_flags(parser)
    _output_flags(parser)
    data_flags(parser)
    device_flag(parser)
    json_flag(parser, "a JSON list")


def _output_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the table, and of the copies in a folder for each class."""
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write a table with a row for each image: path, prediction, probability, the probabilities of "
        "all classes, warning and error [not written]",
    )
    parser.add_argument(
        "--sort-into",
        type=Path,
        metavar="DIR",
        help="copy each image file to DIR/CLASS, and replace none; figures are drawn only if "
        "--image-save-dir is given [not copied]",
    )
    parser.add_argument(
        "--at-least",
        type=decimal,
        metavar="P",
        help="with --sort-into: do not copy images whose class has a probability below P, 0 to 1 [0]",
    )


def _figure_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the figure that ``kdtrain infer`` draws."""
    parser.add_argument(
        "--temperature",
        type=decimal,
        metavar="T",
        help="temperature, above 0, of the softened probabilities in the third panel of the figure [the one "
        f"that the model was distilled with, or {DEFAULT_TEMPERATURE:g}]",
    )
    parser.add_argument("--no-picture", action="store_true", help="draw no figure")
    parser.add_argument(
        "--image-save-dir", type=Path, metavar="DIR", help="folder for the figures [logs/images]"
    )
    parser.add_argument(
        "--image-save-name",
        type=Path,
        metavar="FILE",
        help="file name of the figure, in --image-save-dir if that is given [MODEL_IMAGE.png]",
    )


def run(options: argparse.Namespace) -> int:
    """Classifies images; prints the predictions, and draws each. Returns 1 if an image cannot be read."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.deploy.predict.infer import check_images, image_files
    check_images(options.images, options.picture_index, options.temperature)
    _check_pictures(options)
    _check_sorting(options)
    files = image_files(options.images)
    with_classes = not any(map(os.path.isdir, options.images))
    entries: list[dict[str, Any]] = []
    with _copies(options) as copied:
        for prediction in _predictions(options, files):
            entry = copied(_entry(prediction, options))
            entries.append(entry)
            if "error" in entry:
                logger.error(f"kdtrain: {entry['error']}")
            elif not options.json:
                _print(entry, with_classes)
    failed = sum("error" in entry for entry in entries)
    pictures = {os.path.dirname(entry["picture"]) for entry in entries if "picture" in entry}
    if pictures and not with_classes and not options.json:
        Stdout().text(f"pictures: {', '.join(pictures)}")
    if options.sort_into is not None and not options.json:
        _print_copies(entries, options)
    if failed and len(files) > 1:
        done = "read" if options.sort_into is None else "read and copied"
        logger.error(f"kdtrain: {failed} of {len(files)} images could not be {done}.")
    if with_classes and len(entries) == 1 and not failed and not options.json:
        after_model(Stdout(), "eval", Path(entries[0]["model"]), options)
    if options.csv is not None:
        make_folder(options.csv.parent)
        write_bytes(options.csv, _csv(entries))
    if options.json:
        print(json.dumps(entries, indent=2))
    return 1 if failed else 0


def _check_pictures(options: argparse.Namespace) -> None:
    """Raises UsageError if the flags of the drawings contradict each other or the images."""
    named = options.image_save_name is not None
    if options.no_picture and (named or options.image_save_dir is not None):
        raise UsageError("--no-picture draws nothing: leave out --image-save-dir and --image-save-name.")
    if named and (len(options.images) > 1 or any(map(os.path.isdir, options.images))):
        raise UsageError(
            "--image-save-name names one file, but there are several images: use --image-save-dir."
        )


def _check_sorting(options: argparse.Namespace) -> None:
    """Raises UsageError if the flags of the copies contradict each other; without a folder, draws nothing."""
    if options.sort_into is None:
        if options.at_least is not None:
            raise UsageError("--at-least is for --sort-into DIR: add it, or leave --at-least out.")
        return
    if options.picture_index is not None:
        raise UsageError("--sort-into copies image files: name files, and leave out --picture-index.")
    if options.at_least is not None:
        check_value("--at-least", options.at_least, between(0, 1), float)
    options.no_picture |= options.image_save_dir is None and options.image_save_name is None


@contextlib.contextmanager
def _copies(options: argparse.Namespace) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Yields a function that copies an entry's image as --sort-into says, and returns the entry with it."""
    if options.sort_into is None:
        yield lambda entry: entry
        return
    ensure_writable(options.sort_into)
    with temporary_folder(options.sort_into) as own:
        yield lambda entry: _copied(entry, options, own)


def _copied(entry: dict[str, Any], options: argparse.Namespace, own: Path) -> dict[str, Any]:
    """Returns an entry with the path of the image's copy, None without one, or with the error."""
    if "error" in entry:
        return entry
    if entry["probabilities"][entry["prediction"]] < (options.at_least or 0):
        return entry | {"copy": None}
    name = entry["prediction"].replace("%", "%25").replace("/", "%2F")
    folder = options.sort_into / (f"%2E{name[1:]}" if name.startswith(".") else name)
    copy = folder / os.path.basename(entry["image"])
    try:
        make_folder(folder)
        copy_new(Path(entry["image"]), copy, own)
    except KdtrainError as error:
        return {"image": entry["image"], "error": str(error)}
    return entry | {"copy": str(copy)}


def _print_copies(entries: list[dict[str, Any]], options: argparse.Namespace) -> None:
    copies = sum(entry.get("copy") is not None for entry in entries)
    doubtful = sum("copy" in entry for entry in entries) - copies
    least = f"; {doubtful} below {options.at_least:g} are left out" if doubtful else ""
    Stdout().text(f"copied: {copies} of {len(entries)} images into {options.sort_into}{least}")


def _predictions(options: argparse.Namespace, files: list[Path]) -> Iterator[Prediction | FailedImage]:
    from kdtrain.deploy.predict.infer import predict_files, predict_test_image
    from kdtrain.deploy.predict.opening import find_model, model_in, open_model
    from kdtrain.runtime.oneflow import resolve_device

    find = model_in if options.checkpoint is None else find_model
    path = find(
        options.checkpoint or options.model_save_dir,
        options.model_type,
        arch=options.arch,
        dataset=options.dataset,
        data_dir=options.data_dir,
    )
    model = open_model(path, options.arch, mode=options.model_type, device=resolve_device(options.device))
    if options.picture_index is None:
        predictions = predict_files(model, files, options.temperature)
        if options.json and len(files) > 1:
            predictions = progress_bar("images", len(files), "image", predictions)
        yield from predictions
    else:
        yield predict_test_image(
            model,
            options.picture_index,
            options.temperature,
            options.dataset,
            options.data_dir,
            options.skip_corrupt,
        )


def _entry(prediction: Prediction | FailedImage, options: argparse.Namespace) -> dict[str, Any]:
    """Saves the drawing of a prediction; returns the entries to print."""
    from kdtrain.deploy.predict.infer import FailedImage
    from kdtrain.report.style import picture_path

    if isinstance(prediction, FailedImage):
        return {"image": prediction.image, "error": str(prediction.error)}
    entry = {
        "image": prediction.image,
        "prediction": prediction.prediction,
        "truth": prediction.truth,
        "warning": prediction.warning,
        "temperature": prediction.temperature,
        "probabilities": prediction.probabilities,
        "softened": prediction.softened,
        "model": str(prediction.model),
    }
    if not options.no_picture:
        folder = options.image_save_dir or (None if options.image_save_name else Path("logs/images"))
        default = Path(f"{prediction.model.stem}_{prediction.label}.png")
        drawing = picture_path(folder, options.image_save_name, default)
        prediction.save(drawing)
        entry["picture"] = str(drawing)
    return entry


def _print(prediction: dict[str, Any], with_classes: bool) -> None:
    """Prints a prediction with its table of classes, or on one line, and its warning below."""
    output = Stdout()
    best = "" if with_classes else f" {prediction['probabilities'][prediction['prediction']]:.2%}"
    truth = f" (it is {prediction['truth']})" if prediction["truth"] is not None else ""
    output.sentence(
        Text.assemble(f"{prediction['image']}: ", (prediction["prediction"], "bold"), best, truth)
    )
    if prediction["warning"] is not None:
        output.sentence(f"  {prediction['warning']}")
    if not with_classes:
        return
    output.print(Padding.indent(class_table(prediction), 2))
    if "picture" in prediction:
        output.text(f"  picture: {prediction['picture']}")


def _csv(entries: list[dict[str, Any]]) -> bytes:
    """Returns the CSV table of predictions, with a row for each image; a class NAME has a column p(NAME)."""
    classes = next((list(entry["probabilities"]) for entry in entries if "error" not in entry), [])
    text = io.StringIO(newline="")
    table = csv.writer(text)
    names = [f"p({name})" for name in classes]
    table.writerow(["path", "prediction", "probability", *names, "warning", "error"])
    for entry in entries:
        if "error" in entry:
            table.writerow([entry["image"], *[""] * (len(classes) + 3), entry["error"]])
            continue
        values = entry["probabilities"]
        best, warning = values[entry["prediction"]], entry["warning"] or ""
        table.writerow([entry["image"], entry["prediction"], best, *values.values(), warning, ""])
    return text.getvalue().encode("utf-8", "surrogateescape")


def class_table(prediction: dict[str, Any]) -> Table:
    """Returns a row for each of the ten most probable classes."""
    softened = f"T={prediction['temperature']:g}"
    table = Table(Column("class", words=True), Column("T=1"), Column(softened))
    for name, hard in sorted(prediction["probabilities"].items(), key=lambda item: -item[1])[:10]:
        table.row(name, f"{hard:.2%}", f"{prediction['softened'][name]:.2%}")
    return table
