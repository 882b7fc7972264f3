"""A teacher's outputs are computed once for the same weights, images and variants, and read from files."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain import Callback, DistillationCallback, FeatureMethod, Loader, Recorder, Teacher, Trainer, flow
from kdtrain.callbacks.teacher_outputs import cache, files
from kdtrain.callbacks.teacher_outputs.cache import OutputCache, OutputTables
from kdtrain.callbacks.teacher_outputs.files import OutputFiles, Rows
from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.images.resize import InputConversion, InputForm
from kdtrain.engine.teacher_network import Ensemble, TeacherNetwork
from kdtrain.models.registry import build_model
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.checkpoint import snapshot
from plugins.attention import Attention
from plugins.fitnet import FitNet
from plugins.pkt import Pkt
from plugins.rkd import Rkd
from plugins.similarity import Similarity
from tests.callbacks.teacher_outputs.test_cache import IMAGES, Counted, loader_of
from tests.engine.fits import Notes, mlp

LAYERS = ("fc1", "fc2")
SGD = partial(flow.optim.SGD, lr=0.01)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the files of a layer of 128 values hold 70 images, and each table stay in its files."""
    monkeypatch.setattr(files, "_FILE_SIZE", 70 * 4 * 128)
    monkeypatch.setattr(cache, "_LARGE", 0)


def recorder_of(model: flow.nn.Module, *layers: str) -> Recorder:
    recorder = Recorder(model, "teacher", flow.zeros(1, 1, 28, 28))
    for layer in layers or LAYERS:
        recorder.record(layer)
    return recorder


def assert_live(tables: OutputTables, model: flow.nn.Module, loader: Loader, epochs: int) -> None:
    """Checks the tables against the network itself, for every batch of a fit."""
    live = Teacher(model, flow.zeros(1, 1, 28, 28))
    for layer in tables.features:
        live.record(layer)
    for epoch in range(1, epochs + 1):
        for batch in loader.epoch(epoch):
            np.testing.assert_allclose(tables.logits(batch).numpy(), live.logits(batch).numpy(), atol=1e-5)
            for layer, features in live.features(batch).items():
                kept = tables.features[layer](batch)
                assert (kept.dtype, kept.shape) == (flow.float32, features.shape)
                np.testing.assert_allclose(kept.numpy(), features.numpy(), atol=1e-5)


@pytest.mark.parametrize("text", ["none", "shift=2", "mixup", "shift=1,cutmix"])
@pytest.mark.parametrize("kept", [True, False])
def test_one_pass_computes_everything_and_the_next_fit_reads_it(
    directory: Path, mnist: Dataset, text: str, kept: bool
) -> None:
    model, loader = mlp(seed=3), loader_of(mnist, text=text)
    recorder, counted = recorder_of(model), Counted(model)
    folder = directory if kept else None
    tables = OutputCache(recorder, loader, folder).tables(epochs=9)
    outputs = IMAGES if text == "none" else 4 * IMAGES
    assert counted.taken() == outputs
    assert list(tables.features) == list(LAYERS)
    assert_live(tables, model, loader, 5)
    counted.taken()
    again = OutputCache(recorder, loader, folder).tables(epochs=9)
    assert counted.taken() == (0 if kept else outputs)
    for batch in loader.epoch(2):
        for layer in LAYERS:
            assert (
                again.features[layer](batch).numpy().tobytes()
                == tables.features[layer](batch).numpy().tobytes()
            )


