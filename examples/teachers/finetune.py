"""Fine-tunes a network of timm's on a folder of pictures, and writes it as an ONNX file for kdtrain.

It needs PyTorch, timm, onnx and onnxscript, and nothing of kdtrain: ``examples/teachers/run`` makes an
environment for it. Training, held-out and test images are those of
``kdtrain fit --mode teacher --dataset folder:DIR`` with the same seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from PIL import Image, ImageOps
from torch import nn

Files = list[tuple[Path, int]]
"""Image files, each with the number of its class."""

SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp")
SUFFIXES += (".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
LARGEST_SIDE = 256  # pixels; kdtrain takes no larger images


def main() -> int:
    """Trains the network's head, then all of it, and writes the file."""
    options = flags()
    classes, train, validation, test = split(options.folder, options.val_size, options.seed)
    print(
        f"{len(train):,} training, {len(validation):,} held-out, {len(test):,} test images, "
        f"{len(classes)} classes"
    )
    torch.manual_seed(options.seed)
    network = create(options.name, options.weights, len(classes))
    settings = timm.data.resolve_model_data_config(network)
    side = min(options.image_size or settings["input_size"][-1], LARGEST_SIDE)
    model = Pixels(network, settings["mean"], settings["std"])
    head = list(network.get_classifier().parameters())
    for name, parameters, epochs, rate in (
        ("head", head, options.head_epochs, options.head_lr),
        ("all", list(network.parameters()), options.epochs, options.lr),
    ):
        fit(model, parameters, name, epochs, rate, train, validation, side, options)
    held_out, on_test = (accuracy(model, files, side, options.batch_size) for files in (validation, test))
    print(f"accuracy: {held_out:.2%} of the held-out images, {on_test:.2%} of the test images")
    card = {
        "mode": "teacher",
        "arch": f"timm:{options.name}",
        "dataset": f"folder:{options.folder.resolve()}",
        "image_shape": [3, side, side],
        "classes": classes,
        "mean": list(settings["mean"]),
        "std": list(settings["std"]),
        "metrics": {"val/accuracy": held_out},
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "epochs": options.head_epochs + options.epochs,
        "images": len(train),
        "held_out": "",
        "temperature": 0.0,
        "precision": "float32",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    export(model, card, options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes. Next:")
    print(f"  kdtrain fit --mode compare --dataset folder:{options.folder} --image-size 32 \\")
    print(f"      --teacher-checkpoint {options.out}")
    return 0


def flags() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(prog="finetune.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("name", metavar="NAME", help="timm's name of the network, such as resnet18.a1_in1k")
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="class folders, perhaps in train, val and test"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("teacher.onnx"), metavar="FILE", help="[teacher.onnx]"
    )
    parser.add_argument(
        "--weights", default="hub", metavar="hub|none|FILE",
        help="pretrained weights: timm's from its hub, none, or a file of them [hub]",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="pixels a side, up to 256 [the network's]"
    )
    parser.add_argument(
        "--head-epochs", type=int, default=3, metavar="N", help="epochs of the head alone [3]"
    )
    parser.add_argument(
        "--epochs", type=int, default=7, metavar="N", help="epochs of all weights after that [7]"
    )
    parser.add_argument(
        "--head-lr", type=float, default=3e-3, metavar="X", help="learning rate of the head [0.003]"
    )
    parser.add_argument(
        "--lr", type=float, default=3e-4, metavar="X", help="learning rate of all weights [0.0003]"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="[32]")
    parser.add_argument("--val-size", type=int, metavar="N", help="held-out images [as kdtrain's]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="as kdtrain's [0]")
    options = parser.parse_args()
    if options.image_size is not None and not 1 <= options.image_size <= LARGEST_SIDE:
        parser.error(f"--image-size {options.image_size}: it must be from 1 to {LARGEST_SIDE}")
    return options


def split(folder: Path, val_size: int | None, seed: int) -> tuple[list[str], Files, Files, Files]:
    """Returns the classes, and the training, held-out and test images, as kdtrain divides a folder.

    Args:
        folder: holds train/CLASS/* and perhaps val/CLASS/* and test/CLASS/*, or only the class folders.
        val_size: number of held-out images; by default a sixth of the training images, at most 5,000.
        seed: chooses the held-out images.
    """
    source = folder / "train" if (folder / "train").is_dir() else folder
    classes = subfolders(source)
    if len(classes) < 2:
        sys.exit(f"{source} has {len(classes)} class folders: it needs at least two.")
    train, validation, test = (
        images(folder / part, classes) if (folder / "train").is_dir() and (folder / part).is_dir() else []
        for part in ("train", "val", "test")
    )
    train = train or images(folder, classes)
    if not test:
        train, test = without_fifth(train, len(classes))
    if not validation:
        size = min(5000, len(train) // 6) if val_size is None else val_size
        order = np.random.default_rng([seed, 0x56414C]).permutation(len(train))
        validation = [train[index] for index in sorted(order[:size])]
        train = [train[index] for index in sorted(order[size:])]
    return classes, train, validation, test


def subfolders(folder: Path) -> list[str]:
    """Returns the sorted names of the folders in a folder, without hidden ones."""
    if not folder.is_dir():
        sys.exit(f"{folder} is no folder.")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def images(folder: Path, classes: Sequence[str]) -> Files:
    """Returns the image files in class folders, in order."""
    found: Files = []
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            files = (path for path in (folder / name).iterdir() if path.is_file() and path.name[0] != ".")
            chosen = sorted(path.name for path in files if path.suffix.lower() in SUFFIXES)
            found += [(folder / name / file, label) for file in chosen]
    return found


def without_fifth(files: Files, classes: int) -> tuple[Files, Files]:
    """Returns the images without a fifth of each class, and these: the test images, chosen by their names."""
    chosen = set()
    for number in range(classes):
        of_class = sorted(
            (file for file in files if file[1] == number),
            key=lambda file: hashlib.sha256(os.fsencode(file[0].name)).digest(),
        )
        chosen.update(of_class[: max(len(of_class) // 5, int(len(of_class) > 1))])
    return [file for file in files if file not in chosen], [file for file in files if file in chosen]


def create(name: str, weights: str, classes: int) -> nn.Module:
    """Returns a network of timm's with a new head, and pretrained weights below it."""
    overlay = {} if weights in ("hub", "none") else {"file": weights}
    if overlay and not Path(weights).is_file():
        sys.exit(f"--weights {weights}: there is no such file.")
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=weights != "none", num_classes=classes, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # timm and its hub raise several types
        remedy = " Give --weights FILE or --weights none." if weights == "hub" else ""
        sys.exit(f"timm cannot make {name} with --weights {weights}: {str(error).splitlines()[0]}.{remedy}")
    return network


class Pixels(nn.Module):
    """A network that takes pixels 0..255: the normalisation is a part of it.

    Args:
        network: takes normalised images, (B, 3, H, W).
        mean: per channel, of pixels divided by 255.
        std: per channel, of pixels divided by 255.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(-1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns logits, (B, classes), of pixels, (B, 3, H, W) float32."""
        logits: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def fit(
    model: Pixels,
    parameters: Sequence[nn.Parameter],
    name: str,
    epochs: int,
    rate: float,
    train: Files,
    validation: Files,
    side: int,
    options: argparse.Namespace,
) -> None:
    """Trains some parameters, the others stay as they are; prints the held-out accuracy of each epoch."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.02)
    steps = epochs * -(-len(train) // options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(train)).tolist()
        model.train()
        for pixels, labels in batches([train[index] for index in order], side, options.batch_size, flip=True):
            if len(labels) == 1:
                continue  # batch normalisation has no variance of one image
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            schedule.step()
        share = accuracy(model, validation, side, options.batch_size)
        print(f"{name} {epoch}/{epochs}  held-out accuracy {share:.2%}", flush=True)


def batches(
    files: Files, side: int, size: int, *, flip: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields pixels, (B, 3, side, side) float32 from 0 to 255, and labels, (B,); half mirrored on wish."""
    for start in range(0, len(files), size):
        chosen = files[start : start + size]
        pixels = torch.stack([read(path, side) for path, _ in chosen])
        if flip:
            mirrored = torch.rand(len(chosen)) < 0.5
            pixels[mirrored] = pixels[mirrored].flip(3)
        yield pixels, torch.tensor([label for _, label in chosen])


def read(path: Path, side: int) -> torch.Tensor:
    """Returns the square in the middle of an image, (3, side, side) float32, as kdtrain resizes it."""
    with Image.open(path) as file:
        file.draft(None, (side, side))
        image = ImageOps.exif_transpose(file).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    square = ImageOps.fit(white.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square, np.float32).transpose(2, 0, 1).copy())


def accuracy(model: nn.Module, files: Files, side: int, size: int) -> float:
    """Returns the share of images, 0 to 1, that are recognised; NaN without images."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(pixels).argmax(1) == labels).sum()) for pixels, labels in batches(files, side, size)
        )
    return right / len(files) if files else float("nan")


def export(model: nn.Module, card: dict[str, Any], path: Path) -> None:
    """Writes an ONNX file that takes pixels 0..255 and holds kdtrain's card; it gets its name at last."""
    partial = path.with_name(f".{path.name}.tmp")
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, *card["image_shape"]),),
        partial,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    file = onnx.load(partial)
    del file.metadata_props[:]
    onnx.helper.set_model_props(file, {"kdtrain": json.dumps(card, sort_keys=True)})
    onnx.save(file, partial)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
