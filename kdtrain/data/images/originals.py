"""Images for a network of another input size: decoded again from their files, at the network's own size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.dataset import Dataset, LazyImages, PictureFile, Split, Unlabelled, files_of
from kdtrain.data.images.resize import InputConversion, InputForm, read_image, to_channels
from kdtrain.errors import DataError

Files = Sequence[PictureFile | None]


@dataclass(frozen=True, eq=False, repr=False)
class Reread(LazyImages):
    """Images in the form of another network, read again from their files when they are needed.

    A picture shows the same part of the file as the image that a student gets. An image without a file is
    converted: resized by linear interpolation.

    Attributes:
        images: the students' images, (N, C, H, W), normalised.
        files: the N files.
        own: the form of the students' images.
        form: the form that the network takes.
    """

    images: NDArray[np.float32] | LazyImages
    files: Files
    own: InputForm
    form: InputForm

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W) in the network's form."""
        return (len(self.files), *self.form.shape)

    def first(self, count: int) -> Reread:
        """Returns the first images alone."""
        return Reread(self.images, self.files[:count], self.own, self.form)

    def __getitem__(self, indices: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        positions = np.arange(len(self.files))[indices]
        files = [self.files[position] for position in positions.tolist()]
        result = np.empty((len(files), *self.form.shape), np.float32)
        has_file = np.array([file is not None for file in files], np.bool_)
        if not has_file.all():
            result[~has_file] = InputConversion(self.own, self.form)(self.images[positions[~has_file]])
        for index, file in enumerate(files):
            if file is not None:
                result[index] = self.form.normalization.apply(self._read(file)[np.newaxis])[0]
        return result

    def _read(self, file: PictureFile) -> NDArray[np.uint8]:
        """Returns a picture, (C, H, W), in the channels of the network.

        Raises:
            DataError: the file has changed since the command began, or cannot be read.
        """
        try:
            status = file.path.stat()
        except OSError as error:
            raise DataError(
                f"{file.path} was there as the command began, and cannot be read now: {error}."
            ) from error
        if (status.st_size, status.st_mtime_ns) != file[1:]:
            raise DataError(f"{file.path} has changed since the command began: start the command again.")
        channels, *size = self.form.shape
        pixels = read_image(file.path, (size[0], size[1]), part=self.own.shape[1:])
        # Grey students see a coloured picture as grey, and so does the teacher.
        pixels = to_channels(pixels, min(channels, self.own.shape[0]))
        return np.ascontiguousarray(np.broadcast_to(pixels, self.form.shape))


@dataclass(frozen=True, eq=False)
class Originals:
    """The files of a loader's images, if they are known, and the form in which students get them.

    Attributes:
        files: one for each image of the loader, in order; None for an image without a file.
        form: the form of the students' images.
        digest: names all files of the source, with their sizes and times of change.
    """

    files: Files
    form: InputForm
    digest: str


def originals(
    dataset: Dataset, split: Split, rows: NDArray[np.int64] | None, others: Unlabelled | None = None
) -> Originals | None:
    """Returns the files of some images of a split, followed by images without labels; None without any file.

    Args:
        dataset: the data set.
        split: its split.
        rows: (N,) int64, the positions of the images in the split; all by default.
        others: images without labels.
    """
    after = [] if others is None else others.own_files
    files = files_of(split.files, range(len(split)) if rows is None else rows.tolist()) + after
    if not any(files):
        return None
    lines = [f"{file.path.name} {file.size} {file.changed}" for file in [*split.files, *after] if file]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    return Originals(files, own_form(dataset), digest)


def own_form(dataset: Dataset) -> InputForm:
    """Returns the form of a data set's images as its students get them."""
    return InputForm(dataset.image_shape, dataset.normalization)