@pytest.mark.usefixtures("small_files")
def test_a_large_table_stays_in_several_files_and_gives_the_same_bits(
    directory: Path, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loader = mlp(seed=3), loader_of(mnist, text="shift=2", held_out=30)
    recorder = recorder_of(model)
    in_files = OutputCache(recorder, loader, directory).tables(9)
    assert len(os.listdir(directory)) == 4 * (1 + 5 + 3), "logits, 300 / 70 files of fc1, 300 / 140 of fc2"
    monkeypatch.setattr(cache, "_LARGE", 1 << 28)
    in_memory = OutputCache(recorder, loader, directory).tables(9)
    assert_live(in_files, model, loader, 5)
    for batch in loader.epoch(3):
        assert in_files.logits(batch).numpy().tobytes() == in_memory.logits(batch).numpy().tobytes()
        for layer in LAYERS:
            left, right = (tables.features[layer](batch).numpy() for tables in (in_files, in_memory))
            assert left.tobytes() == right.tobytes()


def test_logits_that_are_there_already_are_not_computed_for_a_new_layer_and_layers_add_up(
    directory: Path, mnist: Dataset
) -> None:
    model, loader = mlp(seed=3), loader_of(mnist)
    before = OutputCache(model, loader, directory).plain()
    [logits] = os.listdir(directory)
    content = (directory / logits).read_bytes()
    counted = Counted(model)
    for layers, images in ((("fc1",), IMAGES), (("fc1",), 0), (("fc2", "fc1"), IMAGES), (("fc2",), 0)):
        recorder = recorder_of(model, *layers)
        counted.taken()
        OutputCache(recorder, loader, directory).tables(1)
        assert counted.taken() == images
    assert (directory / logits).read_bytes() == content
    assert np.array_equal(OutputCache(model, loader, directory).plain(), before)
    assert len(os.listdir(directory)) == 3


@pytest.mark.usefixtures("small_files")
def test_more_views_and_other_held_out_images_only_add(directory: Path, mnist: Dataset) -> None:
    model = mlp(seed=3)
    recorder, counted = recorder_of(model), Counted(model)
    for count, held_out, computed in ((2, 100, 400), (3, 100, 200), (3, 60, 120), (3, 100, 0)):
        loader = loader_of(mnist, text="shift=2", count=count, held_out=held_out)
        tables = OutputCache(recorder, loader, directory).tables(9)
        assert counted.taken() == computed
        assert_live(tables, model, loader, 3)
        counted.taken()


@pytest.mark.usefixtures("small_files")
def test_an_interruption_costs_one_file_at_most(
    directory: Path, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "images_at_once", lambda loader: 50)
    model, loader = mlp(seed=3), loader_of(mnist)
    recorder = recorder_of(model, "fc1")
    calls = iter(range(4))

    def interrupt(module: flow.nn.Module, inputs: object, output: object) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        OutputCache(recorder, loader, directory).tables(1)
    model._forward_hooks.clear()  # OneFlow returns no handle to remove a hook by
    kept = OutputCache(recorder, loader, directory)._files(None, "fc1")
    assert kept.known(np.arange(IMAGES)).sum() == 140, "two of its files of 70 were full"
    assert_live(OutputCache(recorder, loader, directory).tables(1), model, loader, 2)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "text"])
@pytest.mark.parametrize(("name", "images"), [("", IMAGES), ("fc1", 70)], ids=["logits", "layer"])
@pytest.mark.usefixtures("small_files")
def test_a_damaged_file_is_made_anew(
    directory: Path, mnist: Dataset, damage: str, name: str, images: int
) -> None:
    model, loader = mlp(seed=3), loader_of(mnist)
    recorder = recorder_of(model, "fc1")
    OutputCache(recorder, loader, directory).tables(1)
    path = OutputCache(recorder, loader, directory)._files(None, name)._path(0)
    assert path is not None
    content = bytearray(path.read_bytes())
    content[-300] ^= 64
    contents = {"truncated": content[:-100], "empty": b"", "flipped": content, "text": b"no outputs"}
    path.write_bytes(bytes(contents[damage]))
    counted = Counted(model)
    for computed in (images, 0):
        tables = OutputCache(recorder, loader, directory).tables(1)
        assert counted.taken() == computed
    assert_live(tables, model, loader, 1)


