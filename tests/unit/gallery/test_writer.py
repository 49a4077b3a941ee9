"""What is written is read back, by us and by NumPy, whatever the sizes of the batches."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.faults import FailNth, FullDisk

from fct_infer.errors import ArrayError, ResourceError
from fct_infer.gallery import Gallery, GalleryWriter, NpyShardWriter, ShardReader, write_npy
from fct_infer.storage import use_filesystem


def rows_of(count, dim=3, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(dtype)


@pytest.mark.parametrize(
    "array",
    [
        rows_of(5),
        rows_of(5, dtype="f2"),
        np.arange(7),
        np.array(["a", "bücher", ""]),
        np.array([b"x", b"yz"]),
        np.float32(3).reshape(()),
        np.zeros((0, 4), np.float32),
    ],
)
def test_write_npy_writes_what_numpy_would(tmp_path, array):
    written = write_npy(tmp_path / "ours.npy", array)
    np.save(tmp_path / "numpys.npy", array)
    data = (tmp_path / "ours.npy").read_bytes()
    assert data == (tmp_path / "numpys.npy").read_bytes()
    assert (written.size, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("array", [np.asfortranarray(rows_of(4)), rows_of(4)[:, ::2], np.array([{}, None])])
def test_write_npy_copies_and_pickles_nothing(tmp_path, array):
    with pytest.raises(ArrayError, match="C-contiguous"):
        write_npy(tmp_path / "a.npy", array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_a_shard_written_in_blocks_is_the_file_numpy_writes(tmp_path, dtype):
    array = rows_of(10, dtype=dtype)
    writer = NpyShardWriter(tmp_path / "a.npy", 10, 3, np.dtype(dtype))
    for start, stop in ((0, 4), (4, 4), (4, 10)):
        writer.write_rows(array[start:stop])
    written = writer.commit()
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert written.size == (tmp_path / "b.npy").stat().st_size


def test_a_shard_with_other_rows_than_promised_never_appears(tmp_path):
    with (
        pytest.raises(ArrayError, match="2 rows written, promised 3"),
        NpyShardWriter(tmp_path / "a.npy", 3, 3, np.dtype("f4")) as writer,
    ):
        writer.write_rows(rows_of(2))
    with (
        pytest.raises(ArrayError, match="row 4 written, promised 3"),
        NpyShardWriter(tmp_path / "a.npy", 3, 3, np.dtype("f4")) as writer,
    ):
        writer.write_rows(rows_of(4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", [rows_of(2, 4), rows_of(2, dtype="f2"), np.asfortranarray(rows_of(2)), rows_of(2)[0]])
def test_a_block_that_does_not_fit_is_refused(tmp_path, block):
    writer = NpyShardWriter(tmp_path / "a.npy", 3, 3, np.dtype("f4"))
    with pytest.raises(ArrayError, match=r"block is .* wanted C-contiguous float32 \(n, 3\)"):
        writer.write_rows(block)
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum),
    rows_per_shard=st.integers(10, 50),
    ids=st.sampled_from(["int", "str", None]),
    dtype=st.sampled_from(["f4", "f2"]),
)
def test_any_batches_make_the_same_gallery(tmp_path_factory, batches, rows_per_shard, ids, dtype):
    path = tmp_path_factory.mktemp("written") / "g"
    total = sum(batches)
    old, side = rows_of(total, 3, dtype, 1), rows_of(total, 2, dtype, 2)
    names = {"int": np.arange(total) * 7, "str": np.array([f"item-{n}" for n in range(total)]), None: None}[ids]
    with GalleryWriter(path, rows_per_shard, dtype) as writer:
        start = 0
        for count in batches:
            part = slice(start, start + count)
            writer.append(old[part], side[part], None if names is None else names[part])
            start += count
    assert writer.rows == total
    gallery = Gallery.open(path)
    assert [shard.rows for shard in gallery.shards[:-1]] == [rows_per_shard] * (len(gallery.shards) - 1)
    assert [shard.embeddings.name for shard in gallery.shards] == [f"{n:06d}.npy" for n in range(len(gallery.shards))]
    read_old, read_side = gallery.read_rows(np.arange(total))
    assert np.array_equal(read_old, old)
    assert np.array_equal(read_side, side)
    if names is not None:
        read = []
        for shard in gallery.shards:
            with ShardReader(shard) as reader:
                read += reader.read_ids(0, shard.rows).tolist()
        assert read == names.tolist()


def test_the_callers_buffer_may_be_reused(tmp_path):
    buffer = np.empty((4, 3), np.float32)
    with GalleryWriter(tmp_path / "g", 100) as writer:
        for value in range(3):
            buffer[:] = value
            writer.append(buffer)
    old, _ = Gallery.open(tmp_path / "g").read_rows(np.arange(12))
    assert old[:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((rows_of(2, 4), rows_of(2, 2), np.arange(2)), r"embeddings is float32 \(2, 4\), wanted \(n, 3\)"),
        ((rows_of(2, 3, "f2"), rows_of(2, 2), np.arange(2)), "embeddings is float16"),
        ((rows_of(2), rows_of(3, 2), np.arange(2)), r"side_information is .*\(3, 2\), .*2 rows"),
        ((rows_of(2), rows_of(2, 2), np.arange(3)), "ids is int64"),
        ((rows_of(2), rows_of(2, 2), np.array(["a", "b"])), "ids is <U1"),
        ((rows_of(2), rows_of(2, 2), np.arange(2.0)), "ids is float64"),
        ((rows_of(2), rows_of(2, 2), None), "this batch has embeddings, side_information; the ones before had"),
    ],
)
def test_a_batch_that_does_not_fit_the_ones_before(tmp_path, batch, words):
    with GalleryWriter(tmp_path / "g", 100) as writer:
        writer.append(rows_of(2), rows_of(2, 2), np.arange(2))
        with pytest.raises(ArrayError, match=words):
            writer.append(*batch)
    assert Gallery.open(tmp_path / "g").rows == 2


def test_a_writer_that_makes_no_sense(tmp_path):
    with pytest.raises(ArrayError, match="rows_per_shard"):
        GalleryWriter(tmp_path / "g", 0)
    with pytest.raises(ArrayError, match="float64"):
        GalleryWriter(tmp_path / "g", dtype=np.float64)
    with GalleryWriter(tmp_path / "g") as writer:
        writer.append(rows_of(2))
    with pytest.raises(ArrayError, match="holds a gallery already"):
        GalleryWriter(tmp_path / "g")


def test_an_error_of_the_caller_writes_no_last_shard(tmp_path):
    with pytest.raises(ZeroDivisionError), GalleryWriter(tmp_path / "g", 2) as writer:
        writer.append(rows_of(5))
        raise ZeroDivisionError
    assert [shard.rows for shard in Gallery.open(tmp_path / "g").shards] == [2, 2]


@pytest.mark.parametrize("fault", [FullDisk(300), FailNth("fsync"), FailNth("rename")])
def test_a_failing_disk_is_named_and_leaves_whole_shards_only(tmp_path, fault):
    with (
        pytest.raises(ResourceError, match=r"\.npy: cannot be written"),
        use_filesystem(fault),
        GalleryWriter(tmp_path / "g", 10) as writer,
    ):
        for _ in range(5):
            writer.append(rows_of(7))
    assert all(file.suffix == ".npy" for file in tmp_path.rglob("*") if file.is_file())
