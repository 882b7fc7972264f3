"""Image classification with a model that `kdtrain export` wrote; it needs onnxruntime and NumPy only.

    python predict.py model.onnx t10k-images-idx3-ubyte.gz --first 3
    python predict.py model.onnx cat.jpg dog.png

Images of the size that the model was trained on: an IDX file, plain or gzipped; a .npy array of bytes,
(H, W), (N, H, W) or (N, H, W, C); or a binary PGM or PPM. PNG and JPEG files of any size need Pillow, too.
They are scaled and cropped as in training and by `kdtrain infer`. A model of MNIST, or of other grey IDX
files, takes them only in the form of its training images: `infer` alone looks for a digit in a photo.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime


def read_picture(path: str, shape: Sequence[int], scale: bool = True) -> npt.NDArray[np.uint8]:
    """Returns a PNG or JPEG file as `kdtrain infer` reads it, uint8 (1, C, H, W).

    Args:
        path: the file.
        shape: channels, height and width of the model's images.
        scale: whether a picture of another size is taken.
    """
    try:
        from PIL import Image, ImageOps  # here: other files do not need it
    except ImportError as error:
        raise ValueError("PNG and JPEG need Pillow: pip install pillow") from error
    channels, height, width = shape
    with Image.open(path, formats=("PNG", "JPEG")) as opened:
        if scale:
            opened.draft(None, (max(height, width),) * 2)  # a JPEG skips detail that scaling would remove
        image = ImageOps.exif_transpose(opened)
        if image.size != (width, height) and not scale:
            raise ValueError(
                f"it is {image.height}x{image.width}, the model takes {height}x{width}; "
                "only `kdtrain infer` looks for a digit in a photo"
            )
        if image.mode.startswith("I"):  # grey of 16 bits
            image = Image.fromarray(np.rint(np.asarray(image) * (255 / 65535)).astype(np.uint8))
        elif image.has_transparency_data:
            paper = Image.new("RGBA", image.size, "white")
            paper.alpha_composite(image.convert("RGBA"))
            image = paper
        image = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image).transpose(2, 0, 1)
    if channels == 1:  # ITU-R BT.601, rounded
        weights = np.array([299, 587, 114], np.uint32).reshape(3, 1, 1)
        pixels = ((pixels * weights).sum(0, keepdims=True) + 500) // 1000
    return pixels[np.newaxis].astype(np.uint8)


def read_arrays(path: str) -> npt.NDArray[np.uint8]:
    """Returns the images in any other file, uint8 (N, C, H, W)."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    images: npt.NDArray[Any]
    if data[:6] == b"\x93NUMPY":
        images = np.load(path, allow_pickle=False)
    elif data[:3] == b"\0\0\x08":  # IDX of unsigned bytes: the number of dimensions, then their lengths
        lengths = np.frombuffer(data, ">u4", count=data[3], offset=4)
        images = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(lengths)
    elif data[:2] in (b"P5", b"P6"):  # PGM and PPM: width, height, 255, then the bytes
        header = re.match(rb"P[56](?:\s+|#.*\n)+(\d+)(?:\s+|#.*\n)+(\d+)(?:\s+|#.*\n)+255\s", data)
        if header is None:
            raise ValueError("its header is not that of a PGM or PPM file with values up to 255")
        shape = (1, int(header[2]), int(header[1])) + ((3,) if data[:2] == b"P6" else ())
        images = np.frombuffer(data, np.uint8, offset=header.end()).reshape(shape)
    else:
        raise ValueError("it is neither IDX, .npy, PGM, PPM, PNG nor JPEG")
    if images.dtype != np.uint8 or not 2 <= images.ndim <= 4:
        raise ValueError(f"it holds {images.dtype} of shape {images.shape}, not uint8 images")
    if images.ndim == 2:
        images = images[np.newaxis]
    return images[:, np.newaxis] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def read_images(path: str, card: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Returns the images in a file, uint8 (N, C, H, W), of the shape of the model's images.

    Args:
        path: the file.
        card: the model's description of itself.
    """
    shape = card["image_shape"]
    with open(path, "rb") as file:
        is_picture = file.read(3) in (b"\x89PN", b"\xff\xd8\xff")
    shows_ink = shape[0] == 1 and ":" not in card["dataset"]  # as MNIST: only data in IDX files have no colon
    images = read_picture(path, shape, scale=not shows_ink) if is_picture else read_arrays(path)
    if list(images.shape[1:]) != shape:
        raise ValueError(f"images are {list(images.shape[1:])}, the model takes {shape}")
    return images


def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the softmax of each row, (N, C) float32, of (N, C) float32 logits."""
    powers: npt.NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def main() -> int:
    """Prints the three most probable classes of each image; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="an .onnx file that kdtrain wrote")
    parser.add_argument("images", nargs="+", help="IDX, .npy, PGM, PPM, PNG or JPEG")
    parser.add_argument("--first", type=int, default=10, help="how many images to take of a file [10]")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["kdtrain"])
    name = session.get_inputs()[0].name
    code = 0
    for path in options.images:
        try:
            inputs = read_images(path, card)[: options.first].astype(np.float32)
        except Exception as error:  # Pillow's decoders raise almost any exception
            print(f"{path} cannot be read: {error}.", file=sys.stderr)
            code = 1
            continue
        if name == "inputs":  # exported with --normalized-input
            mean = np.float32(card["mean"]).reshape(-1, 1, 1)
            std = np.float32(card["std"]).reshape(-1, 1, 1)
            inputs = (inputs / 255 - mean) / std
        for number, row in enumerate(probabilities(session.run(["logits"], {name: inputs})[0])):
            best = row.argsort()[::-1][:3]
            shown = "  ".join(f"{card['classes'][index]} {row[index]:.1%}" for index in best)
            print(f"{path}: {shown}" if len(inputs) == 1 else f"{path}, image {number}: {shown}")
    return code


if __name__ == "__main__":
    sys.exit(main())
