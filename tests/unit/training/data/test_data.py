from __future__ import annotations

import numpy as np
import pytest
import torch

from fct_infer.errors import ArrayError, UsageError
from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.batches import TensorBatches
from fct_infer.training.data.images import as_images, to_batch


def images(count: int = 6) -> torch.Tensor:
    return to_batch(torch.randint(0, 256, (count, 32, 32, 3), generator=generator(), dtype=torch.uint8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_batch_is_scaled_and_channels_first():
    batch = to_batch(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8))
    assert batch.shape == (1, 3, 1, 1)
    assert batch.flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])


@pytest.mark.parametrize(
    "array", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 3, 8, 8), np.uint8)]
)
def test_other_images_are_refused(array):
    with pytest.raises(ArrayError, match="wanted uint8"):
        as_images(array)


def test_no_augmentation_changes_nothing():
    assert torch.allclose(Augmentation()(images(), generator()), images(), atol=1e-6)


def test_an_affine_view_of_strength_zero_is_the_image():
    """A tiny rotation goes through the resampling, which must then leave every pixel where it was."""
    assert torch.allclose(Augmentation(rotation=1e-6)(images(), generator()), images(), atol=1e-4)


def test_a_view_moves_by_the_share_asked_for():
    dot = torch.zeros(64, 3, 32, 32)
    dot[:, :, 16, 16] = 1
    where = Augmentation(shift=0.25)(dot, generator()).mean(dim=1)
    rows, columns = where.sum(dim=2).argmax(dim=1), where.sum(dim=1).argmax(dim=1)
    assert 6 <= (rows - 16).abs().max() <= 8
    assert 6 <= (columns - 16).abs().max() <= 8


@pytest.mark.parametrize(
    "field", ["rotation", "scale", "shift", "brightness", "contrast", "colour", "noise", "flip"], ids=lambda name: name
)
def test_every_kind_of_change_changes_and_stays_in_range(field):
    view = Augmentation(**{field: 0.5})(images(), generator())
    assert not torch.allclose(view, images(), atol=1e-3)
    assert 0 <= view.min() <= view.max() <= 1


def test_a_seed_decides_the_views():
    augmentation = Augmentation(rotation=10, colour=0.5, noise=0.1)
    first, again, other = (augmentation(images(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_epoch_holds_every_row_once_in_whole_batches():
    rows = torch.arange(25)
    batches = TensorBatches(rows, 2 * rows, batch_size=8, seed=0)
    first, second = (list(batches) for _ in range(2))
    assert len(first) == len(batches) == 3
    assert all(torch.equal(2 * one, two) and len(one) == 8 for one, two in first)
    seen = torch.cat([one for one, _ in first])
    assert len(set(seen.tolist())) == 24
    assert not torch.equal(seen, torch.cat([one for one, _ in second]))


@pytest.mark.parametrize(
    ("rows", "processes", "sizes"),
    [
        (25, 1, [8, 8, 9]),
        (26, 1, [8, 8, 8, 2]),
        (24, 1, [8, 8, 8]),
        (5, 1, [5]),
        (27, 2, [8, 8, 11]),
        (28, 2, [8, 8, 8, 4]),
    ],
)
def test_the_rest_of_an_epoch_is_a_batch_or_joins_the_last(rows, processes, sizes):
    everything = torch.arange(rows)
    parts = []
    for rank in range(processes):
        batches = TensorBatches(everything, batch_size=8, seed=0, keep_rest=True)
        batches.share(rank, processes)
        parts.append([batch for (batch,) in batches])
        assert len(batches) == len(sizes) and min(map(len, parts[-1])) >= 2
    together = [torch.cat(batch) for batch in zip(*parts, strict=True)]
    assert [len(batch) for batch in together] == sizes
    assert sorted(torch.cat(together).tolist()) == list(range(rows))


@pytest.mark.parametrize(("lengths", "message"), [((10, 9), "9, 10"), ((3, 3), "at least 4")])
def test_unusable_training_data_is_refused(lengths, message):
    with pytest.raises(ArrayError, match=message):
        TensorBatches(*(torch.zeros(length) for length in lengths), batch_size=4, seed=0)


def test_a_flipped_view_is_the_mirror_image_and_the_others_are_left_alone():
    views = Augmentation(flip=0.5)(images(40), generator())
    is_same, is_mirrored = (
        torch.isclose(views, each, atol=1e-6).flatten(1).all(dim=1) for each in (images(40), images(40).flip(3))
    )
    assert (is_same ^ is_mirrored).all()
    assert 5 < is_mirrored.sum() < 35


def test_several_processes_get_distinct_parts_of_the_same_batches():
    rows = torch.arange(20)
    whole = list(TensorBatches(rows, batch_size=6, seed=0))
    parts = []
    for rank in range(3):
        batches = TensorBatches(rows, batch_size=6, seed=0)
        batches.share(rank, 3)
        parts.append(list(batches))
    for index, (batch,) in enumerate(whole):
        together = torch.stack([part[index][0] for part in parts], dim=1).flatten()
        assert torch.equal(together, batch)
    with pytest.raises(UsageError, match="batch of 6 rows cannot be shared evenly by 4"):
        TensorBatches(rows, batch_size=6, seed=0).share(0, 4)


def test_float_images_are_batches_already():
    ready = torch.rand(2, 3, 8, 8)
    assert torch.equal(to_batch(ready), ready)
