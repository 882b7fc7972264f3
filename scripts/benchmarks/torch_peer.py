"""The same training in PyTorch in the usual style: a DataLoader over tensors in memory.

Runs in a separate environment with PyTorch and without kdtrain. Reads its task as JSON (``task``,
``images``, ``epochs``, ``data``) and prints the seconds of each epoch as JSON. A teacher is trained in
both memory formats, and the seconds are those of the faster one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

F = nn.functional
BATCH, RATE, TEMPERATURE, ALPHA = 128, 3e-3, 4.0, 0.9
FORMATS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}


class Teacher(nn.Module):
    """Two convolutions, two fully connected layers, dropout: the sizes of kdtrain's teacher_cnn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits (N, 10) of images (N, 1, 28, 28)."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.relu(self.fc1(F.dropout(x, 0.3, self.training).flatten(1)))
        return self.fc2(F.dropout(x, 0.5, self.training))


def student() -> nn.Module:
    """Returns a network with the sizes of kdtrain's student_mlp."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def soft_loss(model: nn.Module, teacher: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Returns the distillation loss, with a forward pass of the teacher at every step."""

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = model(x)
        with torch.no_grad():
            soft = F.log_softmax(teacher(x) / TEMPERATURE, 1)
        kl = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), soft, reduction="batchmean", log_target=True)
        return (1 - ALPHA) * F.cross_entropy(logits, y) + ALPHA * TEMPERATURE**2 * kl

    return loss


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Returns the accuracy 0..1 on images (N, 1, 28, 28) and labels (N,), in evaluation mode."""
    model.eval()
    with torch.no_grad():
        correct = sum(
            int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True)
        )
    return correct / len(y)


def train(work: dict[str, Any], memory_format: torch.memory_format) -> list[float]:
    """Trains a network; returns the seconds of each epoch, evaluation included."""
    data = np.load(work["data"])
    x = torch.from_numpy(data["images"][: work["images"]])
    y = torch.from_numpy(data["labels"][: work["images"]])
    held_x, held_y = torch.from_numpy(data["held_images"]), torch.from_numpy(data["held_labels"])
    torch.manual_seed(0)
    teacher = Teacher()
    model = teacher if work["task"] == "teacher" else student()
    model.to(memory_format=memory_format)
    if work["task"] == "student_kd":
        loss = soft_loss(model, teacher.eval())
    else:
        loss = lambda x, y: F.cross_entropy(model(x), y)  # noqa: E731
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=work["epochs"] * len(loader))
    seconds = []
    for _ in range(work["epochs"]):
        start = time.perf_counter()
        model.train()
        for a, b in loader:
            optimizer.zero_grad()
            loss(a.to(memory_format=memory_format), b).backward()
            optimizer.step()
            schedule.step()
        accuracy(model, held_x.to(memory_format=memory_format), held_y)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Carries out the task of the arguments and prints the seconds of each epoch."""
    work = json.loads(sys.argv[1])
    torch.set_num_threads(2)
    formats = list(FORMATS.values()) if work["task"] == "teacher" else [torch.contiguous_format]
    print(json.dumps(min((train(work, memory_format) for memory_format in formats), key=sum)))


if __name__ == "__main__":
    main()
