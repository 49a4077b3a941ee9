"""Rows come back exactly as stored, into the caller's buffers, and a file that changes is an error."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.faults import FaultyFileSystem, ShortTransfers, ShrinkingFile
from support.galleries import write_gallery

from fct_infer.errors import ArrayError, GalleryError
from fct_infer.gallery import Gallery, ShardReader, read_rows
from fct_infer.storage import use_filesystem

ROWS = (50, 1, 33)


@pytest.fixture(scope="module", params=["float32", "float16"])
def stored(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "g"
    arrays = write_gallery(path, rows_per_shard=ROWS, old_dim=6, side_dim=4, dtype=request.param, ids="str", seed=1)
    return Gallery.open(path), arrays


def test_every_range_of_every_shard(stored):
    gallery, arrays = stored
    for shard in gallery.shards:
        with ShardReader(shard) as reader:
            for start, stop in ((0, shard.rows), (shard.rows - 1, shard.rows), (0, 1), (shard.rows // 2, shard.rows)):
                old = np.empty((stop - start, 6), gallery.embedding_dtype)
                side = np.empty((stop - start, 4), gallery.side_dtype)
                reader.read_into(start, stop, old, side)
                rows = slice(shard.first_row + start, shard.first_row + stop)
                assert np.array_equal(old, arrays["old"][rows])
                assert np.array_equal(side, arrays["side"][rows])
                assert reader.read_ids(start, stop).tolist() == arrays["ids"][rows].tolist()
                reader.read_into(start, stop, old, None)


def test_one_reader_serves_many_threads(stored):
    gallery, arrays = stored
    with ShardReader(gallery.shards[0]) as reader, ThreadPoolExecutor(4) as pool:

        def read(start):
            old = np.empty((5, 6), gallery.embedding_dtype)
            reader.read_into(start, start + 5, old, None)
            return np.array_equal(old, arrays["old"][start : start + 5])

        assert all(pool.map(read, [start % 45 for start in range(300)]))


def test_without_ids_the_row_number_over_all_shards_takes_their_place(tmp_path):
    write_gallery(tmp_path, rows_per_shard=(5, 7), old_dim=2, side_dim=None, ids=None)
    with ShardReader(Gallery.open(tmp_path).shards[1]) as reader:
        ids = reader.read_ids(2, 5)
    assert ids.dtype == np.int64
    assert ids.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    "buffer",
    [
        np.empty((3, 6), np.float64),
        np.empty((2, 6), np.float32),
        np.empty((3, 7), np.float32),
        np.empty((6, 3), np.float32).T,
        np.empty((3, 12), np.float32)[:, ::2],
        np.empty(18, np.float32),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(tmp_path, buffer):
    write_gallery(tmp_path, rows_per_shard=(9,), old_dim=6, side_dim=None)
    with (
        ShardReader(Gallery.open(tmp_path).shards[0]) as reader,
        pytest.raises(ArrayError, match=r"old is .* wanted float32 \(3, 6\)"),
    ):
        reader.read_into(2, 5, buffer, None)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 3), (4, 2), (8, 11)])
def test_rows_outside_the_shard_are_refused(tmp_path, start, stop):
    write_gallery(tmp_path, rows_per_shard=(9,), old_dim=6, side_dim=None)
    with ShardReader(Gallery.open(tmp_path).shards[0]) as reader, pytest.raises(ArrayError):
        reader.read_into(start, stop, np.empty((max(stop - start, 0), 6), np.float32), None)


def test_side_asked_for_where_there_is_none(tmp_path):
    write_gallery(tmp_path, rows_per_shard=(9,), old_dim=6, side_dim=None)
    old, side = np.empty((1, 6), np.float32), np.empty((1, 4), np.float32)
    with ShardReader(Gallery.open(tmp_path).shards[0]) as reader, pytest.raises(ArrayError, match="side"):
        reader.read_into(0, 1, old, side)


def test_a_shard_that_changes_under_our_feet_is_an_error(tmp_path):
    write_gallery(tmp_path, rows_per_shard=(900,), old_dim=6, side_dim=None)
    shard = Gallery.open(tmp_path).shards[0]
    old = np.empty((900, 6), np.float32)
    with ShardReader(shard) as reader:
        reader.read_into(0, 900, old, None)
        with shard.embeddings.open("r+b") as file:
            file.truncate(5000)
        with pytest.raises(GalleryError, match=r"000000.npy: ends at byte 5000, .* truncated"):
            reader.read_into(0, 900, old, None)
    np.save(shard.embeddings, np.zeros((800, 6), np.float32))
    with ShardReader(shard) as reader, pytest.raises(GalleryError, match="had 900 rows, now"):
        reader.read_into(0, 900, old, None)


def test_short_reads_and_a_shrinking_file(stored):
    gallery, arrays = stored
    old = np.empty((50, 6), gallery.embedding_dtype)
    with use_filesystem(ShortTransfers(11)), ShardReader(gallery.shards[0]) as reader:
        reader.read_into(0, 50, old, None)
    assert np.array_equal(old, arrays["old"][:50])
    with (
        use_filesystem(ShrinkingFile(1)),
        ShardReader(gallery.shards[0]) as reader,
        pytest.raises(GalleryError, match="truncated"),
    ):
        reader.read_into(0, 50, old, None)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, sum(ROWS) - 1), max_size=100).map(sorted))
def test_any_sorted_sample(stored, rows):
    gallery, arrays = stored
    numbers = np.array(rows, np.int64)
    for old, side in (read_rows(gallery, numbers), gallery.read_rows(numbers)):
        assert old.dtype == gallery.embedding_dtype
        assert np.array_equal(old, arrays["old"][numbers])
        assert np.array_equal(side, arrays["side"][numbers])


def test_a_sample_reads_what_it_needs_and_neighbours_at_once(tmp_path):
    arrays = write_gallery(tmp_path, rows_per_shard=(20_000, 20_000), old_dim=64, side_dim=None)
    gallery = Gallery.open(tmp_path)

    class Counting(FaultyFileSystem):
        read = 0

        def pread_into(self, fd, buffer, offset):
            count = super().pread_into(fd, buffer, offset)
            Counting.read += count
            return count

    for rows, most_calls, most_bytes in (
        (np.arange(3000, 4000), 2, 1000 * 256 + 2000),
        (np.arange(0, 40_000, 400), 104, 100 * 256 + 4000),
        (np.arange(15_000, 25_000, 2), 10, 10_000 * 256 + 4000),
    ):
        Counting.read = 0
        with use_filesystem(counting := Counting()):
            old, side = gallery.read_rows(rows)
        assert side is None
        assert np.array_equal(old, arrays["old"][rows])
        assert counting.calls["pread_into"] <= most_calls
        assert Counting.read <= most_bytes


@pytest.mark.parametrize(
    "rows",
    [
        np.array([3, 1], np.int64),
        np.array([-1, 1], np.int64),
        np.array([0, sum(ROWS)], np.int64),
        np.array([0, 1], np.int32),
        np.array([[0, 1]], np.int64),
    ],
)
def test_row_numbers_that_make_no_sense(stored, rows):
    with pytest.raises(ArrayError, match="rows"):
        read_rows(stored[0], rows)
