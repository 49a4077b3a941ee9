"""Parquet as what is published: new vectors in the place of the old ones, everything else as it was."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support import vector_files as files
from support.faults import FailNth, FullDisk
from support.programs import linear_map

from fct_infer import SourceOptions, Transformation, load_index, open_source, upgrade_gallery
from fct_infer.connectors import parquet_sink, parted
from fct_infer.errors import ArtifactError, GalleryError, ResourceError, UsageError
from fct_infer.evaluation import read_embeddings
from fct_infer.evaluation.inputs import read_ids
from fct_infer.index.verify import verify_gallery
from fct_infer.storage import use_filesystem
from fct_infer.upgrade.settings import Settings

ROWS = 230
VECTORS = np.random.default_rng(3).standard_normal((ROWS, 12), np.float32)
PARQUET, NPY = Settings(index="Flat", block_rows=30, format="parquet"), Settings(index="Flat", block_rows=30)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parted, "PART_BYTES", 60 * 12 * 4)
    monkeypatch.setattr(parquet_sink, "_GROUP_BYTES", 25 * 10 * 4)


@pytest.fixture(scope="module")
def h():
    return Transformation(linear_map(12, 10, seed=1))


def rich_table(vectors: np.ndarray = VECTORS) -> pa.Table:
    table = pa.table(
        {
            "title": pa.array([f"title {row % 7}" for row in range(ROWS)]).dictionary_encode(),
            "v": files.lists(vectors),
            "doc_id": [f"d{row}" for row in range(ROWS)],
            "price": pa.array([None if row % 3 else row for row in range(ROWS)], pa.decimal128(9, 2)),
            "tags": [["tag"] * (row % 4) if row % 5 else None for row in range(ROWS)],
            "more": [{"x": row, "at": None} for row in range(ROWS)],
        }
    )
    table = table.set_column(1, table.schema.field("v").with_metadata({"unit": "none"}), table["v"])
    return table.replace_schema_metadata({"made by": "a user"})


def write(path: Path, table: pa.Table, group: int = 70) -> Path:
    pa.parquet.write_table(table, path, row_group_size=group)
    return path


def npy_rows(dest: Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((dest / "embeddings").iterdir())])


def vectors_of(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().values.to_numpy().reshape(table.num_rows, -1)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_all_other_columns_are_as_they_were(tmp_path, h, dtype):
    table = rich_table()
    source = write(tmp_path / "a.parquet", table)
    upgrade_gallery(source, h, tmp_path / "npy", settings=replace(NPY, dtype=dtype))
    report = upgrade_gallery(source, h, tmp_path / "new", settings=replace(PARQUET, dtype=dtype))
    assert report.shards > 3
    assert [path.name for path in sorted((tmp_path / "new/embeddings").iterdir())][:2] == [
        "000000.parquet",
        "000001.parquet",
    ]
    found = pa.parquet.read_table(tmp_path / "new/embeddings")
    assert found.column_names == table.column_names and found.schema.metadata == table.schema.metadata
    assert found.schema.field("v").metadata == {b"unit": b"none"}
    assert found.schema.field("v").type.list_size == 10
    for name in table.column_names:
        if name != "v":
            assert found.schema.field(name) == table.schema.field(name)
            assert found[name].to_pylist() == table[name].to_pylist()
    assert vectors_of(found, "v").tobytes() == npy_rows(tmp_path / "npy").tobytes()
    assert (tmp_path / "new/index.faiss").read_bytes() == (tmp_path / "npy/index.faiss").read_bytes()
    _, ids = load_index(tmp_path / "new").search(vectors_of(found, "v").astype(np.float32), k=1)
    assert ids[:, 0].tolist() == table["doc_id"].to_pylist()
    check = verify_gallery(tmp_path / "new")
    assert not check.damaged and check.index_opened


def test_files_do_not_depend_on_how_rows_are_cut_into_blocks(tmp_path, h):
    source = write(tmp_path / "a.parquet", rich_table())
    found = set()
    for block_rows in (7, 30, 230):
        dest = tmp_path / str(block_rows)
        upgrade_gallery(source, h, dest, settings=Settings(index="none", block_rows=block_rows, format="parquet"))
        found.add(b"".join(path.read_bytes() for path in sorted((dest / "embeddings").iterdir())))
    assert len(found) == 1


@pytest.mark.parametrize("name", ["a.npy", "a.hdf5", "flat.faiss"])
def test_other_formats_become_parquet_with_their_ids(tmp_path, h, name):
    ids = [f"item-{row}" for row in range(ROWS)]
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n")
    files.FLOAT32[name](tmp_path / name, VECTORS)
    source = open_source(tmp_path / name, SourceOptions(ids=tmp_path / "ids.txt"))
    upgrade_gallery(source, h, tmp_path / "new", settings=PARQUET)
    upgrade_gallery(source, h, tmp_path / "npy", settings=NPY)
    found = pa.parquet.read_table(tmp_path / "new/embeddings")
    assert found.column_names == ["id", "embedding"] and found["id"].to_pylist() == ids
    assert vectors_of(found, "embedding").tobytes() == npy_rows(tmp_path / "npy").tobytes()


def test_what_was_published_is_a_source_again(tmp_path, h):
    upgrade_gallery(write(tmp_path / "a.parquet", rich_table()), h, tmp_path / "new", settings=PARQUET)
    back = Transformation(linear_map(10, 12, seed=2))
    upgrade_gallery(tmp_path / "new", back, tmp_path / "newer", settings=PARQUET)
    found = pa.parquet.read_table(tmp_path / "newer/embeddings")
    expected = back(h(VECTORS))
    assert np.abs(vectors_of(found, "v") - expected).max() < 1e-5 * np.abs(expected).max()
    assert found["doc_id"].to_pylist() == rich_table()["doc_id"].to_pylist()


def test_what_was_published_is_evaluated_unless_it_is_damaged(tmp_path, h):
    source = write(tmp_path / "a.parquet", rich_table())
    upgrade_gallery(source, h, tmp_path / "new", settings=PARQUET)
    upgrade_gallery(source, h, tmp_path / "npy", settings=NPY)
    assert read_embeddings(source).tobytes() == VECTORS.tobytes()
    assert read_embeddings(tmp_path / "new").tobytes() == read_embeddings(tmp_path / "npy").tobytes()
    assert read_ids(tmp_path / "new").tolist() == read_ids(tmp_path / "npy").tolist()
    path = tmp_path / "new/embeddings/000001.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"000001\.parquet: is damaged"):
        read_embeddings(tmp_path / "new")
    assert list(verify_gallery(tmp_path / "new").damaged) == ["embeddings/000001.parquet"]


def test_columns_that_would_be_lost_are_refused(tmp_path, h):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.parquet", rich_table())
    write(folder / "b.parquet", rich_table().drop_columns(["tags"]))
    with pytest.raises(GalleryError, match=r"b\.parquet: has other columns than .*a\.parquet.*format npy"):
        upgrade_gallery(folder, h, tmp_path / "new", settings=PARQUET)
    upgrade_gallery(folder, h, tmp_path / "new", settings=NPY)
    pa.parquet.write_to_dataset(rich_table(), tmp_path / "parted", partition_cols=["title"])
    with pytest.raises(GalleryError, match=r"the folder title=.* is a column"):
        upgrade_gallery(tmp_path / "parted", h, tmp_path / "new2", settings=PARQUET)
    assert not (tmp_path / "new2").exists() and not (tmp_path / "new2.partial").exists()


FAULTS = [
    *(partial(FullDisk, size) for size in (0, 700, 9_000, 30_000)),
    *(partial(FailNth, "fsync", number) for number in (0, 5, 9)),
    *(partial(FailNth, "write", number) for number in (1, 9, 14)),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_a_typed_error_and_a_retry_gives_the_same_bytes(tmp_path, h, fault):
    source = write(tmp_path / "a.parquet", rich_table())

    def result_of(dest: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [*dest.glob("embeddings/*"), *dest.glob("index.faiss")]}

    upgrade_gallery(source, h, tmp_path / "calm", settings=PARQUET)
    with use_filesystem(fault()), pytest.raises(ResourceError):
        upgrade_gallery(source, h, tmp_path / "new", settings=PARQUET)
    assert not (tmp_path / "new").exists()
    upgrade_gallery(source, h, tmp_path / "new", settings=PARQUET)
    assert result_of(tmp_path / "new") == result_of(tmp_path / "calm")


def test_ids_beside_a_column_that_would_be_read_as_ids_are_refused(tmp_path, h):
    """Else the index would answer with the ones, and DEST be read back with the others."""
    rows = np.random.default_rng(0).random((40, h.old_dim), np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), h.old_dim)
    pyarrow.parquet.write_table(pa.table({"id": np.arange(40), "vector": vectors}), tmp_path / "a.parquet")
    np.save(tmp_path / "ids.npy", np.arange(5000, 5040))
    source = open_source(tmp_path / "a.parquet", SourceOptions(ids=tmp_path / "ids.npy"))
    with pytest.raises(UsageError, match=r"ids lie beside, and .* has a column 'id'"):
        upgrade_gallery(source, h, tmp_path / "new", settings=Settings(index="none", format="parquet"))
    assert not list(tmp_path.glob("new*"))


def test_names_that_readers_of_folders_leave_out_are_refused_before_any_work(tmp_path, h):
    (tmp_path / "g" / "embeddings").mkdir(parents=True)
    np.save(tmp_path / "g" / "embeddings" / "_a.npy", np.ones((4, h.old_dim), np.float32))
    with pytest.raises(UsageError, match="shard _a: Parquet folders are read without such names"):
        upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=Settings(index="none", format="parquet"))
    assert not (tmp_path / "new").exists()
