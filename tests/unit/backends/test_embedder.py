from __future__ import annotations

import numpy as np
import pytest
from support.images import PLAIN, numpy_embedder

from fct_infer.errors import ArrayError, NonFiniteError


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 3, 8, 12), np.float32)


def test_it_says_what_it_is():
    embed = numpy_embedder(6, kind="side-information", version="v3")
    assert (embed.kind, embed.model_version, embed.precision) == ("side-information", "v3", "fp32")
    assert (embed.backend, embed.device) == ("numpy", "cpu")
    assert (embed.image_shape, embed.embedding_dim, embed.preprocessing) == ((3, 8, 12), 6, PLAIN)
    assert repr(embed) == (
        "Embedder(kind='side-information', image_shape=(3, 8, 12), embedding_dim=6, backend='numpy', device='cpu', "
        "precision='fp32')"
    )


@pytest.mark.parametrize("rows", [1, 2, 7, 4096])
def test_it_embeds_any_batch(rows):
    found = numpy_embedder()(images(rows))
    assert found.shape == (rows, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found, images(rows).mean(axis=2).reshape(rows, -1)[:, :6], rtol=1e-6)


def test_no_images_make_no_embeddings_and_no_call():
    embed = numpy_embedder()
    assert embed(images(0)).shape == (0, 6)
    assert embed._runner.batch_sizes == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.astype(np.float64), r"images is float64 \(3, 3, 8, 12\), wanted float32 \(n, 3, 8, 12\)"),
        (lambda x: x.astype(np.uint8), "images is uint8"),
        (lambda x: x.astype(">f4"), "images is >f4"),
        (lambda x: x[0], r"images is float32 \(3, 8, 12\)"),
        (lambda x: x[..., :11], r"images is float32 \(3, 3, 8, 11\)"),
        (lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)), r"images is float32 \(3, 8, 12, 3\)"),
        (lambda x: np.asfortranarray(x), "images is not C-contiguous"),
        (lambda x: x[::-1], "images is not C-contiguous"),
        (lambda x: x.tolist(), "images is a list, wanted a NumPy array"),
        (lambda _: None, "images is a NoneType"),
    ],
)
def test_nothing_is_cast_or_copied_silently(spoil, message):
    with pytest.raises(ArrayError, match=message):
        numpy_embedder()(spoil(images(3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_named(bad):
    batch = images(5)
    batch[3, 2, 7, 11] = bad
    with pytest.raises(NonFiniteError) as caught:
        numpy_embedder()(batch)
    assert (caught.value.array, caught.value.row) == ("images", 3)


def test_an_embedding_that_is_not_finite_is_named():
    def compute(batch: np.ndarray) -> np.ndarray:
        found = batch.mean(axis=2).reshape(len(batch), -1)[:, :6].copy()
        found[4, 0] = np.inf
        return found

    with pytest.raises(NonFiniteError) as caught:
        numpy_embedder(compute=compute)(images(5))
    assert (caught.value.array, caught.value.row) == ("result", 4)
