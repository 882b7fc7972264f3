"""The training steps of OneFlow's KnowledgeDistillation sample, timed.

Every image passes through PIL in every epoch, ``nn.Conv2d`` adds its own bias, the teacher runs at
every step, and oneflow is imported without kdtrain's settings. Prints seconds as JSON: the median
step of each of the three fits, and the median batch of its test.
"""
# ruff: noqa: E402  # the stubs come before oneflow

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np

from kdtrain.runtime.oneflow import load_stubs

load_stubs()  # nothing else of kdtrain's

import oneflow as flow
from flowvision import transforms
from flowvision.datasets import MNIST
from oneflow import nn
from oneflow.utils.data import DataLoader

F = nn.functional
BATCH, TEMPERATURE, ALPHA = 128, 5.0, 0.7


def mnist(embedded: Path, folder: Path, train: bool) -> MNIST:
    """Returns flowvision's MNIST, which converts every image from a tensor to PIL and back each time."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file in embedded.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    return MNIST(
        str(folder),
        train=train,
        download=False,
        transform=transforms.Compose([transforms.ToTensor(), normalize]),
    )


class Teacher(nn.Module):
    """The sample's large network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dropout1, self.dropout2 = nn.Dropout(0.3), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits (N, 10) of images (N, 1, 28, 28)."""
        x = self.dropout1(F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2))
        x = F.relu(self.fc1(flow.flatten(x, 1)))
        return self.fc2(self.dropout2(x))


class Student(nn.Module):
    """The sample's small network, with its ReLU on the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 128), nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits (N, 10) of images (N, 1, 28, 28)."""
        x = F.relu(self.fc2(F.relu(self.fc1(x.view(-1, 784)))))
        return F.relu(self.fc3(x))


def median_step(model: nn.Module, teacher: nn.Module | None, data: MNIST, steps: int) -> float:
    """Returns the median seconds of a step, data included, after three warm-up steps."""
    optimizer = flow.optim.Adadelta(model.parameters(), lr=1.0)
    seconds: list[float] = []
    start = time.perf_counter()
    for x, y in DataLoader(data, batch_size=BATCH, shuffle=True):
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        if teacher is not None:
            soft = F.softmax(teacher(x).detach() / TEMPERATURE, dim=1)
            kl = nn.KLDivLoss()(F.log_softmax(logits / TEMPERATURE, dim=1), soft)
            loss = loss * (1 - ALPHA) + kl * (TEMPERATURE**2 * ALPHA)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - start)
        if len(seconds) == steps + 3:
            break
        start = time.perf_counter()
    return float(np.median(seconds[3:]))


def median_test(model: nn.Module, data: MNIST, steps: int) -> float:
    """Returns the median seconds of a batch of the test set, data included."""
    model.eval()
    seconds: list[float] = []
    start = time.perf_counter()
    with flow.no_grad():
        for x, y in DataLoader(data, batch_size=BATCH):
            (model(x).argmax(1) == y).sum().item()
            seconds.append(time.perf_counter() - start)
            if len(seconds) == steps + 3:
                break
            start = time.perf_counter()
    return float(np.median(seconds[3:]))


def main() -> None:
    """Runs the three fits and tests for the number of steps in the arguments."""
    embedded, folder, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    train, test = mnist(embedded, folder, True), mnist(embedded, folder, False)
    teacher, student = Teacher(), Student()
    report = {
        "teacher": (median_step(teacher, None, train, steps), median_test(teacher, test, steps)),
        "student_kd": (median_step(student, Teacher(), train, steps), median_test(student, test, steps)),
        "student": (median_step(Student(), None, train, steps), median_test(student, test, steps)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
