"""The way in which OneFlow's KnowledgeDistillation sample works, for a number of steps.

Every image goes through PIL in every epoch, ``nn.Conv2d`` adds its bias itself, the teacher is asked
at every step, and oneflow is imported as it is. Prints the seconds of a step as JSON: the median of
each of the three fits.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import oneflow as flow
from flowvision import transforms
from oneflow import nn
from oneflow.utils.data import DataLoader, Dataset
from PIL import Image

from kdtrain.data.idx import read_idx

F = nn.functional
BATCH, TEMPERATURE, ALPHA = 128, 5.0, 0.7


class Pictures(Dataset):
    """MNIST as PIL images that are transformed one by one."""

    def __init__(self, folder: Path) -> None:
        self.images = read_idx(folder / "train-images-idx3-ubyte.gz")
        self.labels = read_idx(folder / "train-labels-idx1-ubyte.gz")
        normalize = transforms.Normalize((0.1307,), (0.3081,))
        self.transform = transforms.Compose([transforms.ToTensor(), normalize])

    def __getitem__(self, index: int) -> tuple[flow.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index], mode="L")), int(self.labels[index])

    def __len__(self) -> int:
        return len(self.images)


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


def median_step(model: nn.Module, teacher: nn.Module | None, data: Pictures, steps: int) -> float:
    """Returns the median seconds of a step, data included, after three to warm up."""
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


def main() -> None:
    """Runs the three fits for so many steps as the arguments say."""
    folder, slow, fast = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    data, teacher = Pictures(folder), Teacher()
    print(
        json.dumps(
            {
                "teacher": median_step(teacher, None, data, slow),
                "student_kd": median_step(Student(), teacher, data, slow),
                "student": median_step(Student(), None, data, fast),
            }
        )
    )


if __name__ == "__main__":
    main()
