"""examples/edge: it runs without kdtrain and oneflow."""

from __future__ import annotations

import gzip
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtrain import OnnxModel, build_model, flow, infer, model_card
from kdtrain.data.dataset import Dataset, Split
from kdtrain.deploy.export.onnx_file import to_onnx
from tests.tools import ROOT

PROGRAM = ROOT / "examples" / "edge" / "predict.py"
PACKAGES = ("numpy", "numpy.libs", "onnxruntime", "onnxruntime.libs")
PILLOW = ("PIL", "pillow.libs", "Pillow.libs")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """Makes an environment with links to the packages that are installed here: no network, no second copy."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None
    assert numpy.origin is not None
    installed = Path(numpy.origin).parent.parent
    (target,) = folder.glob("lib/python*/site-packages")
    for name in packages:
        if (installed / name).exists():
            (target / name).symlink_to(installed / name)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("edge") / "venv", PACKAGES)


@pytest.fixture(scope="module")
def python_with_pillow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("pillow") / "venv", (*PACKAGES, *PILLOW))


def write_model(path: Path, dataset: Dataset, *, normalized_input: bool = False) -> OnnxModel:
    """Exports a student with its first weights."""
    flow.manual_seed(0)
    network = build_model("student_mlp", dataset.image_shape, dataset.num_classes).eval()
    card = model_card("student", "student_mlp", dataset)
    path.write_bytes(to_onnx(network, card, normalized_input=normalized_input))
    return OnnxModel.load(path)


def predict(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", "-W", "error", str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def expected(
    path: Path, model: OnnxModel, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> list[str]:
    """The lines for a file, from the definition of the softmax in float64."""
    lines = []
    for number, row in enumerate(model.logits(images[:, np.newaxis]).astype(np.float64)):
        shares = np.exp(row) / np.exp(row).sum()
        best = shares.argsort()[::-1][:3]
        shown = "  ".join(f"{model.card.classes[index]} {shares[index]:.1%}" for index in best)
        lines.append(f"{path}: {shown}" if len(images) == 1 else f"{path}, image {number}: {shown}")
    return lines


def test_every_format_gives_the_model_s_probabilities(python: Path, mnist: Dataset, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx", mnist)
    images = mnist.test.images[:4, 0]
    idx = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes()
    (tmp_path / "images.idx").write_bytes(idx)
    (tmp_path / "images.idx.gz").write_bytes(gzip.compress(idx))
    np.save(tmp_path / "images.npy", images)
    for name in ("images.idx", "images.idx.gz", "images.npy"):
        finished = predict(python, model.path, tmp_path / name, "--first", "3")
        assert (finished.returncode, finished.stderr) == (0, "")
        assert finished.stdout.splitlines() == expected(tmp_path / name, model, images[:3])
    (tmp_path / "digit.pgm").write_bytes(b"P5\n# a digit\n28 28\n255\n" + images[3].tobytes())
    finished = predict(python, model.path, tmp_path / "digit.pgm")
    assert finished.stdout.splitlines() == expected(tmp_path / "digit.pgm", model, images[3:])


def test_normalised_input_is_made_by_the_program(python: Path, mnist: Dataset, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx", mnist, normalized_input=True)
    np.save(tmp_path / "images.npy", mnist.test.images[:4, 0])
    finished = predict(python, model.path, tmp_path / "images.npy")
    assert finished.stdout.splitlines() == expected(tmp_path / "images.npy", model, mnist.test.images[:4, 0])


def test_what_is_no_image_is_refused(python: Path, mnist: Dataset, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx", mnist)
    np.save(tmp_path / "small.npy", mnist.test.images[:2, 0, :20])
    np.save(tmp_path / "floats.npy", mnist.test.images[:2, 0] / 255)
    (tmp_path / "cut.idx").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]))
    (tmp_path / "text").write_text("a digit")
    for name, part in (
        ("small.npy", "[1, 20, 28]"), ("floats.npy", "float64"), ("cut.idx", "cannot be read"),
        ("text", "neither IDX"), ("none", "cannot be read"),
    ):  # fmt: skip
        finished = predict(python, model.path, tmp_path / name)
        assert (finished.returncode, finished.stdout) == (1, "")
        assert part in finished.stderr
        assert "Traceback" not in finished.stderr


def draw_pictures(folder: Path) -> list[Path]:
    """Writes pictures of all kinds; none is square, and hard edges tell one filter from another."""
    rng = np.random.default_rng(0)
    colours = np.kron(rng.integers(0, 256, (12, 17, 4), np.uint8), np.ones((9, 9, 1), np.uint8))
    rgb, rgba = Image.fromarray(colours[..., :3]), Image.fromarray(colours, "RGBA")
    upside_down = Image.Exif()
    upside_down[0x0112] = 6
    palette = rgb.quantize(8)
    rgb.save(folder / "colour.png")
    rgb.resize((1700, 1200)).save(folder / "large.jpg")
    rgb.save(folder / "turned.jpg", exif=upside_down)
    rgb.convert("CMYK").save(folder / "print.jpeg")
    rgba.save(folder / "transparent.png")
    palette.save(folder / "palette.png", transparency=3)
    rgb.convert("L").convert("1").save(folder / "bits.png")
    Image.fromarray(colours[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 256, (5, 9, 3), np.uint8)).save(folder / "small.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_get_the_answers_of_infer(channels: int, python_with_pillow: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    pictures = draw_pictures(tmp_path / "pictures")
    pixels = np.random.default_rng(1).integers(0, 256, (40, channels, 20, 24), np.uint8)
    split = Split(pixels, np.arange(40) % 3)
    model = write_model(tmp_path / "model.onnx", Dataset("folder:pets", split, split, ("cat", "dog", "fish")))
    predictions = infer(model.path, *pictures)
    shown = []
    for path, prediction in zip(pictures, predictions, strict=True):
        best = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        shown.append(f"{path}: " + "  ".join(f"{name} {share:.1%}" for name, share in best))
    finished = predict(python_with_pillow, model.path, *pictures)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == shown
    spec = importlib.util.spec_from_file_location("predict", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    for path, prediction in zip(pictures, predictions, strict=True):
        read = program.read_picture(str(path), (channels, 20, 24))
        np.testing.assert_array_equal(read, prediction.pixels[np.newaxis], str(path))


def test_several_files_are_answered_though_one_cannot_be_read(
    python_with_pillow: Path, python: Path, mnist: Dataset, tmp_path: Path
) -> None:
    """A model of MNIST takes a picture in the form of MNIST alone: no digit is looked for in a photo."""
    model = write_model(tmp_path / "model.onnx", mnist)
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(first, mnist.test.images[:2, 0])
    np.save(second, mnist.test.images[2:3, 0])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    digit, photo = tmp_path / "digit.png", tmp_path / "photo.png"
    Image.fromarray(mnist.test.images[3, 0]).save(digit)
    Image.fromarray(np.pad(mnist.test.images[4, 0], 30)).save(photo)
    finished = predict(
        python_with_pillow, model.path, first, tmp_path / "bad.png", second, digit, photo, tmp_path / "none"
    )
    images = mnist.test.images[:, 0]
    assert finished.stdout.splitlines() == [
        *expected(first, model, images[:2]),
        *expected(second, model, images[2:3]),
        *expected(digit, model, images[3:4]),
    ]
    assert finished.returncode == 1
    errors = finished.stderr.splitlines()
    assert [line.partition(" cannot be read: ")[0] for line in errors] == [
        str(tmp_path / name) for name in ("bad.png", "photo.png", "none")
    ]
    assert "28x28" in errors[1]
    assert "kdtrain infer" in errors[1]
    missing = predict(python, model.path, digit)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == f"{digit} cannot be read: PNG and JPEG need Pillow: pip install pillow.\n"


def test_environment_has_no_oneflow_and_is_small(python: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('oneflow', 'kdtrain', 'PIL') if u.find_spec(n)])"
    importable = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert importable.stdout == "[]\n"
    site = next(python.parent.parent.glob("lib/python*/site-packages"))
    size = sum(size_of((site / name).resolve()) for name in PACKAGES)
    print(f"onnxruntime and numpy: {size / 1e6:.0f} MB; oneflow and what it needs: 4,300 MB")
    assert size < 250e6


@pytest.mark.parametrize("page", ["docs/deployment.md", "examples/edge/README.md"])
def test_command_of_the_page_works(page: str, python: Path, mnist: Dataset, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^edge/bin/python (.*)$", text, re.MULTILINE)]
    ((program, model, images, *flags),) = commands
    assert Path(program).name == PROGRAM.name
    path = tmp_path / Path(model).name
    data = ROOT / "kdtrain" / "data" / "mnist" / f"{Path(images).stem}.gz"
    loaded = write_model(path, mnist)
    finished = predict(python, path, data, *flags)
    assert finished.stdout.splitlines() == expected(data, loaded, mnist.test.images[:3, 0])
