from __future__ import annotations

import numpy as np
import pytest
import torch

from fct_infer.errors import UsageError
from fct_infer.training.data.glyphs import GLYPHS, IMAGE_SIZE, _glyph_masks, render_glyphs


def test_there_are_enough_classes_and_no_glyph_twice():
    assert len(GLYPHS) >= 100
    assert len(set(GLYPHS)) == len(GLYPHS)


def test_shapes_dtypes_and_labels():
    data = render_glyphs(classes=5, images_per_class=3, split="train")
    assert data.images.shape == (15, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert data.images.dtype == np.uint8
    assert data.images.flags.c_contiguous
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [label for label in range(5) for _ in range(3)]
    assert data.class_names == GLYPHS[:5]


def test_one_seed_gives_the_same_pixels_and_another_gives_others():
    first, again = (render_glyphs(3, 4, "train", seed=7).images for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, render_glyphs(3, 4, "train", seed=8).images)


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    large = render_glyphs(4, 9, "test").images.reshape(4, 9, -1)
    small = render_glyphs(2, 5, "test").images.reshape(2, 5, -1)
    assert np.array_equal(small, large[:2, :5])


def test_train_and_test_share_no_image():
    train, test = (render_glyphs(10, 20, split).images.reshape(200, -1) for split in ("train", "test"))
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}


def test_no_two_classes_have_the_same_shape():
    """Compared in the first font that has both, upright and of one size."""
    shapes = torch.stack([masks[0].flatten() for masks in _glyph_masks()])
    shapes = torch.nn.functional.normalize(shapes - shapes.mean(dim=1, keepdim=True), dim=1)
    correlation = shapes @ shapes.T - torch.eye(len(shapes))
    first, second = divmod(int(correlation.argmax()), len(shapes))
    assert correlation.max() < 0.95, f"{GLYPHS[first]} and {GLYPHS[second]}"


def test_every_glyph_is_drawn_by_several_fonts():
    assert min(len(masks) for masks in _glyph_masks()) >= 3


def test_glyphs_stand_out_from_their_background():
    data = render_glyphs(20, 20, "train")
    assert data.images.reshape(400, -1).std(axis=1).min() > 10


@pytest.mark.parametrize(
    ("classes", "images", "split", "message"),
    [
        (0, 1, "train", "0 classes"),
        (10_000, 1, "train", "10000 classes"),
        (5, 0, "train", "of 0 images"),
        (5, 1, "validation", "'validation'"),
    ],
)
def test_impossible_wishes_are_refused(classes, images, split, message):
    with pytest.raises(UsageError, match=message):
        render_glyphs(classes, images, split)
