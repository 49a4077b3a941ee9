"""Rows re-embedded from their images."""

from __future__ import annotations

import numpy as np
import pytest
from support.images import numpy_embedder, write_images

from fct_infer.connectors import open_source
from fct_infer.embedding import embed_gallery
from fct_infer.errors import InputError, UsageError
from fct_infer.serving import Backfiller, Settings, read_backfilled
from fct_infer.serving.image_embedder import ImageEmbedder
from fct_infer.serving.loading import all_ids


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_those_that_embedding_the_folder_gives(tmp_path, threads):
    write_images(tmp_path / "photos", 71)
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder())
    source = open_source(tmp_path / "g")
    ids, rows = all_ids(source), source.read_rows(np.arange(71))[0]
    order = np.random.default_rng(0).permutation(71)
    embed = ImageEmbedder(numpy_embedder(), tmp_path / "photos", threads)
    np.testing.assert_array_equal(embed(ids[order]), rows[order])


def test_what_is_not_there_or_broken_stays_as_it_is(tmp_path):
    names = list(write_images(tmp_path / "photos", 5))
    (tmp_path / "photos" / names[1]).write_bytes(b"no image")
    found = ImageEmbedder(numpy_embedder(), tmp_path / "photos")(np.array([names[0], names[1], "gone.png", names[2]]))
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, False]
    with pytest.raises(InputError):
        ImageEmbedder(numpy_embedder(), tmp_path / "nowhere")
    with pytest.raises(UsageError, match="makes side-information"):
        ImageEmbedder(numpy_embedder(kind="side-information"), tmp_path / "photos")


def test_a_gallery_is_backfilled_from_its_images(tmp_path):
    names = list(write_images(tmp_path / "photos", 40))
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder())
    source = open_source(tmp_path / "g")
    (tmp_path / "photos" / names[7]).unlink()
    embed = ImageEmbedder(numpy_embedder(), tmp_path / "photos")
    report = Backfiller(source, tmp_path / "new", embed, np.arange(40), settings=Settings(probe_rows=0)).run()
    assert (report.new, report.left_out) == (39, 1)
    ((ids, rows),) = read_backfilled(tmp_path / "new")
    assert names[7] not in ids.tolist() and len(rows) == 39
