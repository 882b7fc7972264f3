"""Translations of oneflow's operations and of whole networks: the same logits in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from kdtrain import Conv2d, Dropout, KdtrainError, OnnxModel, flow
from kdtrain.data.dataset import Normalization
from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.models.networks import ImageShape
from kdtrain.models.registry import ARCHITECTURES, build_model
from kdtrain.store.card import ModelCard

nn = flow.nn
F = flow.nn.functional
SHAPE = (3, 8, 8)
CARD = ModelCard(
    "student", "none", "noise", SHAPE, tuple("abcde"), (0.5, 0.4, 0.6), (0.25, 0.3, 0.2),
    versions={"kdtrain": "0"},
)  # fmt: skip

Layer = Callable[[flow.Tensor], flow.Tensor]
Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Compute = Callable[[Images], Logits]


class Net(flow.nn.Module):
    """A convolution, the operation under test, and a head of a sum and a linear layer."""

    def __init__(self, tried: Layer) -> None:
        super().__init__()
        self.stem = Conv2d(3, 4, 3, padding=1)
        if isinstance(tried, nn.Module):
            self.tried = tried
        else:
            self.function = [tried]  # in a list: an attribute of a module would be registered
        self.head = nn.Linear(1, 5)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        x = self.stem(x)
        x = self.tried(x) if hasattr(self, "tried") else self.function[0](x)
        x = x.reshape(x.shape[0], -1)
        return self.head(x.sum(dim=1, keepdim=True) * 0.1)


def in_this_process(content: bytes) -> Compute:
    """Returns the function that a graph computes; ``OnnxModel`` would start a process for each graph."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    return lambda images: session.run(["logits"], {pixels.name: images.astype(np.float32)})[0]


def logits_of(
    network: flow.nn.Module, card: ModelCard, compute: Compute, counts: tuple[int, ...]
) -> Iterator[tuple[Logits, Logits]]:
    """Yields the logits of the exported network and of the network itself, for so many images of noise."""
    for count in counts:
        images = np.random.default_rng(count).integers(0, 256, (count, *card.image_shape)).astype(np.uint8)
        with flow.no_grad():
            expected = network(flow.tensor(Normalization(card.mean, card.std).apply(images))).numpy()
        assert np.abs(expected).max() > 1e-3, "a zero proves nothing"
        yield compute(images), expected


def stale(layer: flow.nn.BatchNorm2d) -> flow.nn.BatchNorm2d:
    """Returns a normalisation with statistics and weights other than 0 and 1."""
    for number, tensor in enumerate((layer.running_mean, layer.running_var, layer.weight, layer.bias)):
        tensor.copy_(flow.tensor([0.5 + 0.1 * number * channel for channel in range(4)]))
    return layer


