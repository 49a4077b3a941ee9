"""Images as a model takes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import random_pixels

from fct_infer.artifacts.manifest import INTERPOLATIONS, Preprocessing
from fct_infer.embedding.preprocessing import preprocess
from fct_infer.errors import InputError

AS_THEY_ARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_images_of_the_right_size_are_only_normalised_bit_by_bit_as_torch_does():
    pixels, mean, std = random_pixels(1, 30, 40), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    result = preprocess(Image.fromarray(pixels), Preprocessing((30, 40), mean, std), "x")
    wanted = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    wanted.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])
    assert result.dtype == np.float32 and result.flags.c_contiguous
    assert np.array_equal(result, wanted.numpy())


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_images_are_scaled_as_the_bundle_says(interpolation):
    image = Image.fromarray(random_pixels(1, 30, 40))
    recipe = replace(Preprocessing((9, 7), *AS_THEY_ARE), interpolation=interpolation)
    wanted = np.asarray(image.resize((7, 9), Image.Resampling[interpolation.upper()]))
    assert np.array_equal(preprocess(image, recipe, "x"), wanted.transpose(2, 0, 1).astype(np.float32) / 255)


def test_a_hair_is_not_blown_up_into_a_giant():
    hair = Image.new("RGB", (1, 60_000))
    with pytest.raises(InputError, match=r"hair\.png: 256x15360000 pixels, at most"):
        preprocess(hair, Preprocessing((224, 224), *AS_THEY_ARE, resize=256), "hair.png")
