"""Ids from a column or from a file beside the vectors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support import vector_files as files

from fct_infer.connectors import SourceOptions, arrow_arrays, open_source
from fct_infer.connectors.convert import convert
from fct_infer.errors import GalleryError, UsageError

VECTORS = np.random.default_rng(3).standard_normal((4, 3), np.float32)


def write_ids(path, ids):
    if path.suffix == ".npy":
        np.save(path, ids)
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.table({"n": ids, "id": ids}), path)
    else:
        header = ["id"] if path.suffix == ".csv" else []
        path.write_text("\n".join([*header, *map(str, ids)]) + "\n", encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".csv", ".parquet"])
@pytest.mark.parametrize(
    "ids",
    [[5, -3, 2, 9], ["a", "béé", "c", "d"], ["007", "1", "2", "3"], ["a\u2028b", "c\x0cd", "\x85", "d"]],
    ids=["numbers", "text", "zeros", "line ends of Unicode"],
)
def test_ids_beside(tmp_path, suffix, ids):
    files.write_bin(tmp_path / "a.fbin", VECTORS)
    options = SourceOptions(ids=write_ids(tmp_path / f"ids{suffix}", ids))
    report = convert(tmp_path / "a.fbin", tmp_path / "gallery", options, rows_per_shard=3)
    written = [np.load(tmp_path / f"gallery/ids/00000{shard}.npy") for shard in (0, 1)]
    assert np.concatenate(written).tolist() == ids and report.columns["id"].endswith(suffix)


def test_ids_beside_take_the_place_of_a_column(tmp_path):
    pa.parquet.write_table(pa.table({"id": [1, 2, 3, 4], "v": files.lists(VECTORS)}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet", SourceOptions(ids=write_ids(tmp_path / "i.txt", [9, 8, 7, 6])))
    with source.open_part(source.parts()[0]) as reader:
        assert reader.read_ids(1, 3).tolist() == [8, 7]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(pa.int32(), "int64"), (pa.uint64(), "int64"), (pa.binary(), "|S1"), (pa.large_string(), "<U1")],
)
def test_ids_of_a_column_become_what_a_gallery_holds(tmp_path, kind, wanted):
    ids = pa.array(list("1234")).cast(kind)
    pa.parquet.write_table(pa.table({"key": ids, "v": files.lists(VECTORS)}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    with source.open_part(source.parts()[0]) as reader:
        assert reader.read_ids(0, 4).dtype == np.dtype(wanted) and reader.read_ids(0, 4).astype(int).tolist() == [
            1,
            2,
            3,
            4,
        ]


def test_ids_that_do_not_fit_are_refused(tmp_path):
    files.write_bin(tmp_path / "a.fbin", VECTORS)
    for name, content, error, message in (
        ("a.txt", "1\n2\n3\n", GalleryError, r"a.txt: holds 3 ids, the source has 4 rows"),
        ("b.txt", "1\n\n3\n4\n", GalleryError, r"b.txt, row 1: has no id"),
        ("c.csv", "id,x\n1,2\n1\n", GalleryError, r"c.csv, row 1: has 1 fields"),
        ("d.csv", "a,b\n1,2\n", UsageError, r"which column holds the ids"),
        ("s.csv", "id;x\n1;2\n", GalleryError, r"s.csv: its fields are divided by ';', wanted commas"),
        ("e.json", "[]", UsageError, r"ids are read from"),
        ("f.txt", "", GalleryError, r"f.txt: is empty"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(error, match=message):
            open_source(tmp_path / "a.fbin", SourceOptions(ids=tmp_path / name))
    table = pa.table({"id": pa.array([1, 2, 1 << 63, 4], pa.uint64()), "v": files.lists(VECTORS)})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(GalleryError, match=r"row group 0, row 2: id 9223372036854775808 does not fit int64"):
        convert(tmp_path / "a.parquet", tmp_path / "gallery")
    np.save(tmp_path / "large.npy", np.array([1, 2, 3, 1 << 63], np.uint64))
    with pytest.raises(GalleryError, match=r"large.npy, row 3: id 9223372036854775808 does not fit int64"):
        open_source(tmp_path / "a.fbin", SourceOptions(ids=tmp_path / "large.npy"))


def test_an_id_that_is_a_document_is_refused(tmp_path):
    """Ids are held as wide as the longest, so that one such id takes as much memory as a document a row."""
    ids = ["a", "b", "c" * (arrow_arrays.MAX_ID + 1), "d"]
    pa.parquet.write_table(pa.table({"id": ids, "v": files.lists(VECTORS)}), tmp_path / "a.parquet")
    with pytest.raises(GalleryError, match=r"row group 0, row 2: its id is 65,537 long, more than 65,536"):
        convert(tmp_path / "a.parquet", tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()
