"""Responses of the service: the models' probabilities, or a status and the reason of a refusal."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from kdtrain.cli import main
from kdtrain.data.dataset import Dataset
from kdtrain.data.images.model_input import model_input
from kdtrain.deploy.onnx.process import OnnxModel
from tests.deploy.serve.conftest import JSON, PNG, Service, as_json, encoded


def test_predictions_for_an_image_file_are_those_of_infer(
    service: Service, exported: Path, photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "7.png").write_bytes(encoded(photo))
    for name in ("student", "teacher"):
        words = ["infer", str(tmp_path / "7.png"), "--checkpoint", str(exported / f"{name}.safetensors")]
        capsys.readouterr()
        assert main([*words, "--temperature", "3", "--image-save-dir", str(tmp_path), "--json"]) == 0
        (expected,) = json.loads(capsys.readouterr().out)
        answer = service.ask("/predict?temperature=3", encoded(photo), PNG)
        assert answer.status == 200
        entry = answer.content if name == "student" else answer.content["teacher"]
        assert entry["model"] == name
        (prediction,) = entry["predictions"]
        assert prediction["class"] == expected["prediction"] == "7"
        assert prediction["temperature"] == 3
        assert answer.content["classes"] == list(expected["probabilities"])
        for key in ("probabilities", "softened"):
            assert prediction[key] == pytest.approx(list(expected[key].values()), abs=1e-5)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_image_files_of_every_format_are_prepared_alike(
    service: Service, photo: Image.Image, kind: str
) -> None:
    content = encoded(photo, kind)
    answer = service.ask("/predict?pixels", content, {"Content-Type": "application/octet-stream"}).content
    seen = model_input(content, "mnist", (1, 28, 28))
    assert answer["pixels"] == [seen.tolist()]
    assert answer["predictions"][0]["class"] == "7"


def test_probabilities_are_the_softmax_of_logits(service: Service, exported: Path, mnist: Dataset) -> None:
    images = mnist.test.images[:20]
    answer = service.ask("/predict?temperature=2.5", as_json(images), JSON).content
    for name, entry in (("student", answer), ("teacher", answer["teacher"])):
        logits = OnnxModel.load(exported / f"{name}.onnx").logits(images).astype(np.float64)
        for row, prediction in zip(logits, entry["predictions"], strict=True):
            assert prediction["probabilities"] == pytest.approx(softmax(row), rel=1e-4)
            assert prediction["softened"] == pytest.approx(softmax(row / 2.5), rel=1e-4)
            assert prediction["class"] == str(row.argmax())
    usual = service.ask("/predict", as_json(images[:1]), JSON).content["predictions"][0]
    assert usual["temperature"] == 4
    assert usual["softened"] == pytest.approx(softmax(np.log(usual["probabilities"]) / 4), rel=1e-4), (
        "which is how the page softens"
    )


def test_one_image_may_come_without_brackets_around_it(service: Service, mnist: Dataset) -> None:
    image = mnist.test.images[3]
    shapes = (image[0], image, image[None])
    answers = [service.ask("/predict?pixels", as_json(pixels), JSON) for pixels in shapes]
    assert all(answer.content == answers[0].content for answer in answers)
    again = service.ask("/predict?pixels", as_json(np.array(answers[0].content["pixels"])), JSON)
    assert again.content == answers[0].content
    two = service.ask("/predict", as_json(mnist.test.images[:2, 0]), JSON).content
    assert len(two["predictions"]) == 2


def test_colour_images_are_not_cropped_to_ink(pet_service: Service, photo: Image.Image) -> None:
    answer = pet_service.ask("/predict?pixels", encoded(photo), PNG).content
    assert answer["pixels"] == [model_input(encoded(photo), "folder:pets", (3, 16, 12)).tolist()]
    assert "teacher" not in answer
    assert answer["predictions"][0]["temperature"] == 2.5, "the temperature of the distillation"
    model = pet_service.ask("/model").content
    assert model["classes"][1] == "dog"
    assert (model["drawing"], model["teacher"], model["softening"]) == (False, None, 2.5)


def test_model_is_described(service: Service) -> None:
    model = service.ask("/model").content
    assert (model["model"], model["arch"], model["dataset"]) == ("student", "student_mlp", "mnist")
    assert (model["image_shape"], model["classes"]) == ([1, 28, 28], list("0123456789"))
    assert (model["drawing"], model["teacher"]["arch"]) == (True, "hinton_800")
    assert service.ask("/healthz").content == {"status": "ok"}


def bomb() -> bytes:
    """Returns an image file of a few kilobytes with 100 million pixels."""
    return encoded(Image.new("1", (10_000, 10_000)))


DIGIT: list[list[float]] = [[0.0] * 28] * 28
REFUSED: dict[str, tuple[int, Any, dict[str, str], str]] = {
    "no JSON": (400, b'{"pixels": [1,', JSON, "JSON"),
    "not UTF-8": (400, b'{"pixels\xff": 1}', JSON, "JSON"),
    "deep JSON": (400, b"[" * 100_000, JSON, "JSON"),
    "not a number": (400, b'{"pixels": [NaN]}', JSON, "NaN"),
    "no pixels": (422, b"[]", JSON, '{"pixels": ...}'),
    "one value": (422, b'{"pixels": 1}', JSON, "[1][28][28]"),
    "another size": (422, as_json(np.zeros((1, 27, 28))), JSON, "[1][27][28]"),
    "no image": (422, b'{"pixels": []}', JSON, "[0]"),
    "ragged": (422, b'{"pixels": [[1, 2], [3]]}', JSON, "length"),
    "words": (422, b'{"pixels": ["seven"]}', JSON, "numbers"),
    "huge": (422, b'{"pixels": [1' + b"0" * 400 + b"]}", JSON, "numbers"),
    "too bright": (422, json.dumps({"pixels": [[256.0] * 28] * 28}).encode(), JSON, "0 to 255"),
    "no image file": (422, b"seven", PNG, "PNG"),
    "half an image file": (422, encoded(Image.new("L", (99, 99)))[:-30], PNG, "cannot be read"),
    "blank": (422, encoded(Image.new("L", (99, 99), 200)), PNG, "digit"),
    "bomb": (422, bomb(), PNG, "50 megapixels"),
    "a form": (415, b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type: image/png"),
    "no type": (415, b"seven", {}, "Content-Type: image/png"),
    "too long": (413, bytes(10_000_001), PNG, "10,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_request_gets_a_status_and_a_reason(service: Service, case: str) -> None:
    status, body, headers, named = REFUSED[case]
    answer = service.ask("/predict", body, headers)
    assert answer.status == status
    assert set(answer.content) == {"error"}
    assert named in answer.content["error"]


@pytest.mark.parametrize("temperature", ["0", "-1", "nan", "inf", "1e9", "warm", ""])
def test_temperature_out_of_range_is_refused(service: Service, temperature: str) -> None:
    answer = service.ask(f"/predict?temperature={temperature}", as_json(np.array(DIGIT)), JSON)
    assert answer.status == 422
    assert "0.01 to 1000" in answer.content["error"]


def test_other_paths_and_methods_are_refused(service: Service) -> None:
    absent = service.ask("/pictures")
    assert absent.status == 404
    for path in ("/pictures", "/predict", "/model", "/healthz"):
        assert path in absent.content["error"]
    for path, method, allowed in (("/predict", "GET", "POST"), ("/model", "DELETE", "GET, HEAD")):
        refused = service.ask(path, method=method)
        assert refused.status == 405
        assert set(refused.headers["Allow"].split(", ")) == set(allowed.split(", "))
        assert path in refused.content["error"]
        assert method in refused.content["error"]
    assert service.ask("/../cli/serve.py").status == 404


def test_only_addresses_and_own_names_are_served(service: Service) -> None:
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000", "192.168.1.5:80", "LOCALHOST"):
        assert service.ask("/model", headers={"Host": host}).status == 200, host
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1"):
        answer = service.ask("/model", headers={"Host": host})
        assert answer.status == 400, host
        assert "Host" in answer.content["error"]


def test_responses_have_security_headers(service: Service) -> None:
    for path, status in (("/healthz", 200), ("/nothing", 404)):
        answer = service.ask(path)
        assert answer.status == status
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_oneflow_is_not_in_the_process(service: Service, photo: Image.Image) -> None:
    assert service.ask("/predict", encoded(photo), PNG).status == 200
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    service_maps, *child_maps = (Path(f"/proc/{process}/maps").read_text() for process in (pid, *children))
    assert "onnxruntime" not in service_maps, "untrusted files are computed by processes with limits"
    assert ["onnxruntime" in maps for maps in child_maps] == [True, True]
    assert not any("oneflow" in maps for maps in (service_maps, *child_maps))


def test_bytes_that_are_not_http_are_refused(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
        connection.sendall(b"\x16\x03\x01 this is no request\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 400
    assert service.ask("/healthz").status == 200
