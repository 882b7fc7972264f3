"""Images without labels in a loader: drawn equally often, beside the very batches that there are without."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain.data import dataset as dataset_module
from kdtrain.data.dataset import Joined, Normalization, Split, Unlabelled
from kdtrain.data.loader import Loader, Source
from kdtrain.data.sampling import TransferDraw
from kdtrain.data.views import views
from kdtrain.runtime.ranks import Ranks

SHARES = st.floats(0.05, 0.9)


def loader_of(
    labelled: int,
    transfer: TransferDraw | None,
    batch_size: int = 8,
    augment: str = "none",
    count: int = 4,
    rank: tuple[int, int] = (0, 1),
) -> Loader:
    """A loader whose pixels are the images' positions."""
    images = labelled + (transfer.images if transfer else 0)
    inputs = np.arange(images, dtype=np.float32).reshape(-1, 1, 1, 1) + np.zeros((1, 1, 4, 4), np.float32)
    numbers = np.concatenate([np.arange(labelled), 1000 + np.arange(images - labelled)])
    ranks = Ranks()
    ranks.rank, ranks.size = rank
    return Loader(
        inputs,
        np.arange(labelled) % 3,
        batch_size,
        num_classes=3,
        seed=5,
        views=views(augment, Normalization((0.0,), (1.0,)), count, 7),
        source=Source("numbers", numbers, 2000),
        ranks=ranks,
        transfer=transfer,
    )


@settings(max_examples=30)
@given(st.integers(2, 60), st.integers(1, 50), st.integers(1, 20), SHARES, st.integers(0, 3))
def test_images_without_labels_are_drawn_in_passes(
    labelled: int, images: int, batch_size: int, share: float, seed: int
) -> None:
    loader = loader_of(labelled, TransferDraw(images, share, seed), batch_size)
    drawn: list[int] = []
    for epoch in range(1, 6):
        for batch in loader.epoch(epoch):
            drawn += [int(index) for index in batch.indices.numpy() if index >= labelled]
        counts = Counter(drawn)
        assert set(counts) <= set(range(labelled, labelled + images))
        numbers = [counts[position] for position in range(labelled, labelled + images)]
        assert max(numbers) - min(numbers) <= 1, "no image is drawn again before all others are"
    passes = [drawn[start : start + images] for start in range(0, len(drawn) - images + 1, images)]
    assert all(sorted(one) == list(range(labelled, labelled + images)) for one in passes)
    assert images < 8 or len(set(map(tuple, passes))) == len(passes), "each pass has an order of its own"


@settings(max_examples=30)
@given(st.integers(2, 60), st.integers(1, 50), st.integers(1, 20), SHARES, st.integers(1, 4))
def test_labelled_images_are_those_of_the_same_batch_without_the_others(
    labelled: int, images: int, batch_size: int, share: float, epoch: int
) -> None:
    alone = loader_of(labelled, None, batch_size, "shift=1,mixup", 3)
    both = loader_of(labelled, TransferDraw(images, share, 0), batch_size, "shift=1,mixup", 3)
    assert len(alone) == len(both)
    assert both.num_images == labelled
    sizes = []
    for expected, batch in zip(alone.epoch(epoch), both.epoch(epoch), strict=True):
        count = len(expected)
        sizes.append(len(batch))
        assert batch.labelled is not None
        assert batch.labelled.numpy().tolist() == [True] * count + [False] * (len(batch) - count)
        assert batch.label_count == count
        joining = len(batch) - count
        assert joining == max(1, round(count * share / (1 - share)))
        for name in ("inputs", "indices", "variants", "mixup_targets", "mixup_lambda"):
            values, wanted = (getattr(one, name).numpy() for one in (batch, expected))
            np.testing.assert_array_equal(values[:count], wanted, err_msg=name)
    assert sizes == both.batch_sizes


def test_an_epoch_is_a_function_of_its_number_alone() -> None:
    def indices(loader: Loader, epoch: int) -> list[list[int]]:
        return [batch.indices.numpy().tolist() for batch in loader.epoch(epoch)]

    in_order = loader_of(20, TransferDraw(33, 0.5, 0))
    runs = [indices(in_order, epoch) for epoch in (1, 2, 3, 4)]
    resumed = loader_of(20, TransferDraw(33, 0.5, 0))
    assert indices(resumed, 3) == runs[2]
    assert indices(resumed, 4) == runs[3]
    assert indices(loader_of(20, TransferDraw(33, 0.5, 1)), 3) != runs[2]


