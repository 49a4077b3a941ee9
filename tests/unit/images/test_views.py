"""What a model sees of an image, against the same computed by hand."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.images import random_pixels

from fct_infer.artifacts.manifest import INTERPOLATIONS, Preprocessing
from fct_infer.embedding.preprocessing import preprocess
from fct_infer.images import central_view, shorter_side
from fct_infer.training.data.sources import DataConfig, open_data

SIDES = st.integers(1, 40)
METHODS = st.sampled_from(INTERPOLATIONS)
AS_THEY_ARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def triangle(x):
    return np.clip(1 - x, 0, None)


def cubic(x):
    """Keys' filter with a = -1/2."""
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def lanczos(x):
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)


FILTERS = {"bilinear": (triangle, 1), "bicubic": (cubic, 2), "lanczos": (lanczos, 3)}


def resized_by_hand(pixels: np.ndarray, height: int, width: int, interpolation: str, x_first: bool) -> np.ndarray:
    """Antialiased: a target pixel is a weighted mean of the source pixels it covers, along one axis after the other."""
    kernel, support = FILTERS[interpolation]
    for axis, new in ((1, width), (0, height))[:: 1 if x_first else -1]:
        old = pixels.shape[axis]
        if old == new:
            continue
        scale = old / new
        stretch = max(scale, 1.0)
        centres = (np.arange(new) + 0.5) * scale
        numbers = np.arange(old)
        weights = kernel(np.abs(numbers + 0.5 - centres[:, None]) / stretch)
        first, last = np.floor(centres - support * stretch + 0.5), np.floor(centres + support * stretch + 0.5)
        weights *= (numbers >= first[:, None]) & (numbers < last[:, None])
        weights /= weights.sum(axis=1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels.astype(float), (1, axis)), 0, axis)
        pixels = np.clip(np.floor(pixels + 0.5), 0, 255)
    return pixels


def view(pixels: np.ndarray, *arguments: object) -> np.ndarray:
    return np.asarray(central_view(Image.fromarray(pixels), *arguments))


@given(SIDES, SIDES, SIDES, SIDES, METHODS, st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_scaling_is_an_antialiased_filter(height, width, new_height, new_width, interpolation, seed):
    pixels = random_pixels(seed, height, width)
    result = view(pixels, (new_height, new_width), None, interpolation)
    possible = [resized_by_hand(pixels, new_height, new_width, interpolation, x_first) for x_first in (True, False)]
    errors = min((np.abs(result - wanted) for wanted in possible), key=np.max)  # Pillow begins with the cheaper axis
    assert errors.max() <= 2 and errors.mean() <= 0.6  # a half may be rounded otherwise along each axis


@given(SIDES, SIDES, st.integers(1, 12), st.integers(1, 12), st.integers(0, 9), METHODS, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_shorter_side_is_scaled_and_the_middle_cut_out(
    height, width, new_height, new_width, more, interpolation, seed
):
    pixels, resize = random_pixels(seed, height, width), max(new_height, new_width) + more
    result = view(pixels, (new_height, new_width), resize, interpolation)
    long = resize * max(height, width) // min(height, width)
    size = (resize, long) if width <= height else (long, resize)
    whole = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling[interpolation.upper()]))
    top, left = (
        int((Decimal(side - new) / 2).quantize(Decimal(1), ROUND_HALF_EVEN))
        for side, new in zip(whole.shape, (new_height, new_width), strict=False)
    )
    assert np.array_equal(result, whole[top : top + new_height, left : left + new_width])


def test_the_filters_differ():
    results = [view(random_pixels(1, 40, 40), (17, 17), None, interpolation) for interpolation in INTERPOLATIONS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(results[one].astype(int) - results[other]).max() > 5


@pytest.mark.parametrize(
    ("size", "fraction", "wanted"),
    [((224, 224), 0.875, 256), ((224, 224), 0.9, 248), ((384, 384), 1.0, 384), ((32, 16), 0.5, 64)],
)
def test_a_crop_fraction_is_a_shorter_side(size, fraction, wanted):
    assert shorter_side(size, fraction) == wanted


@pytest.mark.parametrize(
    ("height", "width", "settings_", "recipe"),
    [
        (50, 70, {}, {"resize": 36}),
        (70, 50, {"interpolation": "bicubic"}, {"resize": 36, "interpolation": "bicubic"}),
        (33, 90, {"interpolation": "lanczos", "crop_fraction": 1.0}, {"resize": 32, "interpolation": "lanczos"}),
        (20, 20, {"crop_fraction": 0.9}, {"resize": 35}),
    ],
)
def test_training_evaluates_on_what_embedding_sees(height, width, settings_, recipe, tmp_path):
    (tmp_path / "class").mkdir()
    pixels = random_pixels(2, height, width)
    Image.fromarray(pixels).save(tmp_path / "class" / "x.png")
    data = open_data(DataConfig("folder", str(tmp_path), image_size=32, **settings_))
    ((seen, _),) = data.in_order(1)
    wanted = preprocess(Image.fromarray(pixels), Preprocessing((32, 32), *AS_THEY_ARE, **recipe), "x")
    assert np.array_equal(seen[0].numpy().transpose(2, 0, 1), (wanted * 255).round())


def test_random_views_are_scaled_by_the_same_filter(tmp_path):
    (tmp_path / "class").mkdir()
    Image.fromarray(random_pixels(2, 60, 60)).save(tmp_path / "class" / "x.png")
    views = []
    for interpolation in INTERPOLATIONS:
        data = open_data(DataConfig("folder", str(tmp_path), image_size=24, interpolation=interpolation))
        views.append(next(iter(data.batches(1, seed=0)))[0].numpy().astype(int))  # the same random part
    assert all(np.abs(views[one] - views[other]).max() > 5 for one, other in ((0, 1), (0, 2), (1, 2)))
