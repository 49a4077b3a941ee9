"""A conversion is whole or not there."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from support import vector_files as files
from support.faults import FullDisk

from fct_infer.connectors import SourceOptions, open_source
from fct_infer.connectors.convert import convert
from fct_infer.errors import GalleryError, OutputError, ResourceError, UsageError
from fct_infer.storage import use_filesystem

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)


@pytest.mark.parametrize("room", [0, 200, 6000])
def test_a_full_disk_leaves_nothing(tmp_path, room):
    files.write_parquet_fixed(tmp_path / "a.parquet", VECTORS)
    with use_filesystem(FullDisk(room)), pytest.raises(ResourceError, match="the disk is full"):
        convert(tmp_path / "a.parquet", tmp_path / "gallery", rows_per_shard=100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert convert(tmp_path / "a.parquet", tmp_path / "gallery").rows == 230


def test_what_is_there_is_kept_until_the_new_one_is_whole(tmp_path):
    np.save(tmp_path / "a.npy", VECTORS)
    convert(tmp_path / "a.npy", tmp_path / "gallery")
    with pytest.raises(OutputError, match="exists already"):
        convert(tmp_path / "a.npy", tmp_path / "gallery")
    bad = VECTORS.copy()
    bad[-1] = np.inf
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(GalleryError, match="row 229: embedding holds NaN or infinity"):
        convert(tmp_path / "bad.npy", tmp_path / "gallery", force=True)
    assert (np.load(tmp_path / "gallery/embeddings/000000.npy") == VECTORS).all()
    with pytest.raises(UsageError, match="would be replaced"):
        convert(tmp_path / "gallery", tmp_path / "gallery", force=True)


def test_what_a_narrower_dtype_cannot_hold_is_named(tmp_path):
    vectors = VECTORS.astype(np.float64)
    vectors[9, 2] = 1e39
    np.save(tmp_path / "wide.npy", vectors)
    with pytest.raises(GalleryError, match="row 9: embedding holds NaN or infinity"):
        convert(tmp_path / "wide.npy", tmp_path / "gallery", SourceOptions(allow_cast=True))
    vectors = VECTORS.copy()
    vectors[9, 2] = 70000
    np.save(tmp_path / "a.npy", vectors)
    with pytest.raises(GalleryError, match="row 9: embedding does not fit float16"):
        convert(tmp_path / "a.npy", tmp_path / "gallery", dtype="float16")
    assert convert(tmp_path / "a.npy", tmp_path / "gallery").dtype == "float32"


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=np.array([{}, []], object))
    with pytest.raises(GalleryError, match="holds object"):
        open_source(tmp_path / "a.npz")


def test_a_pipe_does_not_block(tmp_path):
    for name in ("a.parquet", "a.hdf5", "a.npz", "a.arrow", "a.faiss"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(GalleryError, match="is not a regular file"):
            open_source(tmp_path / name)


def test_an_unknown_format_is_said(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(100))
    with pytest.raises(UsageError, match=r"of no format known.*\.parquet"):
        open_source(tmp_path / "a.bin")
    with pytest.raises(GalleryError, match="cannot be read: No such file"):
        open_source(tmp_path / "missing.parquet")


def test_content_is_believed_before_the_suffix(tmp_path):
    files.write_parquet_fixed(tmp_path / "a.data", VECTORS)
    assert (open_source(tmp_path / "a.data").sample(230, 0)[1] == VECTORS).all()


def test_what_a_missing_library_needs_is_named(tmp_path, monkeypatch):
    files.write_parquet_fixed(tmp_path / "a.parquet", VECTORS)
    files.write_hdf5(tmp_path / "a.hdf5", VECTORS)
    for name in ("pyarrow", "h5py"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, extra in (("a.parquet", "parquet"), ("a.hdf5", "hdf5")):
        with pytest.raises(UsageError, match=rf"is not installed; run: pip install 'fct-infer\[{extra}\]'"):
            open_source(tmp_path / name)