class Amplified(flow.nn.Module):
    """A network whose code makes a layer's outputs larger, and whose logits do not show it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        flow.manual_seed(5)
        self.factor, self.hidden, self.last = factor, flow.nn.Identity(), flow.nn.Linear(784, 10)

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        return self.last(self.hidden(images.flatten(1) * self.factor) / self.factor)


def test_a_layer_of_other_code_with_the_same_weights_is_computed_anew(
    directory: Path, mnist: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    loader, before, after = loader_of(mnist), Amplified(1.0), Amplified(2.0)
    OutputCache(recorder_of(before, "hidden"), loader, directory).tables(1)
    assert_live(OutputCache(recorder_of(after, "hidden"), loader, directory).tables(1), after, loader, 1)
    assert "computed again" in caplog.text


def test_fits_side_by_side_write_the_same_files_and_each_has_its_outputs(tmp_path: Path) -> None:
    """Each has images of its own, so each replaces files that the others have just written."""
    ends: dict[int, list[Rows]] = {}
    outputs = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
    start = threading.Barrier(6)

    def fit(seed: int) -> None:
        wanted = np.sort(np.random.default_rng(seed).permutation(200)[:150])
        own = OutputFiles(tmp_path, ["key"], (7,), 200)
        missing = wanted[~own.known(wanted)]
        start.wait()
        for portion in np.array_split(missing, 20):
            own.add(Rows(portion, outputs[portion]))
            own.save()
        ends[seed] = own.rows()
        kept = np.concatenate([rows.numbers for rows in ends[seed]])
        assert np.isin(wanted, kept).all()

    threads = [threading.Thread(target=fit, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == list(range(6))
    for parts in ends.values():
        for rows in parts:
            np.testing.assert_array_equal(rows.values, outputs[rows.numbers])


def test_a_fit_adds_to_what_another_has_written_meanwhile(tmp_path: Path) -> None:
    outputs = np.arange(14, dtype=np.float32).reshape(7, 2)
    fits = [OutputFiles(tmp_path, ["key"], (2,), 7) for _ in range(2)]
    for fit in fits:
        assert not fit.known(np.arange(7)).any()
    for fit, numbers in zip(fits, (np.arange(4), np.arange(2, 6)), strict=True):
        fit.add(Rows(numbers, outputs[numbers]))
        fit.save()
    later = OutputFiles(tmp_path, ["key"], (2,), 7)
    assert later.known(np.arange(7)).tolist() == [True] * 6 + [False]
    np.testing.assert_array_equal(later.rows()[0].values, outputs[:6])
    assert len(os.listdir(tmp_path)) == 1


def test_a_layer_of_another_network_or_form_of_images_has_files_of_its_own(
    directory: Path, mnist: Dataset
) -> None:
    loader = loader_of(mnist)
    form = InputForm((1, 28, 28), mnist.normalization)
    other = InputForm((1, 28, 28), Normalization((0.5,), (0.5,)))
    networks = [
        *(mlp(seed=3), mlp(seed=4), TeacherNetwork(mlp(seed=3))),
        TeacherNetwork(mlp(seed=3), InputConversion(form, other), classes=range(9, -1, -1)),
    ]
    for number, network in enumerate(networks, 1):
        tables = OutputCache(recorder_of(network), loader, directory).tables(1)
        assert_live(tables, network, loader, 1)
        assert len(os.listdir(directory)) == 3 * number


# Fits


def distilled(
    loader: Loader,
    tmp_path: Path,
    teacher: flow.nn.Module,
    *plugins: Callback,
    epochs: int = 3,
    seed: int = 0,
) -> tuple[dict[str, Any], list[dict[str, float]], Teacher]:
    model, notes = mlp(seed), Notes()
    distillation = DistillationCallback(teacher, 4.0, 0.5, cache_directory=tmp_path / "cache")
    trainer = Trainer(model, SGD, [distillation, *plugins, notes], seed=seed)
    trainer.fit(loader, loader.sequential(100), epochs=epochs, directory=tmp_path)
    return snapshot(model), notes.losses, distillation.teacher


METHODS: dict[str, FeatureMethod] = {
    **{"fitnet": FitNet("fc1", "fc2"), "rkd": Rkd("fc2", "fc2"), "similarity": Similarity("fc1", "fc1")},
    "pkt": Pkt("fc2", "fc1"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("text", ["none", "shift=2"])
def test_a_fit_with_kept_layers_ends_as_one_whose_teacher_runs_at_every_step(
    tmp_path: Path, mnist: Dataset, name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float32's rounding in the teacher, which depends on the size of a batch."""
    teacher, loader = mlp(seed=7), loader_of(mnist, text=text, count=2)
    counted = Counted(teacher)
    kept, losses, _ = distilled(loader, tmp_path, teacher, METHODS[name])
    assert counted.taken() == 1 + (1 if text == "none" else 2) * IMAGES, "once, and the layer's shape"
    again, _, _ = distilled(loader, tmp_path, teacher, METHODS[name])
    assert counted.taken() == 1, "the files of the fit before"
    monkeypatch.setattr(cache, "_MOST_ON_DISK", 0)
    live, live_losses, _ = distilled(loader, tmp_path, teacher, METHODS[name])
    assert counted.taken() == 1 + 3 * IMAGES
    for weight, array in kept.items():
        assert again[weight].tobytes() == array.tobytes()
        np.testing.assert_allclose(live[weight], array, rtol=1e-4, atol=1e-5)
    for row, live_row in zip(losses, live_losses, strict=True):
        assert row == pytest.approx(live_row, rel=1e-4, abs=1e-6)