@settings(max_examples=40)
@given(st.integers(6, 60), st.integers(1, 50), st.integers(6, 20), SHARES, st.integers(2, 3))
def test_ranks_share_the_batches_of_one_process(
    labelled: int, images: int, batch_size: int, share: float, ranks: int
) -> None:
    draw = TransferDraw(images, share, 0)
    whole = loader_of(labelled, draw, batch_size)
    parts = [loader_of(labelled, draw, batch_size, rank=(rank, ranks)) for rank in range(ranks)]
    if [len(part) for part in parts] != [len(whole)] * ranks:
        return  # a last batch that is too small for several ranks joins the one before
    for expected, *shares in zip(whole.epoch(2), *(part.epoch(2) for part in parts), strict=True):
        together = np.concatenate([part.indices.numpy() for part in shares])
        assert sorted(together) == sorted(expected.indices.numpy())
        total = sum(float(part.label_count or 0) for part in shares)
        assert total == pytest.approx(expected.label_count)
        # Averages over ranks, weighted by their images, are averages over the labelled images.
        weights = [len(part) / len(expected) for part in shares]
        means = [
            float((part.indices.numpy() * part.labelled.numpy()).sum()) / float(part.label_count or 0)
            for part in shares
        ]
        positions = expected.indices.numpy()
        assert np.dot(weights, means) == pytest.approx(positions[positions < labelled].mean())


@settings(max_examples=40)
@given(
    st.integers(2, 30), st.integers(1, 60), SHARES, st.integers(1, 9), st.sampled_from(["none", "shift=1"])
)
def test_wanted_images_are_those_that_the_epochs_take(
    labelled: int, images: int, share: float, epochs: int, augment: str
) -> None:
    loader = loader_of(labelled, TransferDraw(images, share, 0), augment=augment)
    taken: list[set[int]] = [set() for _ in range(4 if augment != "none" else 1)]
    for epoch in range(1, epochs + 1):
        for batch in loader.epoch(epoch):
            positions = batch.indices.numpy()
            variants = positions * 0 if batch.variants is None else batch.variants.numpy()
            for position, variant in zip(positions, variants, strict=True):
                taken[variant].add(int(position))
    assert [set(row.tolist()) for row in loader.wanted(epochs)] == taken


def test_mixed_images_have_partners_of_their_kind() -> None:
    loader = loader_of(20, TransferDraw(30, 0.5, 0), augment="cutmix", count=0)
    partners: dict[bool, set[float]] = {True: set(), False: set()}
    for epoch in range(1, 40):
        for batch in loader.epoch(epoch):
            assert batch.labelled is not None
            inputs = batch.inputs.numpy().reshape(len(batch), -1)
            for position, labelled, pixels in zip(
                batch.indices.numpy(), batch.labelled.numpy(), inputs, strict=True
            ):
                partners[bool(labelled)] |= set(pixels.tolist()) - {float(position)}
    assert partners[True] == set(map(float, range(20)))
    assert partners[False] == set(map(float, range(20, 50)))


def test_what_is_in_order_are_the_labelled_images() -> None:
    ordered = loader_of(20, TransferDraw(30, 0.5, 0)).sequential(7)
    assert ordered.num_images == len(ordered.inputs) == 20
    assert all(batch.labelled is None for batch in ordered.epoch(1))


def test_large_images_are_normalised_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (9, 2, 3, 4), np.uint8), np.arange(9) % 2)
    others = rng.integers(0, 256, (5, 2, 3, 4), np.uint8)
    normalization, rows = Normalization((0.2, 0.3), (0.5, 0.25)), np.array([7, 0, 3])
    whole = split.joined(normalization, rows, Unlabelled("others", others))
    assert isinstance(whole, np.ndarray)
    expected = (np.concatenate([split.images[rows], others]) / 255).transpose(0, 2, 3, 1)
    expected = ((expected - [0.2, 0.3]) / [0.5, 0.25]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    monkeypatch.setattr(dataset_module, "MOST_PIXELS", 100)
    read = split.joined(normalization, rows, Unlabelled("others", others))
    assert isinstance(read, Joined)
    assert (len(read), read.shape) == (8, (8, 2, 3, 4))
    for chosen in (slice(1, 6), np.array([7, 2, 2, 3])):
        np.testing.assert_array_equal(read[chosen], whole[chosen])
    loaders = [
        Loader(inputs, np.array([0, 1, 0]), 2, num_classes=2, seed=0, transfer=TransferDraw(5, 0.5, 0))
        for inputs in (whole, read)
    ]
    assert loaders[0].fingerprint == loaders[1].fingerprint
    assert loaders[0].sequential(3).fingerprint == loaders[1].sequential(3).fingerprint
