"""Trains small MNIST networks in other frameworks and writes them as the ONNX files of the tests.

It needs PyTorch, onnxscript, Keras (with PyTorch behind it), scikit-learn, skl2onnx and onnxruntime, none of
which kdtrain needs: run it with the Python of an environment that has them, on the files of MNIST that
kdtrain contains.
"""

from __future__ import annotations

import argparse
import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ["KERAS_BACKEND"] = "torch"

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 12_000  # of training
MEAN, STD = 0.1307, 0.3081


def idx(name: str) -> Any:
    """Returns the values in a file of MNIST: (N, 28, 28) or (N,) uint8."""
    content = gzip.decompress((ROOT / "kdtrain" / "data" / "mnist" / f"{name}.gz").read_bytes())
    values = np.frombuffer(content, np.uint8)
    return values[16:].reshape(-1, 28, 28) if "images" in name else values[8:]


def pytorch(folder: Path, images: Any, labels: Any) -> None:
    """Writes logits of normalised images, channels first: any batch, and batches of 8 with weights beside."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    inputs = torch.tensor((images[:, None] / 255 - MEAN) / STD, dtype=torch.float32)
    targets = torch.tensor(labels.astype(np.int64))
    for _ in range(3):
        for rows in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    model.eval()
    torch.onnx.export(
        model,
        (inputs[:2],),
        str(folder / "torch.onnx"),
        input_names=["x"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        dynamo=True,
    )
    torch.onnx.export(
        model,
        (inputs[:8],),
        str(folder / "torch_of_8.onnx"),
        input_names=["x"],
        output_names=["scores"],
        external_data=True,
        dynamo=True,
    )


def int8(folder: Path, images: Any) -> None:
    """Writes PyTorch's network in 8 bits."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            few = ((images[:200, None] / 255 - MEAN) / STD).astype(np.float32)
            self.batches = iter(np.split(few, 10))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    quantize_static(
        str(folder / "torch.onnx"), str(folder / "torch_int8.onnx"), Reader(), quant_format=QuantFormat.QDQ
    )


def keras(folder: Path, images: Any, labels: Any) -> None:
    """Writes probabilities of pixels 0..255, channels last."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images[..., None].astype("float32"), labels, epochs=3, batch_size=64, verbose=0)
    model.export(str(folder / "keras.onnx"), format="onnx", verbose=False)


def scikit_learn(folder: Path, images: Any, labels: Any) -> None:
    """Writes labels and probabilities of rows of pixels scaled to 0..1."""
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    rows = (images.reshape(len(images), -1) / 255).astype(np.float32)
    model = MLPClassifier((32,), max_iter=15, random_state=0).fit(rows, labels)
    made = to_onnx(model, rows[:1], options={"zipmap": False}, target_opset=17)
    (folder / "sklearn.onnx").write_bytes(made.SerializeToString())


def without_notes(file: Path) -> None:
    """Removes texts about the exporting program from a file, such as the lines that made each node."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    graph = model.graph
    for entry in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
    onnx.save(model, file)


def main() -> None:
    """Trains the networks and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the files")
    folder = parser.parse_args().folder
    images, labels = idx("train-images-idx3-ubyte")[:IMAGES], idx("train-labels-idx1-ubyte")[:IMAGES]
    pytorch(folder, images, labels)
    int8(folder, images)
    scikit_learn(folder, images, labels)
    keras(folder, images, labels)
    for file in folder.glob("*.onnx"):
        without_notes(file)


if __name__ == "__main__":
    main()
