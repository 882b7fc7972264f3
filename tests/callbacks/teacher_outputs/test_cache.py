"""A teacher's logits are computed once for the same weights, images and variants."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from kdtrain import Loader, Teacher, build_model, flow, predict_logits
from kdtrain.callbacks.teacher_outputs import cache
from kdtrain.callbacks.teacher_outputs.cache import OutputCache, weights_fingerprint
from kdtrain.callbacks.teacher_outputs.table import OutputTable
from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.loader import Source
from kdtrain.data.views import views
from kdtrain.runtime import bars
from kdtrain.store.checkpoint import load_weights, snapshot
from tests.engine.fits import mlp

IMAGES = 300
PROOFS = 16


class Counted:
    """A network that counts the images it has computed.

    Batches of a few images, by which outputs of files are proved, are counted apart.
    """

    def __init__(self, model: flow.nn.Module) -> None:
        self.images = self.proofs = 0
        model.register_forward_hook(self._count)

    def _count(self, module: flow.nn.Module, inputs: object, output: flow.Tensor) -> None:
        if len(output) not in {-(-PROOFS // variants) for variants in range(1, 9)}:
            self.images += len(output)
        else:
            self.proofs += len(output)

    def taken(self) -> int:
        """The images since the last call."""
        images, self.images = self.images, 0
        return images


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def counted(student: flow.nn.Module) -> Counted:
    return Counted(student)


def loader_of(
    mnist: Dataset,
    normalization: Normalization | None = None,
    start: int = 0,
    text: str = "none",
    count: int = 4,
    held_out: int = 0,
    views_seed: int = 0,
) -> Loader:
    normalization = normalization or mnist.normalization
    split = mnist.train.take(np.arange(start, start + IMAGES))
    kept = np.arange(IMAGES)[held_out:]
    inputs = normalization.apply(split.images)
    return Loader(
        inputs[kept],
        split.labels[kept],
        100,
        num_classes=10,
        seed=1,
        views=views(text, normalization, count, views_seed),
        source=Source("digits", kept, IMAGES) if held_out else None,
    )


def assert_looked_up(table: OutputTable, model: flow.nn.Module, loader: Loader, epochs: int) -> None:
    """Checks the table against the network itself, for every batch of a fit."""
    live = Teacher(model)
    for epoch in range(1, epochs + 1):
        for batch in loader.epoch(epoch):
            np.testing.assert_allclose(table(batch).numpy(), live.logits(batch).numpy(), atol=1e-5)


def test_logits_are_computed_once_and_then_read_bit_for_bit(
    directory: Path, student: flow.nn.Module, train: Loader, counted: Counted
) -> None:
    computed = OutputCache(student, train, directory).plain()
    assert (counted.taken(), counted.proofs) == (train.num_images, 0)
    read = OutputCache(student, train, directory).plain()
    assert (counted.taken(), counted.proofs) == (0, PROOFS)
    assert read.dtype == computed.dtype == np.float32
    assert read.tobytes() == computed.tobytes() == predict_logits(student, train).tobytes()
    same = mlp(seed=1)
    load_weights(same, snapshot(student), "here")
    counted = Counted(same)
    OutputCache(same, train.sequential(7), directory).plain()
    assert counted.images == 0, "another object, but the same weights and images"


def test_another_teacher_gets_logits_of_its_own(
    directory: Path, student: flow.nn.Module, train: Loader
) -> None:
    before = OutputCache(student, train, directory).plain()
    weights = snapshot(student)
    weights["fc3.bias"][0] = np.nextafter(weights["fc3.bias"][0], np.float32(9))
    load_weights(student, weights, "here")
    after = OutputCache(student, train, directory).plain()  # one bit of one weight has changed
    assert np.array_equal(after, predict_logits(student, train))
    assert not np.array_equal(after, before)
    models = [build_model(arch, (1, 28, 28), 10) for arch in ("hinton_800", "hinton_1200")]
    assert len({weights_fingerprint(model) for model in (student, *models)}) == 3


def test_structure_counts_as_well_as_the_weights() -> None:
    class Scaled(flow.nn.Linear):
        pass

    plain, other = flow.nn.Linear(3, 3), Scaled(3, 3)
    other.load_state_dict(plain.state_dict())
    assert weights_fingerprint(plain) != weights_fingerprint(other)


def test_other_images_and_other_normalisation_are_told_apart(
    directory: Path, student: flow.nn.Module, mnist: Dataset
) -> None:
    normalization = mnist.normalization
    loaders = [
        loader_of(mnist, normalization),
        loader_of(mnist, normalization, start=1),
        loader_of(mnist, Normalization((0.1307,), normalization.std)),
        loader_of(mnist, Normalization(normalization.mean, (0.3081,))),
    ]
    for loader in loaders:
        logits = OutputCache(student, loader, directory).plain()
        assert np.array_equal(logits, predict_logits(student, loader))
    assert len(os.listdir(directory)) == 4


def test_the_images_as_they_are_share_a_file_with_variant_0(
    directory: Path, student: flow.nn.Module, mnist: Dataset, counted: Counted
) -> None:
    OutputCache(student, loader_of(mnist), directory).plain()
    counted.taken()
    OutputCache(student, loader_of(mnist, text="shift=2"), directory).tables(epochs=9)
    assert counted.taken() == 3 * IMAGES


def test_more_variants_and_more_epochs_only_add(
    directory: Path, student: flow.nn.Module, mnist: Dataset, counted: Counted
) -> None:
    for count, epochs, computed in ((2, 9, 2), (5, 9, 3), (5, 2, 0)):
        loader = loader_of(mnist, text="shift=2", count=count)
        OutputCache(student, loader, directory).tables(epochs)
        assert counted.taken() == computed * IMAGES
    short = loader_of(mnist, text="shift=2", views_seed=1)
    for epochs, computed in ((1, 1), (3, 2), (4, 1), (5, 0)):
        table = OutputCache(student, short, directory).tables(epochs).logits
        taken = counted.taken()
        # Variant 0 is in the cache already: it does not depend on the seed.
        assert computed * IMAGES * 0.6 <= taken <= computed * IMAGES
        assert_looked_up(table, student, short, epochs)
        counted.taken()


@pytest.mark.parametrize("kept", [True, False])
def test_a_variant_that_no_image_takes_is_no_obstacle(
    directory: Path, student: flow.nn.Module, mnist: Dataset, kept: bool
) -> None:
    few = loader_of(mnist, text="shift=2", count=50, held_out=IMAGES - 5)
    table = OutputCache(student, few, directory if kept else None).tables(epochs=2).logits
    assert_looked_up(table, student, few, 2)


def test_partners_of_mixes_are_never_held_out_images(
    directory: Path, student: flow.nn.Module, mnist: Dataset, counted: Counted
) -> None:
    """So other held-out images make other mixes, which have files of their own."""
    for held_out in (100, 60):
        loader = loader_of(mnist, text="mixup", held_out=held_out)
        table = OutputCache(student, loader, directory).tables(9).logits
        assert counted.taken() == 4 * (IMAGES - held_out)
        assert_looked_up(table, student, loader, 4)
        counted.taken()


def test_an_interrupted_computation_is_resumed(
    directory: Path, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SECONDS_LOST", 0.0)
    monkeypatch.setattr(cache, "images_at_once", lambda loader: 50)
    model, loader = mlp(seed=3), loader_of(mnist, text="shift=2")
    calls = iter(range(9))

    def interrupt(module: flow.nn.Module, inputs: object, output: object) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        OutputCache(model, loader, directory).tables(9)
    model._forward_hooks.clear()  # OneFlow returns no handle to remove a hook by
    counted = Counted(model)
    table = OutputCache(model, loader, directory).tables(9).logits
    assert counted.taken() == 4 * IMAGES - 9 * 50
    assert_looked_up(table, model, loader, 4)


def test_a_line_tells_of_progress_where_there_is_no_terminal(
    student: flow.nn.Module,
    mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(bars, "_MESSAGE_SECONDS", 0.0)
    caplog.set_level("INFO", "kdtrain")
    OutputCache(student, loader_of(mnist, text="shift=2"), None).tables(9)
    assert re.search(r"teacher's soft labels: \d+ of 1200 \(\d+ %\), \d\d:\d\d left", caplog.text)


class Scaled(flow.nn.Module):
    """A network whose code has a factor that neither its weights nor its text show."""

    def __init__(self, model: flow.nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        return self.model(images) * self.factor


@pytest.mark.parametrize("text", ["none", "shift=2"])
def test_outputs_of_other_code_with_the_same_weights_are_computed_anew(
    directory: Path, student: flow.nn.Module, mnist: Dataset, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    caplog.set_level("WARNING")
    few, more = (loader_of(mnist, text=text, held_out=held_out) for held_out in (100, 1))
    OutputCache(Scaled(student), few, directory).tables(epochs=4)
    assert not caplog.messages
    changed = Scaled(student, 1.5)
    table = OutputCache(changed, more, directory).tables(epochs=4).logits
    assert_looked_up(table, changed, more, 4)
    [line] = caplog.messages
    assert str(directory) in line
    assert "computed again" in line
    again = OutputCache(changed, more, directory).tables(epochs=4).logits
    assert_looked_up(again, changed, more, 4)
    assert len(caplog.messages) == 1


def test_files_that_have_changed_places_are_not_believed(
    directory: Path, student: flow.nn.Module, mnist: Dataset
) -> None:
    loader = loader_of(mnist, text="shift=2", count=2)
    OutputCache(student, loader, directory).tables(epochs=2)
    first, second = directory.iterdir()
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    table = OutputCache(student, loader, directory).tables(epochs=2).logits
    assert_looked_up(table, student, loader, 2)


def test_outputs_of_another_version_of_the_code_are_not_read(
    directory: Path, student: flow.nn.Module, train: Loader, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    OutputCache(student, train, directory).plain()
    counted.taken()
    monkeypatch.setattr(cache, "code_version", lambda: "another")
    OutputCache(student, train, directory).plain()
    assert counted.taken() == train.num_images
