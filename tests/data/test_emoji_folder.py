"""``scripts/emoji`` makes a folder that ``--dataset folder:DIR`` reads, from packages as npm packs them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtrain.data.folder import load_image_files
from scripts.emoji_folder import PARTS, write_part
from tests.tools import ROOT

DRAWINGS = {
    "1f34e.png": ("Food & Drink", True),
    "1f34f.png": ("Food & Drink", True),
    "1f34b.png": ("Food & Drink", False),  # the vendor has not drawn it
    "1f44b.png": ("People & Body", True),
    "1f9b0.png": ("Component", True),
}
SKIN_TONE = "1f44b-1f3fb.png"


def write_package(path: Path, vendor: str) -> Path:
    """Writes a package in npm's layout, with drawings whose right half is transparent."""
    pixels = np.full((64, 64, 4), (200, 0, 0, 255), np.uint8)
    pixels[:, 32:] = 0
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "png")
    variations = {"1F3FB": {"image": SKIN_TONE, f"has_img_{vendor}": True}}
    entries = [
        {"image": name, "category": category, f"has_img_{vendor}": is_drawn, "skin_variations": variations}
        for name, (category, is_drawn) in DRAWINGS.items()
    ]
    files = {"package/emoji.json": json.dumps(entries).encode()} | {
        f"package/img/{vendor}/64/{name}": image.getvalue()
        for name in [*DRAWINGS, SKIN_TONE]
        if DRAWINGS.get(name, ("", True))[1]
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_folder_has_a_class_for_each_category_and_no_skin_tones(tmp_path: Path) -> None:
    for part, vendor in PARTS.items():
        counts = write_part(
            tmp_path / "emoji" / part, write_package(tmp_path / f"{part}.tgz", vendor), vendor
        )
        assert counts == {"food-drink": 2, "people-body": 1}
    data = load_image_files("folder", tmp_path / "emoji", tmp_path / "cache")
    assert data.classes == ("food-drink", "people-body")
    for split in (data.train, data.test):
        assert split.labels.tolist() == [0, 0, 1]
        assert split.images.shape == (3, 3, 64, 64)
        assert split.images[0, :, 0, [0, 63]].tolist() == [[200, 0, 0], [255, 255, 255]]  # white behind


def refusal(folder: Path, path: str) -> str:
    """Returns what the script prints when it refuses."""
    script = ROOT / "scripts" / "emoji_folder.py"
    result = subprocess.run(
        [sys.executable, script, folder],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def test_without_npm_the_script_names_it(tmp_path: Path) -> None:
    assert "npm is not installed" in refusal(tmp_path / "emoji", str(tmp_path))


def test_existing_folder_stays(tmp_path: Path) -> None:
    assert f"{tmp_path} exists" in refusal(tmp_path, os.environ["PATH"])


@pytest.mark.parametrize(
    ("script", "message"), [("exit 1", "check the network"), ("echo other > $4/$FILE", "another emoji-data")]
)
def test_download_that_fails_leaves_nothing(tmp_path: Path, script: str, message: str) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\nFILE=emoji-datasource-google-16.0.0.tgz\n{script}\n")
    npm.chmod(0o755)
    assert message in refusal(tmp_path / "emoji", str(npm.parent))
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
