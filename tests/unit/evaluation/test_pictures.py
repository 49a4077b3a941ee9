import base64
import io
import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from fct_infer.errors import GalleryError
from fct_infer.evaluation import ImageFile, RetrievedRow, retrieved_html
from fct_infer.evaluation.pictures import png_bytes

PIXELS = np.random.default_rng(1).integers(0, 256, (5, 7, 9, 3)).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    return ImageFile(tmp_path / "images.npy", 5)


def test_png_is_what_another_library_reads():
    assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(PIXELS[0])))), PIXELS[0])


def test_single_images_come_back(images):
    for row in (0, 4):
        assert_array_equal(images[row], PIXELS[row])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS[0], r"uint8 \(7, 9, 3\), wanted uint8 images"),
        (PIXELS.astype(np.float32), "is float32"),
        (PIXELS[..., :2], r"\(5, 7, 9, 2\)"),
        (PIXELS[:4], "holds 4 images for 5 embeddings"),
    ],
)
def test_what_is_no_file_of_images_is_named(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", np.ascontiguousarray(array))
    with pytest.raises(GalleryError, match=rf"bad\.npy: .*{message}"):
        ImageFile(tmp_path / "bad.npy", 5)


def test_a_row_shows_query_and_found_images(images):
    row = RetrievedRow(
        2, "<cat>", {"old/old": [0, 1], "new/new": [3, 4]}, {"old/old": [True, False], "new/new": [True] * 2}
    )
    page = retrieved_html([row], images, images)
    shown = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]
    for image, expected in zip(shown, (2, 0, 1, 3, 4), strict=True):
        assert_array_equal(np.asarray(image), PIXELS[expected])
    assert page.count('class="right"') == 3 and page.count('class="wrong"') == 1
    assert "&lt;cat&gt;" in page and "<cat>" not in page
    assert "old/old: 1 of 2" in page and "new/new: 2 of 2" in page
    assert retrieved_html([row], images).count("<img") == 4


def test_large_images_are_thinned_out(tmp_path):
    np.save(tmp_path / "large.npy", np.zeros((1, 300, 200, 3), np.uint8))
    row = RetrievedRow(0, 1, {"new/new": [0]}, {"new/new": [True]})
    page = retrieved_html([row], ImageFile(tmp_path / "large.npy", 1))
    (data,) = re.findall(r"base64,([^\"]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (50, 75)
