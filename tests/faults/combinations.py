"""Small fits to be killed: every mode with every option, optimizer, schedule and augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kdtrain.data.dataset import Dataset, Split
from kdtrain.data.datasets import load_dataset
from tests.tools import write_tiles

PICTURES = 60  # of each class in the folder
EPOCHS = 4


@dataclass(frozen=True)
class Combination:
    """A fit.

    Attributes:
        mode: of the fit.
        words: its flags; ``{tiles}``, ``{pictures}``, ``{arrays}`` and ``{teacher}`` stand for files.
        data: which of the data it is trained on.
        found: whether a teacher lies in ``logs/models`` before it begins.
    """

    mode: str
    words: str = ""
    data: str = "--recipe=none --data-dir {tiles} --val-size 200 --limit-train 384"
    found: bool = False

    def flags(self, files: dict[str, Path]) -> list[str]:
        """Returns the words of the command line behind ``kdtrain fit``."""
        small = f"--mode {self.mode} --epochs {EPOCHS} --batch-size 64"
        return [word.format_map(files) for word in f"{small} {self.data} {self.words}".split()]


_PICTURES = "--recipe=none --dataset folder:{pictures} --val-size 60"
_ARRAYS = "--recipe=none --dataset npz:{arrays} --val-size 200"
_TEST_CHOOSES = "--recipe=none --data-dir {tiles} --val-size 0 --limit-train 384"
_GIVEN = "--teacher-checkpoint {teacher}"
_OBSERVERS = "--plugin csv --plugin confusion,every=2 --plugin calibration"

COMBINATIONS = {
    "teacher: sgd, cosine": Combination("teacher", "--optimizer sgd --schedule cosine"),
    "teacher: adadelta, constant, rotate, dropout": Combination(
        "teacher", "--optimizer adadelta --schedule constant --augment rotate=15 --plugin dropout"
    ),
    "teacher: max_norm, pictures, crop, flip": Combination(
        "teacher", "--augment crop=2,flip --plugin max_norm", _PICTURES
    ),
    "student: early stopping, shift": Combination("student", "--early-stopping 1 --augment shift=1"),
    "student: sgd, constant, crop, test images choose": Combination(
        "student", "--optimizer sgd --schedule constant --augment crop=2", _TEST_CHOOSES
    ),
    "student: adadelta, cosine, mixup, rotate": Combination(
        "student", "--optimizer adadelta --schedule cosine --augment mixup=0.4,rotate=10"
    ),
    "student: ema, max_norm, arrays": Combination("student", "--plugin ema --plugin max_norm", _ARRAYS),
    "student: csv, confusion, pictures, flip": Combination(
        "student", f"--augment flip {_OBSERVERS}", _PICTURES
    ),
    "student: convolutions on several cores": Combination("student", "--student-arch teacher_cnn"),
    "student: running means": Combination("student", "--student-arch resnet8"),
    "student_kd: given teacher": Combination("student_kd", f"--optimizer adadelta {_GIVEN}"),
    "student_kd: teacher found in logs/models": Combination("student_kd", found=True),
    "student_kd: fitnet, csv, omitted class": Combination(
        "student_kd",
        f"--plugin fitnet,student_layer=fc2,teacher_layer=fc1 --plugin csv --omit-class 3 {_GIVEN}",
    ),
    "student_kd: given teacher, mixup, shift": Combination(
        "student_kd", f"--augment mixup=0.4,shift=1 --early-stopping 1 {_GIVEN}"
    ),
    "student_kd: few labels, kept layers of each view": Combination(
        "student_kd",
        "--labels 280 --views 3 --augment shift=1 --plugin fitnet,student_layer=fc2,teacher_layer=fc1 "
        f"{_GIVEN}",
    ),
    "student_kd: two teachers": Combination("student_kd", f"{_GIVEN} {_GIVEN}"),
    "student_kd: own teacher": Combination("student_kd"),
    "student_kd: own teacher, ema, early stopping, pictures": Combination(
        "student_kd", "--optimizer sgd --early-stopping 1 --plugin ema", _PICTURES
    ),
    "student_kd: own teacher, convolutions, arrays": Combination(
        "student_kd", "--student-arch teacher_cnn --teacher-arch hinton_1200 --schedule cosine", _ARRAYS
    ),
    "student_kd: own teacher, omitted class": Combination("student_kd", "--omit-class 3"),
    "compare": Combination("compare", f"--augment shift=1 {_OBSERVERS}"),
    "compare: given teacher, test images choose": Combination("compare", _GIVEN, _TEST_CHOOSES),
    "compare: seeds": Combination("compare", "--seeds 2 --optimizer adadelta"),
    "compare: seeds, a teacher for each": Combination("compare", "--seeds 2 --teacher-per-seed"),
    "compare: omitted class": Combination("compare", "--omit-class 3"),
    "compare: label smoothing": Combination(
        "compare", "--with-label-smoothing --early-stopping 1 --schedule cosine --weight-decay .1"
    ),
    "compare: seeds, teachers, both controls": Combination(
        "compare",
        "--seeds 2 --teacher-per-seed --with-label-smoothing --with-hard-labels --clip-grad-norm .5",
    ),
}


def write_materials(folder: Path) -> dict[str, Path]:
    """Writes the data that the combinations name: digits 0 to 3 in 12x12 pixels, in three forms."""
    files = {"tiles": write_tiles(folder / "tiles", load_dataset())}
    tiles = load_dataset(data_dir=files["tiles"])
    files["pictures"] = _write_pictures(folder / "pictures", tiles)
    files["arrays"] = folder / "arrays.npz"
    splits = {"train": tiles.train.take(np.arange(600)), "test": tiles.test}
    arrays = {f"x_{name}": split.images[:, 0] for name, split in splits.items()}
    np.savez(files["arrays"], **arrays, **{f"y_{name}": split.labels for name, split in splits.items()})
    return files


def _write_pictures(folder: Path, tiles: Dataset) -> Path:
    for name, split in (("train", tiles.train), ("test", tiles.test)):
        for label, number in _first_of_each(split):
            path = folder / name / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[number, 0]).save(path)
    return folder


def _first_of_each(split: Split) -> list[tuple[int, int]]:
    return [
        (label, int(number))
        for label in range(4)
        for number in np.flatnonzero(split.labels == label)[:PICTURES]
    ]
