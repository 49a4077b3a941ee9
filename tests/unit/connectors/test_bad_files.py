"""What is no gallery is refused with file and row, and nothing is left behind."""

from __future__ import annotations

import errno
import struct

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file
from support import vector_files as files
from support.faults import FailNth

from fct_infer.connectors import open_source
from fct_infer.connectors.convert import convert
from fct_infer.errors import GalleryError, ResourceError
from fct_infer.storage import use_filesystem

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)


def refuse(tmp_path, name, message):
    with pytest.raises(GalleryError, match=message) as error:
        convert(tmp_path / name, tmp_path / "gallery", rows_per_shard=50)
    assert error.value.exit_code == 4 and name in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def rows_with(row, value):
    rows = [list(map(float, vector)) for vector in VECTORS]
    rows[row] = value
    return rows


def write_hdf5(path, columns):
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values


def table_of(columns):
    return pa.table({name: files.lists(values) if values.ndim == 2 else values for name, values in columns.items()})


WRITERS = {
    "a.parquet": lambda path, columns: pa.parquet.write_table(table_of(columns), path),
    "a.arrow": lambda path, columns: pa.feather.write_feather(table_of(columns), str(path)),
    "a.npz": lambda path, columns: np.savez(path, **columns),
    "a.hdf5": write_hdf5,
    "a.safetensors": lambda path, columns: save_file(columns, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_ids_that_cannot_be_ids_are_not_row_numbers(tmp_path, name):
    ids = np.arange(230.0)[::-1].copy()  # as pandas makes of integers where one was missing
    WRITERS[name](tmp_path / name, {"embedding": VECTORS, "id": ids})
    refuse(tmp_path, name, "'id' is (double|float64).*, wanted ids that are integers, text or bytes; .*--ids")
    WRITERS[name](tmp_path / name, {"embedding": VECTORS, "id": ids, "item_id": np.arange(230)})
    assert open_source(tmp_path / name).schema.columns["id"] == "item_id"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.asfortranarray(VECTORS), "is in Fortran order; save numpy.ascontiguousarray"),
        (VECTORS.astype(">f4"), "holds >f4, wanted plain little-endian numbers"),
    ],
)
def test_an_array_of_another_layout_is_told_how_to_be_saved(tmp_path, array, message):
    np.savez(tmp_path / "a.npz", embedding=array)
    refuse(tmp_path, "a.npz", f"array 'embedding': {message}")


BAD_ROWS = {
    "null row": (None, "is null, wanted a vector"),
    "null number": ([1.0] * 5 + [None] + [1.0] * 6, "holds a null, wanted numbers"),
    "NaN": ([float("nan")] * 12, "holds NaN or infinity"),
    "infinity": ([float("inf")] * 12, "holds NaN or infinity"),
    "ragged": ([1.0] * 11, "is 11 wide, wanted 12"),
    "empty": ([], "is 0 wide, wanted 12"),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
@pytest.mark.parametrize("kind", ["fixed", "list"])
def test_a_bad_row_is_named(tmp_path, fault, kind):
    value, message = BAD_ROWS[fault]
    if kind == "fixed" and fault in ("ragged", "empty"):
        pytest.skip("a list of fixed size cannot be ragged")
    dtype = pa.list_(pa.float32(), 12) if kind == "fixed" else pa.list_(pa.float32())
    table = pa.table({"v": pa.array(rows_with(157, value), dtype)})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    refuse(tmp_path, "a.parquet", f"a.parquet, row group 1, row 57: .*{message}")
    (tmp_path / "a.parquet").unlink()
    pa.feather.write_feather(table, str(tmp_path / "a.feather"), chunksize=64)
    refuse(tmp_path, "a.feather", f"a.feather, row 157: .*{message}")


@pytest.mark.parametrize("name", [name for name in files.FLOAT32 if name not in ("flat.faiss", "ivf.index")])
def test_nan_is_named_in_every_format(tmp_path, name):
    vectors = VECTORS.copy()
    vectors[17, 3] = np.nan
    files.FLOAT32[name](tmp_path / name, vectors)
    refuse(tmp_path, name, r"row 17: embedding holds NaN or infinity")


@pytest.mark.parametrize("name", files.FLOAT32)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    path = tmp_path / name
    files.FLOAT32[name](path, VECTORS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    if name == "a.fvecs" and int(len(whole) * share) % 52 == 0 and share:
        pytest.skip("ends with a row")
    if name == "stream.arrow" and share == 0.999:
        path.write_bytes(whole[:-200])
    refuse(tmp_path, name, name)


@pytest.mark.parametrize("name", files.FLOAT32)
def test_damage_anywhere_is_an_error_or_other_rows(tmp_path, name):
    """A flipped byte never ends in anything but a typed error or a gallery."""
    path = tmp_path / name
    files.FLOAT32[name](path, VECTORS[:40])
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(5)
    for number in range(25):
        damaged = bytearray(whole)
        place = (
            int(rng.integers(0, min(len(whole), 400))) if number % 2 else -int(rng.integers(1, min(len(whole), 400)))
        )
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            source = open_source(path)
            source.sample(20, 0)
        except Exception as error:
            assert getattr(error, "exit_code", 1) in (2, 4), (number, place, repr(error))


def test_hostile_sizes_are_refused_before_memory_is_taken(tmp_path):
    huge = struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF)
    (tmp_path / "a.fbin").write_bytes(huge + bytes(100))
    refuse(tmp_path, "a.fbin", r"4,294,967,295 x 4,294,967,295")
    (tmp_path / "a.fbin").unlink()
    (tmp_path / "a.fvecs").write_bytes(struct.pack("<i", 0x7FFFFFFF) + bytes(100))
    refuse(tmp_path, "a.fvecs", r"row 0|wide")
    (tmp_path / "a.fvecs").unlink()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + bytes(100))
    refuse(tmp_path, "a.safetensors", "says its header is")
    (tmp_path / "a.safetensors").unlink()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("train", (1 << 40, 1 << 10), np.float32, chunks=(1, 1 << 10))
    refuse(tmp_path, "a.hdf5", r"4,503,599,627,370,496 bytes, 0 are there")