def test_maps_of_a_convolution_are_kept_in_their_shape(
    make_loader: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flow.manual_seed(7)
    teacher, model = (build_model("teacher_cnn", (1, 28, 28), 10) for _ in range(2))
    few = make_loader(32, batch_size=16)
    distillation = DistillationCallback(teacher, cache_directory=tmp_path / "cache")
    caplog.set_level("INFO", "kdtrain")
    Trainer(model, SGD, [distillation, Attention("conv2", "conv2")]).fit(
        few, few, epochs=1, directory=tmp_path
    )
    assert "kept: conv2 (64x24x24): 4.5 MiB for 32 images x 1 view." in caplog.text
    live = Teacher(teacher, flow.zeros(1, 1, 28, 28))
    live.record("conv2")
    for batch in few.epoch(2):
        kept = distillation.teacher.features(batch)
        assert kept is distillation.teacher.features(batch), "looked up once for all terms"
        np.testing.assert_allclose(kept["conv2"].numpy(), live.features(batch)["conv2"].numpy(), atol=1e-5)


LIMITS = {
    "_MOST_ON_DISK": "fc2 (64): 0.1 MiB for 300 images x 2 views, and at most 0.0 MiB are kept on disk",
    "_SHARE_OF_DISK": "fc2 (64): 0.1 MiB for 300 images x 2 views, of which 0.1 MiB would be written",
}


@pytest.mark.parametrize("limit", LIMITS)
def test_above_a_limit_the_teacher_runs_and_the_log_says_why(
    tmp_path: Path, mnist: Dataset, limit: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(cache, limit, 0)
    caplog.set_level("INFO", "kdtrain")
    teacher, loader = mlp(seed=7), loader_of(mnist, text="shift=2", count=2)
    counted = Counted(teacher)
    distilled(loader, tmp_path, teacher, FitNet("fc1", "fc2"), epochs=3)
    assert counted.taken() == 1 + 2 * IMAGES + 3 * IMAGES, "logits are kept all the same"
    lines = [line for line in caplog.messages if "teacher" in line]
    assert len(lines) == 1
    assert lines[0].startswith("The teacher runs at every step, which is slow: " + LIMITS[limit])


def test_what_is_on_disk_already_needs_no_free_space(
    tmp_path: Path, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, loader = mlp(seed=7), loader_of(mnist)
    distilled(loader, tmp_path, teacher, FitNet("fc1", "fc2"), epochs=1)
    monkeypatch.setattr(cache, "_SHARE_OF_DISK", 0)
    counted = Counted(teacher)
    distilled(loader, tmp_path, teacher, FitNet("fc1", "fc2"), epochs=1)
    assert counted.taken() == 1


def test_a_fit_of_few_epochs_keeps_the_views_that_it_takes(
    tmp_path: Path, mnist: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kdtrain")
    teacher, loader = mlp(seed=7), loader_of(mnist, text="shift=2", count=8)
    counted = Counted(teacher)
    distilled(loader, tmp_path, teacher, FitNet("fc1", "fc2"), epochs=2)
    assert counted.taken() == 1 + 2 * IMAGES
    assert "fc2 (64): 0.1 MiB for 300 images x 2 views." in caplog.text


def test_layers_of_several_teachers_are_not_kept(
    tmp_path: Path, mnist: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kdtrain")
    teacher, loader = Ensemble([mlp(3), mlp(4)], [1, 1]), loader_of(mnist)
    counted = Counted(teacher.members[1])
    distilled(loader, tmp_path, teacher, FitNet("fc1", "members.1.fc2"), epochs=2)
    assert counted.taken() == 1 + IMAGES + 2 * IMAGES
    assert "runs at every step, which is slow: layers of several teachers are not kept." in caplog.text


def test_several_processes_run_the_teacher(mnist: Dataset, directory: Path) -> None:
    class Two(Ranks):
        size = 2

    loader = loader_of(mnist)
    loader.ranks = Two()
    outputs = OutputCache(recorder_of(mlp(3)), loader, directory)
    reason = outputs.reason_to_run(1)
    assert reason is not None
    assert "several processes" in reason


def test_without_a_folder_small_layers_are_kept_in_memory(
    mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = OutputCache(recorder_of(mlp(3)), loader_of(mnist), None)
    assert outputs.reason_to_run(1) is None
    monkeypatch.setattr(cache, "_MOST_IN_MEMORY", 1000)
    assert "at most 0.0 MiB are kept in memory" in (outputs.reason_to_run(1) or "")


def test_more_files_than_a_process_may_open_are_not_used(
    mnist: Dataset, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_FILE_SIZE", 1)
    outputs = OutputCache(recorder_of(mlp(3)), loader_of(mnist, text="shift=2", count=50), directory)
    reason = outputs.reason_to_run(50)
    assert reason is not None
    assert "in 30,000 files" in reason
