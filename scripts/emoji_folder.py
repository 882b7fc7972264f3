"""A folder of emoji: ``train`` as Google draws them, ``test`` as Twitter does, in a folder for each class.

A class is a category of Unicode's, such as "Food & Drink". "Component" (hair and skin tones) is left out:
it has 5 images. Both vendors draw the same concepts, so the test images show how well a network
classifies another artist's drawings of them. They do not show how well it classifies new concepts.

Variants in other skin tones are left out. Six drawings of one gesture differ in one colour: with some of
them in training and others held out, held-out accuracy would count images that are almost known. They
would also make "People & Body" three fifths of all images.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NoReturn

VERSION = "16.0.0"
PACKAGES = {
    "google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "twitter": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}
"""The SHA-256 of each vendor's package, as npm serves it."""
PARTS = {"train": "google", "test": "twitter"}
"""The vendor whose drawings each part of the folder holds."""
LEFT_OUT = "Component"


def main() -> None:
    """Builds the folder that the command line names, and prints its contents."""
    parser = argparse.ArgumentParser(
        prog="scripts/emoji",
        description="Builds a folder of emoji, 64x64 pixels in 9 classes, for --dataset folder:DIR. "
        "npm downloads about 140 MB into a temporary folder.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    folder: Path = parser.parse_args().folder
    if folder.exists():
        _fail(f"{folder} exists: name a new folder, or remove it.")
    if shutil.which("npm") is None:
        _fail("npm is not installed, and it downloads the images: install Node.js (https://nodejs.org).")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        parts = Path(work, "parts")
        counts = {
            part: write_part(parts / part, _download(vendor, Path(work)), vendor)
            for part, vendor in PARTS.items()
        }
        parts.rename(folder)  # an interrupted run leaves no folder that lacks images
    print(_summary(folder, counts))


def write_part(folder: Path, package: Path, vendor: str) -> collections.Counter[str]:
    """Writes the images of one vendor, ``folder/CLASS/NAME.png``, and returns their number by class.

    Args:
        folder: a new folder.
        package: the package ``emoji-datasource-VENDOR`` as npm has packed it (.tgz).
        vendor: whose drawings the package has.

    Raises:
        KeyError: the package lacks one of the images that its list says it has.
    """
    counts: collections.Counter[str] = collections.Counter()
    with tarfile.open(package) as archive:
        for file_name, category in _drawings(_read(archive, "package/emoji.json"), vendor).items():
            path = folder / class_name(category) / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_read(archive, f"package/img/{vendor}/64/{file_name}"))
            counts[path.parent.name] += 1
    return counts


def class_name(category: str) -> str:
    """Returns the name of a category's folder: "food-drink" for "Food & Drink"."""
    return category.lower().replace(" & ", "-")


def _drawings(emoji: bytes, vendor: str) -> dict[str, str]:
    """Returns the category of each image file; skin tones are no entries of their own in this list."""
    return {
        Path(entry["image"]).name: entry["category"]
        for entry in json.loads(emoji)
        if entry["category"] != LEFT_OUT and entry[f"has_img_{vendor}"]
    }


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _download(vendor: str, folder: Path) -> Path:
    """Returns the package of a vendor's drawings."""
    name = f"emoji-datasource-{vendor}"
    print(f"downloading {name} {VERSION}", file=sys.stderr)
    package = f"{name}@{VERSION}"
    words = ["npm", "pack", "--loglevel=error", "--pack-destination", str(folder), package]
    if subprocess.run(words, stdout=subprocess.DEVNULL).returncode:
        _fail(f"npm has not downloaded {package} (see above): check the network, and npm's registry.")
    path = folder / f"{name}-{VERSION}.tgz"
    if hashlib.sha256(path.read_bytes()).hexdigest() != PACKAGES[vendor]:
        _fail(f"npm's registry serves another {package} than the published one: choose another registry.")
    return path


def _summary(folder: Path, counts: dict[str, collections.Counter[str]]) -> str:
    rows = [("class", *counts)]
    rows += [(name, *(str(part[name]) for part in counts.values())) for name in sorted(counts["train"])]
    rows += [("all", *(str(part.total()) for part in counts.values()))]
    lines = [f"{name:20}" + "".join(f"{cell:>8}" for cell in cells) for name, *cells in rows]
    command = f"scripts/kdtrain fit --mode compare --dataset {shlex.quote(f'folder:{folder}')}"
    return "\n".join([*lines, "", command])


def _fail(message: str) -> NoReturn:
    sys.exit(f"scripts/emoji: {message}")


if __name__ == "__main__":
    main()
