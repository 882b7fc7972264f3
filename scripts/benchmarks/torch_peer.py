"""The same training in PyTorch in the usual style: a DataLoader over tensors in memory.

Runs in a separate environment with PyTorch and without kdtrain. Reads its task as JSON (``task``,
``images``, ``epochs``, ``batch``, ``compiled``, ``data``) and prints the seconds of each epoch as JSON. A
teacher is trained in both memory formats, and the seconds are those of the faster one. The task
``student_kd`` has a forward pass of the teacher at every step, ``student_soft`` its logits in memory.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

F = nn.functional
RATE, TEMPERATURE, ALPHA = 3e-3, 4.0, 0.9
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


def mlp(first: int, second: int) -> nn.Module:
    """Returns a network with two hidden layers, as kdtrain's student_mlp and hinton_1200 have them."""
    hidden = nn.Linear(784, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(second, 10))


def soft_loss(logits: torch.Tensor, y: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Returns the distillation loss of logits (N, 10), the mean over the images."""
    soft = F.log_softmax(teacher_logits / TEMPERATURE, 1)
    kl = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), soft, reduction="batchmean", log_target=True)
    return (1 - ALPHA) * F.cross_entropy(logits, y) + ALPHA * TEMPERATURE**2 * kl


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
    model = teacher if work["task"] == "teacher" else mlp(128, 64)
    model.to(memory_format=memory_format)
    tensors = [x, y]
    if work["task"] == "student_soft":
        tensors.append(torch.randn(len(x), 10))

    def loss(x: torch.Tensor, y: torch.Tensor, *kept: torch.Tensor) -> torch.Tensor:
        if work["task"] == "student_kd":
            with torch.no_grad():
                kept = (teacher.eval()(x),)
        return soft_loss(model(x), y, *kept) if kept else F.cross_entropy(model(x), y)

    if work["compiled"]:
        loss = torch.compile(loss)
    loader = DataLoader(TensorDataset(*tensors), work["batch"], shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=work["epochs"] * len(loader))
    seconds = []
    for _ in range(work["epochs"]):
        start = time.perf_counter()
        model.train()
        for a, *others in loader:
            optimizer.zero_grad()
            loss(a.to(memory_format=memory_format), *others).backward()
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
