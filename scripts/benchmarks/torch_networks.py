"""The training steps of networks in PyTorch, timed in both memory formats, and the machine's peak.

Runs in a separate environment with PyTorch and without kdtrain. Reads its task as JSON (``arch``,
``batch``, ``shape``, ``steps``, ``threads``) and prints JSON: the network's ``parameters``, ``seconds``
(the median step for each memory format) and ``peak``, in GFLOP/s.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time

import torch
from torch import nn
from torch_peer import FORMATS, Teacher, mlp

F = nn.functional
CLASSES, RATE, WARM_UP = 10, 1e-3, 3
PEAK_SIZE, PEAK_PRODUCTS = 2048, 8
ZOO = "flowvision:"


class Block(nn.Module):
    """A residual block of the networks of He et al. (2015), section 4.2, with a shortcut of option A."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.new_channels = stride, channels - channels_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns feature maps (N, C', H', W') of feature maps (N, C, H, W)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(x + y)


class ResNet(nn.Module):
    """The networks of He et al. (2015), section 4.2: the sizes of kdtrain's resnet8 and resnet20."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        layers: list[nn.Module] = [
            nn.Conv2d(channels, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        ]
        for channels_in, channels_out in ((16, 16), (16, 32), (32, 64)):
            layers.append(Block(channels_in, channels_out, channels_out // channels_in))
            layers += [Block(channels_out, channels_out, 1) for _ in range(blocks - 1)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        return self.fc(self.features(x).mean((2, 3)))


def build(arch: str, channels: int) -> nn.Module:
    """Returns the network that kdtrain calls ``arch``, for images of that many channels."""
    if arch == "teacher_cnn":
        return Teacher()
    if arch == "hinton_1200":
        return mlp(1200, 1200)
    if arch.startswith(ZOO):
        models = importlib.import_module("torchvision.models")
        return keep_size(models.get_model(arch.removeprefix(ZOO), num_classes=CLASSES), channels)
    return ResNet(int(arch.removeprefix("resnet")), channels)


def keep_size(model: nn.Module, channels: int) -> nn.Module:
    """Returns the network with the stem that kdtrain gives it for small images.

    The first convolution has stride 1 and a kernel of at most 3x3. The first max pooling is left out.
    """
    layers = list(model.named_modules())
    name, first = next((name, layer) for name, layer in layers if isinstance(layer, nn.Conv2d))
    kernel, padding = (3, 1) if max(first.kernel_size) > 3 else (first.kernel_size, first.padding)
    bias = first.bias is not None
    model.set_submodule(name, nn.Conv2d(channels, first.out_channels, kernel, 1, padding, bias=bias))
    pools = [name for name, layer in layers if isinstance(layer, nn.MaxPool2d)]
    if pools:
        model.set_submodule(pools[0], nn.Identity())
    return model


def median_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    """Returns the median seconds of a step on images (N, C, H, W) and labels (N,)."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


def peak() -> float:
    """Returns the GFLOP/s of the fastest of several products of two large float32 matrices."""
    a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE)
    product = torch.empty(PEAK_SIZE, PEAK_SIZE)
    seconds = []
    for _ in range(PEAK_PRODUCTS):
        start = time.perf_counter()
        torch.mm(a, b, out=product)
        seconds.append(time.perf_counter() - start)
    return 2 * PEAK_SIZE**3 / min(seconds) / 1e9


def main() -> None:
    """Trains the network of the arguments in each memory format and prints the figures."""
    work = json.loads(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(work["threads"])
    x, y = torch.randn(work["batch"], *work["shape"]), torch.randint(0, CLASSES, (work["batch"],))
    parameters, seconds = 0, {}
    for name, memory_format in FORMATS.items():
        model = build(work["arch"], work["shape"][0]).to(memory_format=memory_format)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        seconds[name] = median_step(model, x.to(memory_format=memory_format), y, work["steps"])
    print(json.dumps({"parameters": parameters, "seconds": seconds, "peak": peak()}))


if __name__ == "__main__":
    main()
