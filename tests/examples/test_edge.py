"""examples/edge: it runs without kdtrain and oneflow."""

from __future__ import annotations

import gzip
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdtrain import OnnxModel, build_model, flow, model_card
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.export.onnx_file import to_onnx
from tests.tools import ROOT

PROGRAM = ROOT / "examples" / "edge" / "predict.py"
PACKAGES = ("numpy", "numpy.libs", "onnxruntime", "onnxruntime.libs")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment, with the packages that are installed here as links: no network, no second copy."""
    folder = tmp_path_factory.mktemp("edge") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None
    assert numpy.origin is not None
    installed = Path(numpy.origin).parent.parent
    (target,) = folder.glob("lib/python*/site-packages")
    for name in PACKAGES:
        (target / name).symlink_to(installed / name)
    return folder / "bin" / "python"


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


def expected(model: OnnxModel, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[str]:
    """The lines, from the definition of the softmax in float64."""
    lines = []
    for number, row in enumerate(model.logits(images[:, np.newaxis]).astype(np.float64)):
        shares = np.exp(row) / np.exp(row).sum()
        best = shares.argsort()[::-1][:3]
        shown = "  ".join(f"{model.card.classes[index]} {shares[index]:.1%}" for index in best)
        lines.append(f"image {number}: {shown}")
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
        assert finished.stdout.splitlines() == expected(model, images[:3])
    (tmp_path / "digit.pgm").write_bytes(b"P5\n# a digit\n28 28\n255\n" + images[3].tobytes())
    finished = predict(python, model.path, tmp_path / "digit.pgm")
    assert finished.stdout.splitlines() == expected(model, images[3:])


def test_normalised_input_is_made_by_the_program(python: Path, mnist: Dataset, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx", mnist, normalized_input=True)
    np.save(tmp_path / "images.npy", mnist.test.images[:4, 0])
    finished = predict(python, model.path, tmp_path / "images.npy")
    assert finished.stdout.splitlines() == expected(model, mnist.test.images[:4, 0])


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
    assert finished.stdout.splitlines() == expected(loaded, mnist.test.images[:3, 0])