def test_rows_in_other_files_are_not_followed(tmp_path):
    secret = tmp_path.parent / "secret"
    VECTORS.tofile(secret)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("train", VECTORS.shape, np.float32, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    refuse(tmp_path, "a.hdf5", "lie in other files")


def test_widths_that_differ_are_named(tmp_path):
    files.write_vecs(tmp_path / "a.fvecs", VECTORS)
    raw = bytearray((tmp_path / "a.fvecs").read_bytes())
    raw[52 * 9] = 11
    (tmp_path / "a.fvecs").write_bytes(raw)
    refuse(tmp_path, "a.fvecs", r"row 9: is 11 wide, row 0 is 12")


def test_no_rows_are_refused(tmp_path):
    for name in ("a.npy", "fixed.parquet", "a.feather", "a.fbin", "a.safetensors", "flat.faiss"):
        files.FLOAT32[name](tmp_path / name, VECTORS[:0])
        refuse(tmp_path, name, "is empty")
        (tmp_path / name).unlink()


def test_a_null_or_missing_id_is_named(tmp_path):
    ids = [f"i{row}" for row in range(230)]
    ids[88] = None
    pa.parquet.write_table(pa.table({"id": ids, "v": files.lists(VECTORS)}), tmp_path / "a.parquet")
    refuse(tmp_path, "a.parquet", r"row group 0, row 88: has no id")


class Failing:
    """Stands for what a library opens a file with, on a disk that fails."""

    def __init__(self, *_arguments, **_keywords):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("name", "write", "opener"),
    [
        ("a.parquet", files.write_parquet_fixed, "pyarrow.parquet.ParquetFile"),
        ("a.feather", files.write_feather, "pyarrow.PythonFile"),
        ("a.h5", files.write_hdf5, "h5py.File"),
    ],
)
def test_a_disk_that_fails_is_not_the_files_fault(tmp_path, monkeypatch, name, write, opener):
    write(tmp_path / name, VECTORS)
    monkeypatch.setattr(opener, Failing)
    with pytest.raises(ResourceError, match=f"{name}: .*Input/output error"):
        open_source(tmp_path / name)


def test_a_disk_that_fails_inside_an_archive_is_not_its_fault(tmp_path):
    files.write_npz(tmp_path / "a.npz", VECTORS)
    for call in range(1, 4):  # the first read tells the format
        with use_filesystem(FailNth("pread_into", call)), pytest.raises(ResourceError, match=r"a\.npz: read failed"):
            open_source(tmp_path / "a.npz").read_rows(np.arange(230))


def test_faiss_that_finds_no_descriptor_is_not_the_files_fault(tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")

    def fail(*_arguments):
        raise RuntimeError("Error in faiss::FileIOReader at /f.cpp:1: Error: could not open: Too many open files")

    (tmp_path / "a.faiss").write_bytes(b"IxF2" + bytes(100))
    monkeypatch.setattr(faiss, "read_index", fail)
    with pytest.raises(ResourceError, match=r"a\.faiss: cannot be read as a FAISS index: .*Too many open files"):
        open_source(tmp_path / "a.faiss")
