"""Image classification with a model that `kdtrain export` wrote; it needs onnxruntime and NumPy only.

    python predict.py model.onnx t10k-images-idx3-ubyte.gz --first 3
    python predict.py model.onnx digit.pgm

Images: an IDX file, plain or gzipped; a .npy array of bytes, (H, W), (N, H, W) or (N, H, W, C); or a
binary PGM or PPM. The images must have the size that the model was trained on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime


def read_images(path: str) -> npt.NDArray[np.uint8]:
    """Returns the images in a file, uint8 (N, H, W) or (N, H, W, C)."""
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
        raise ValueError("it is neither IDX, .npy, PGM nor PPM")
    if images.dtype != np.uint8 or not 2 <= images.ndim <= 4:
        raise ValueError(f"it holds {images.dtype} of shape {images.shape}, not uint8 images")
    return images[np.newaxis] if images.ndim == 2 else images


def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the softmax of each row, (N, C) float32, of (N, C) float32 logits."""
    powers: npt.NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def main() -> int:
    """Prints the three most probable classes of each image; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="an .onnx file that kdtrain wrote")
    parser.add_argument("images", help="IDX, .npy, PGM or PPM")
    parser.add_argument("--first", type=int, default=10, help="how many images to take [10]")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["kdtrain"])
    name = session.get_inputs()[0].name
    try:
        images = read_images(options.images)[: options.first]
    except (OSError, ValueError) as error:
        print(f"{options.images} cannot be read: {error}.", file=sys.stderr)
        return 1
    inputs = images[:, np.newaxis] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    if list(inputs.shape[1:]) != card["image_shape"]:
        size = f"images are {list(inputs.shape[1:])}, the model takes {card['image_shape']}"
        print(f"{options.images}: {size}.", file=sys.stderr)
        return 1
    inputs = inputs.astype(np.float32)
    if name == "inputs":  # exported with --normalized-input
        mean = np.float32(card["mean"]).reshape(-1, 1, 1)
        std = np.float32(card["std"]).reshape(-1, 1, 1)
        inputs = (inputs / 255 - mean) / std

    for number, row in enumerate(probabilities(session.run(["logits"], {name: inputs})[0])):
        best = row.argsort()[::-1][:3]
        print(f"image {number}:", "  ".join(f"{card['classes'][index]} {row[index]:.1%}" for index in best))
    return 0


if __name__ == "__main__":
    sys.exit(main())