LAYERS: dict[str, Callable[[], Layer]] = {
    "conv, stride 2": lambda: Conv2d(4, 6, 3, stride=2, padding=1),
    "conv, groups": lambda: Conv2d(4, 8, 3, groups=2, bias=False),
    "conv, dilation": lambda: nn.Conv2d(4, 2, 3, padding=2, dilation=2),
    "batch norm": lambda: stale(nn.BatchNorm2d(4)),
    "layer norm": lambda: nn.LayerNorm(8),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "linear on maps": lambda: nn.Linear(8, 3),
    "dropout": lambda: Dropout(0.5),
    "max pool": lambda: nn.MaxPool2d(2),
    "max pool, overlapping, ceil": lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    "avg pool": lambda: nn.AvgPool2d(2),
    "avg pool, without padding": lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "adaptive pool to 1": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive pool to 3x5": lambda: nn.AdaptiveAvgPool2d((3, 5)),
    "adaptive pool to more than there are": lambda: nn.AdaptiveAvgPool2d((11, 8)),
    "prelu": lambda: nn.PReLU(4, 0.3),
}
FUNCTIONS: dict[str, Layer] = {
    **{name: getattr(F, name) for name in ("relu", "sigmoid", "tanh", "gelu", "silu", "mish")},
    **{name: getattr(F, name) for name in ("hardswish", "hardsigmoid", "softsign")},
    **{name: getattr(flow, name) for name in ("ceil", "cos", "erf", "floor", "sin")},
    "reciprocal": lambda x: (x.abs() + 1).reciprocal(),
    "relu6": lambda x: F.relu6(x),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "softmax": lambda x: F.softmax(x, dim=-1) * 3,
    "log softmax": lambda x: F.log_softmax(x, dim=-1),
    "sum of two": lambda x: x + x.relu(),
    "difference": lambda x: x.relu() - 2 * x.sigmoid(),
    "quotient": lambda x: x / (x.sigmoid() + 1),
    "sum of a number": lambda x: x + 0.5,
    "product with a number": lambda x: x * 3,
    "power": lambda x: x**2,
    "a number minus": lambda x: 2.5 - x,
    "quotient by a number": lambda x: x / 4,
    "negative": lambda x: -x,
    "exp, log, sqrt": lambda x: (x.exp() + 1).log().sqrt(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "square": lambda x: x.square(),
    "minimum, maximum": lambda x: flow.maximum(flow.minimum(x, x * 2), x * 0.1),
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "mean over pixels": lambda x: x.mean(dim=(2, 3)),
    "variance": lambda x: x.var(dim=1, unbiased=False, keepdim=True),
    "variance, unbiased": lambda x: x.var(dim=1, unbiased=True, keepdim=True),
    "largest": lambda x: x.amax(dim=1),
    "smallest": lambda x: x.amin(dim=2, keepdim=True),
    "transpose": lambda x: x.permute(0, 2, 3, 1)[:, :4, :, :2],
    "flatten": lambda x: flow.flatten(x, 1)[:, :50],
    "slice with steps": lambda x: x[:, 1:, ::2, 1::3],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "chunks": lambda x: flow.cat([part * (i + 1) for i, part in enumerate(x.chunk(2, dim=1))], dim=1),
    "shuffle of channels": lambda x: x.reshape(x.shape[0], 2, 2, 8, 8).permute(0, 2, 1, 3, 4).reshape(
        x.shape[0], 4, 8, 8
    )[:, :3],
    "images and channels together": lambda x: x.reshape(x.shape[0] * 4, 1, 8, 8)
    .relu()
    .reshape(x.shape[0], 4, 8, 8),
    "unsqueeze, squeeze": lambda x: x.unsqueeze(1).relu().squeeze(1),
    "zeros per image": lambda x: flow.cat([x, flow.zeros(x.shape[0], 2, 8, 8) + 0.1], dim=1),
    "constant": lambda x: x * flow.ones(4, 1, 1),
    "expand": lambda x: x.mean(dim=(2, 3), keepdim=True).expand(x.shape[0], 4, 8, 8) * x,
    "product of two": lambda x: flow.matmul(x, x.transpose(2, 3)),
    "clamp from below": lambda x: x.clamp(min=-0.1),
    "clamp from above": lambda x: x.clamp(max=0.1),
    "padding with a value": lambda x: F.pad(x, (1, 1, 1, 1), value=0.5),
    "padding": lambda x: F.pad(x, (1, 2, 0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LAYERS, *FUNCTIONS])
def test_logits_are_the_same(name: str) -> None:
    flow.manual_seed(1)
    network = Net(LAYERS[name]() if name in LAYERS else FUNCTIONS[name]).eval()
    compute = in_this_process(to_onnx(network, CARD))
    for exported, expected in logits_of(network, CARD, compute, counts=(1, 7)):
        np.testing.assert_allclose(exported, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tried", "named"),
    [
        (lambda x: x.cumsum(dim=1), "cumsum"),
        (lambda x: x[1:], "slice"),
        (lambda x: x.reshape(x.shape[0] * 4, x.shape[0] * 4, -1) if x.shape[0] > 2 else x, "trace"),
    ],
)  # fmt: skip
def test_operations_without_a_translation_are_named(tried: Layer, named: str) -> None:
    with pytest.raises(KdtrainError, match=named):
        to_onnx(Net(tried).eval(), CARD)


def test_a_tensor_that_no_checkpoint_holds_is_refused() -> None:
    hidden = flow.ones(4, 1, 1) * 2
    with pytest.raises(KdtrainError, match="register_buffer"):
        to_onnx(Net(lambda x: x * hidden).eval(), CARD)


def test_control_flow_that_depends_on_values_is_refused() -> None:
    with pytest.raises(KdtrainError, match="traced"):
        to_onnx(Net(lambda x: x if x.sum().item() > 0 else -x).eval(), CARD)


def test_weights_keep_their_names_and_values() -> None:
    network = Net(nn.ReLU()).eval()
    file = onnx.load_model_from_string(to_onnx(network, CARD))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    for name, parameter in network.named_parameters():
        np.testing.assert_array_equal(tensors[name], parameter.numpy())


FACTORY = """
import oneflow.nn as nn

class Subclass(nn.Linear):
    def forward(self, x):
        return super().forward(x)

def tiny(image_shape, num_classes):
    channels, _, _ = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.LayerNorm(96), Subclass(96, num_classes),
    )
"""


def assert_same(arch: str, shape: ImageShape, path: Path) -> None:
    flow.manual_seed(0)
    network = build_model(arch, shape, 10).eval()
    random = np.random.default_rng(0)
    for name, buffer in network.named_buffers():
        if "running" in name:  # statistics that are not 0 and 1
            buffer.copy_(flow.tensor(random.uniform(0.5, 1.5, tuple(buffer.shape)).astype(np.float32)))
    card = ModelCard(
        "student", arch, "noise", shape, tuple("abcdefghij"), (0.3,) * shape[0], (0.2,) * shape[0]
    )
    path.write_bytes(to_onnx(network, card))
    ((exported, expected),) = logits_of(network, card, OnnxModel.load(path).logits, counts=(3,))
    np.testing.assert_allclose(exported, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_own_networks(arch: str, tmp_path: Path) -> None:
    assert_same(arch, (1, 28, 28), tmp_path / "net.onnx")


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1", "ghostnet"])
def test_networks_of_flowvision(name: str, tmp_path: Path) -> None:
    assert_same(f"flowvision:{name}", (3, 32, 32), tmp_path / "net.onnx")


def test_networks_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    assert_same("mine.py:tiny", (3, 20, 24), tmp_path / "net.onnx")
