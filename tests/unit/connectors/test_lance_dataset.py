"""Lance data sets, written by Lance: one version of them, with what was deleted left out."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from support import vector_files as files

from fct_infer.connectors import SourceOptions, open_source, parted
from fct_infer.connectors.registry import kind_of
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery.source import SourceReader
from fct_infer.storage import location

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)
IDS = [f"d{row}" for row in range(230)]


def write(path: Path, vectors: object = None, **columns: object) -> Path:
    column = files.fixed_size(VECTORS) if vectors is None else vectors
    lance.write_dataset(pa.table({"v": column, **columns}), path, max_rows_per_file=90, mode="overwrite")
    return path


def rows_of(path: Path) -> np.ndarray:
    source = open_source(path)
    return source.read_rows(np.arange(source.schema.rows))[0]


def test_fragments_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(parted, "PART_BYTES", 60 * 12 * 4)
    source = open_source(write(tmp_path / "a", id=IDS, n=list(range(230))))
    assert kind_of(tmp_path / "a") == "lance" and source.columns.roles == {"embedding": "v", "id": "id"}
    assert source.schema.other_columns == ("n",) and [part.rows for part in source.parts()] == [45, 45, 45, 45, 50]
    assert (rows_of(tmp_path / "a") == VECTORS).all()
    with SourceReader(source) as reader:
        ids = [reader.at(part).read_ids(0, part.rows) for part in source.parts()]
    assert np.concatenate(ids).tolist() == IDS
    assert source.where(100).endswith("a, fragment 1, row 10")
    assert source.where(100, "id").endswith("a, fragment 1, row 10, column 'id'")


@pytest.mark.parametrize("seed", range(3))
def test_any_rows_of_what_is_left_after_deletions(tmp_path, seed):
    dataset = lance.dataset(str(write(tmp_path / "a", n=list(range(230)))))
    dataset.delete("n % 7 = 3 OR (n >= 90 AND n < 180)")
    kept = np.array([row for row in range(230) if row % 7 != 3 and not 90 <= row < 180])
    source = open_source(tmp_path / "a")
    assert source.schema.rows == len(kept) and "random_rows" in source.capabilities
    chosen = np.sort(np.random.default_rng(seed).choice(len(kept), 20, replace=False))
    assert (source.read_rows(chosen)[0] == VECTORS[kept[chosen]]).all()
    assert (rows_of(tmp_path / "a") == VECTORS[kept]).all()


def test_a_version_is_read_whatever_is_written_meanwhile(tmp_path):
    source = open_source(write(tmp_path / "a", n=list(range(230))))
    before = source.fingerprint()
    part = source.parts()[0]
    with source.open_part(part) as reader:
        old = np.empty((10, 12), np.float32)
        reader.read_into(0, 10, old, None)
        dataset = lance.dataset(str(tmp_path / "a"))
        dataset.insert(pa.table({"v": files.fixed_size(VECTORS[:5]), "n": range(5)}))
        dataset.delete("n = 3")
        rest = np.empty((220, 12), np.float32)
        reader.read_into(10, 230, rest, None)
    assert (rest == VECTORS[10:]).all() and (source.read_rows(np.arange(230))[0] == VECTORS).all()
    assert source.fingerprint() == before and before["read as"]["version"] == 1
    newer = open_source(tmp_path / "a")
    assert newer.schema.rows == 233 and newer.fingerprint()["read as"]["version"] == 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_lists_of_every_kind(tmp_path, dtype):
    vectors = VECTORS.astype(dtype)
    for number, kind in enumerate((pa.list_, pa.large_list, lambda child: pa.list_(child, 12))):
        write(tmp_path / str(number), pa.array(list(vectors), kind(pa.from_numpy_dtype(vectors.dtype))))
        source = open_source(tmp_path / str(number), SourceOptions(allow_cast=True))
        assert (source.read_rows(np.arange(230))[0] == vectors.astype(source.schema.embedding_dtype)).all()
    if dtype == "float64":
        with pytest.raises(GalleryError, match="column 'v': holds float64"):
            open_source(tmp_path / "0")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "is null, wanted a vector"),
        ([1.0] * 5 + [None] + [1.0] * 6, "holds a null, wanted numbers"),
        ([1.0] * 11, "is 11 wide, wanted 12"),
    ],
)
def test_a_bad_row_is_named(tmp_path, value, words):
    rows: list[object] = [list(map(float, vector)) for vector in VECTORS]
    rows[157] = value
    write(tmp_path / "a", pa.array(rows, pa.list_(pa.float32())))
    with pytest.raises(GalleryError, match=rf"a, fragment 1, row 67: {words}"):
        rows_of(tmp_path / "a")


def test_a_null_id_is_named(tmp_path):
    source = open_source(write(tmp_path / "a", id=[*IDS[:100], None, *IDS[101:]]))
    with pytest.raises(GalleryError, match=r"a, fragment 1, row 10: has no id"):
        source.read_rows(np.arange(1))
        with SourceReader(source) as reader:
            reader.at(source.parts()[0]).read_ids(0, 230)


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "gone"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    write(tmp_path / "a")
    file = sorted((tmp_path / "a/data").iterdir())[1]
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:-30] if damage == "truncated" else b"x" * len(whole))
    with pytest.raises(GalleryError, match=r"a: cannot be read as Lance: [^\n]*$"):
        rows_of(tmp_path / "a")


def test_what_is_no_data_set(tmp_path):
    write(tmp_path / "a")
    for manifest in (tmp_path / "a/_versions").iterdir():
        manifest.write_bytes(b"garbage" * 100)
    with pytest.raises(GalleryError, match="a: cannot be read as Lance"):
        open_source(tmp_path / "a")
    lance.write_dataset(pa.table({"v": files.fixed_size(VECTORS[:0].reshape(0, 12))}), tmp_path / "empty")
    with pytest.raises(GalleryError, match="empty: is empty, it holds no rows"):
        open_source(tmp_path / "empty")
    from fct_infer.connectors.lance_dataset import LanceSource

    with pytest.raises(UsageError, match="read from folders, s3:// and gs://"):
        LanceSource(location("memory://a.lance"), SourceOptions())
