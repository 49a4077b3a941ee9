"""An upgrade takes vectors where they lie: every format gives the same bytes, with every promise kept."""

from __future__ import annotations

import gc
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support import vector_files as files
from support.commands import run_command
from support.faults import FailNth
from support.galleries import write_gallery
from support.open_files import open_below
from support.programs import linear_map, paper_h

from fct_infer import SourceOptions, Transformation, load_index, open_source, upgrade_gallery
from fct_infer.connectors import parted
from fct_infer.errors import GalleryError, OutputError, ResourceError
from fct_infer.export import Options, export_transformation
from fct_infer.storage import use_filesystem
from fct_infer.upgrade.settings import Settings

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)
SETTINGS = Settings(index="Flat", block_rows=30)
PARQUET = replace(SETTINGS, format="parquet")


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parted, "PART_BYTES", 60 * 12 * 4)


@pytest.fixture(scope="module")
def h():
    return Transformation(linear_map(12, 10, seed=1))


def rows_of(dest: Path, folder: str = "embeddings") -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((dest / folder).iterdir())])


def result_of(dest: Path) -> dict[str, bytes]:
    names = ("embeddings/*", "ids/*", "index.faiss")
    return {str(path.relative_to(dest)): path.read_bytes() for name in names for path in sorted(dest.glob(name))}


def parquet(path: Path, vectors: np.ndarray = VECTORS, group: int = 70, **columns: object) -> Path:
    pa.parquet.write_table(pa.table({**columns, "v": files.lists(vectors)}), path, row_group_size=group)
    return path


@pytest.mark.parametrize("name", [*files.FLOAT32, *files.FOLDERS])
def test_every_format_gives_the_same_rows_and_index(tmp_path, small_parts, h, name):
    (files.FLOAT32 | files.FOLDERS)[name](tmp_path / name, VECTORS)
    np.save(tmp_path / "plain.npy", VECTORS)
    upgrade_gallery(tmp_path / "plain.npy", h, tmp_path / "expected", settings=SETTINGS)
    report = upgrade_gallery(tmp_path / name, h, tmp_path / "new", settings=SETTINGS)
    assert report.rows == 230 and report.shards >= 3
    assert rows_of(tmp_path / "new").tobytes() == rows_of(tmp_path / "expected").tobytes()
    assert (tmp_path / "new/index.faiss").read_bytes() == (tmp_path / "expected/index.faiss").read_bytes()


@pytest.mark.parametrize("name", [*files.FLOAT32, *files.FOLDERS])
def test_no_format_leaves_a_file_open(tmp_path, small_parts, h, name):
    """Without the collector, and while what was raised in the middle is kept."""
    (files.FLOAT32 | files.FOLDERS)[name](tmp_path / name, VECTORS)

    def stop(stage, done, _):
        if stage == "transform" and done >= 60:
            raise KeyboardInterrupt

    gc.disable()
    try:
        upgrade_gallery(tmp_path / name, h, tmp_path / "new", settings=SETTINGS)
        with pytest.raises(KeyboardInterrupt) as kept:
            upgrade_gallery(tmp_path / name, h, tmp_path / "stopped", settings=SETTINGS, progress=stop)
        assert open_below(tmp_path) == [] and kept.tb
    finally:
        gc.enable()


def test_fifty_thousand_rows_in_six_formats(tmp_path, monkeypatch):
    monkeypatch.setattr(parted, "PART_BYTES", 3 << 20)
    vectors = np.random.default_rng(5).standard_normal((50_000, 64), np.float32)
    h, settings = Transformation(paper_h(old_dim=64, side_dim=64, new_dim=32, inner=32, seed=2)), Settings(index="none")
    found = {}
    for dtype, writers in (
        ("float32", ("a.npy", "lists.parquet", "fixed.parquet", "a.fbin", "a.hdf5", "flat.faiss")),
        ("float16", ("a.npy", "lists.parquet", "fixed.parquet", "a.f16bin", "a.hdf5", "half.faiss")),
    ):
        table = files.FLOAT32 if dtype == "float32" else files.FLOAT16
        for name in writers:
            folder = tmp_path / dtype / name
            folder.mkdir(parents=True)
            table[name](folder / name, vectors.astype(dtype))
            upgrade_gallery(folder / name, h, folder / "new", settings=settings)
            found.setdefault(dtype, set()).add(rows_of(folder / "new").tobytes())
    assert {dtype: len(each) for dtype, each in found.items()} == {"float32": 1, "float16": 1}


def test_side_information_and_text_ids_come_from_columns(tmp_path, small_parts):
    arrays = write_gallery(tmp_path / "g", (100, 41, 90), 12, 6, ids="str", seed=1)
    table = {"key": arrays["ids"].tolist(), "psi": files.lists(arrays["side"]), "title": ["t"] * 231}
    parquet(tmp_path / "a.parquet", arrays["old"], 50, **table)
    h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1))
    upgrade_gallery(tmp_path / "g", h, tmp_path / "expected", settings=SETTINGS)
    upgrade_gallery(tmp_path / "a.parquet", h, tmp_path / "new", settings=SETTINGS)
    for folder in ("embeddings", "ids"):
        assert (rows_of(tmp_path / "new", folder) == rows_of(tmp_path / "expected", folder)).all()
    found = [load_index(tmp_path / name).search(rows_of(tmp_path / "new"), k=1)[1] for name in ("new", "expected")]
    assert (found[0] == found[1]).all() and (found[0][:, 0] == arrays["ids"]).all()


def test_ids_of_an_index_and_ids_beside_are_carried(tmp_path, small_parts, h):
    ids = np.random.default_rng(0).permutation(230).astype(np.int64) * 7 + 3
    index = faiss.IndexIDMap2(faiss.IndexFlatL2(12))
    index.add_with_ids(VECTORS, ids)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    np.save(tmp_path / "a.npy", VECTORS)
    np.save(tmp_path / "ids.npy", ids)
    upgrade_gallery(tmp_path / "a.faiss", h, tmp_path / "new", settings=SETTINGS)
    beside = open_source(tmp_path / "a.npy", SourceOptions(ids=tmp_path / "ids.npy"))
    upgrade_gallery(beside, h, tmp_path / "beside", settings=SETTINGS)
    assert result_of(tmp_path / "new") == result_of(tmp_path / "beside")
    assert (load_index(tmp_path / "new").search(rows_of(tmp_path / "new"), k=1)[1][:, 0] == ids).all()


def test_binary_ids_are_whole(tmp_path, small_parts, h):
    keys = [bytes([row, 7, 0, 0]) for row in range(230)]
    source = parquet(tmp_path / "a.parquet", key=pa.array(keys, pa.binary(4)))
    for form in ("npy", "parquet"):
        dest = tmp_path / form
        upgrade_gallery(source, h, dest, settings=replace(SETTINGS, format=form))
        found = load_index(dest).search(np.ascontiguousarray(h(VECTORS)), k=1)[1]
        assert found[:, 0].tolist() == keys
    assert pa.parquet.read_table(tmp_path / "parquet/embeddings")["key"].to_pylist() == keys
    upgrade_gallery(tmp_path / "npy", Transformation(linear_map(10, 4, seed=1)), tmp_path / "again", settings=PARQUET)
    assert pa.parquet.read_table(tmp_path / "again/embeddings")["id"].to_pylist() == keys


def test_binary_ids_of_several_lengths_are_refused_where_there_is_an_index(tmp_path, small_parts, h):
    source = parquet(tmp_path / "a.parquet", key=[bytes([row, 7][: 1 + row % 2]) + b"x" for row in range(230)])
    with pytest.raises(GalleryError, match=r"column 'key': ids are bytes with control characters, of several lengths"):
        upgrade_gallery(source, h, tmp_path / "new", settings=SETTINGS)
    upgrade_gallery(source, h, tmp_path / "new", settings=replace(SETTINGS, index="none"))


def test_more_rows_than_can_be_are_refused_before_memory_is_taken(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", VECTORS)
    monkeypatch.setattr(parted, "MAX_PARTS", 3)
    monkeypatch.setattr(parted, "PART_BYTES", 60 * 12 * 4)
    with pytest.raises(GalleryError, match=r"a\.npy: says it has 230 rows, more than are accepted"):
        open_source(tmp_path / "a.npy")


def test_tensors_of_fixed_shape_are_vectors(tmp_path, small_parts, h):
    table = pa.table({"v": pa.FixedShapeTensorArray.from_numpy_ndarray(VECTORS)})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    upgrade_gallery(parquet(tmp_path / "b.parquet"), h, tmp_path / "expected", settings=SETTINGS)
    upgrade_gallery(tmp_path / "a.parquet", h, tmp_path / "new", settings=PARQUET)
    found = pa.parquet.read_table(tmp_path / "new/embeddings")["v"].combine_chunks()
    assert found.type.list_size == 10
    assert found.values.to_numpy().tobytes() == rows_of(tmp_path / "expected").tobytes()


def test_an_edit_meanwhile_is_noticed(tmp_path, small_parts, h):
    source = parquet(tmp_path / "a.parquet")

    def edit(stage: str, done: int, _rows: int) -> None:
        if stage == "transform" and done >= 60:
            parquet(source, VECTORS + 1)

    with pytest.raises(GalleryError, match=r"a\.parquet: was changed while the gallery was upgraded"):
        upgrade_gallery(source, h, tmp_path / "new", settings=SETTINGS, progress=edit)
    assert not (tmp_path / "new").exists()


def test_a_file_that_cannot_be_read_keeps_the_work(tmp_path, small_parts, h):
    source = parquet(tmp_path / "a.parquet", id=list(range(230)))
    resumed = 0
    for call in (10, 30, 45, 60):
        dest = tmp_path / f"new{call}"
        with use_filesystem(FailNth("pread_into", call)), pytest.raises(ResourceError, match=r"a\.parquet|npy"):
            upgrade_gallery(source, h, dest, settings=SETTINGS)
        resumed += upgrade_gallery(source, h, dest, settings=SETTINGS).resumed_rows
    assert resumed > 0


def test_work_is_resumed_only_with_the_same_columns(tmp_path, small_parts, h):
    source = parquet(tmp_path / "a.parquet", w=files.lists(VECTORS), id=list(range(230)))
    chosen = {name: open_source(source, SourceOptions(embedding_column=name)) for name in "vw"}
    with use_filesystem(FailNth("fsync", 12)), pytest.raises(ResourceError):
        upgrade_gallery(chosen["v"], h, tmp_path / "new", settings=SETTINGS)
    with pytest.raises(OutputError, match=r"gallery read as embedding \(was v, is w\)"):
        upgrade_gallery(chosen["w"], h, tmp_path / "new", settings=SETTINGS)
    assert upgrade_gallery(chosen["v"], h, tmp_path / "new", settings=SETTINGS).resumed_rows > 0


# --- as a user types it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "h"
    export_transformation(linear_map(12, 10, seed=1), path, Options(targets=("core",)))
    return path


def run(source: Path, bundle: Path, *more: object) -> subprocess.CompletedProcess[str]:
    arguments = [source, "--transformation", bundle, "-o", source.parent / "new", *more]
    return run_command("upgrade_gallery", *arguments)


def test_dry_run_says_what_was_found(tmp_path, bundle):
    source = parquet(tmp_path / "a.parquet", title=["t"] * 230, doc_id=[f"d{row}" for row in range(230)])
    done = run(source, bundle, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "a.parquet: 230 rows in 1 shard" in done.stdout
    assert "embedding 'v', id 'doc_id'; not used: 'title'" in done.stdout and "text" in done.stdout
    found = json.loads(run(source, bundle, "--dry-run", "--json", "--id-column", "title").stdout)
    assert found["columns"] == {"embedding": "v", "id": "title"} and found["left_out"] == ["doc_id"]
    assert (found["rows"], found["ids"], found["duplicate_ids"], found["dims"]["old"]) == (230, "text", 229, 12)
    done = run(source, bundle, "--dry-run", "--format", "parquet")
    assert "as Parquet with all other columns" in done.stdout
    assert "2 times, as samples are read forward" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_columns_are_named_and_printed(tmp_path, bundle):
    source = parquet(tmp_path / "a.parquet", w=files.lists(VECTORS))
    done = run(source, bundle)
    assert done.returncode == 2 and "name one with --embedding-column" in done.stderr
    done = run(source, bundle, "--embedding-column", "w")
    assert done.returncode == 0 and "a.parquet: embedding 'w'; not used: 'v'" in done.stderr
    assert (tmp_path / "new/manifest.json").exists()


def bad(row: int, value: object) -> pa.Table:
    rows: list[object] = [list(map(float, vector)) for vector in VECTORS]
    rows[row] = value
    return pa.table({"v": pa.array(rows, pa.list_(pa.float32()))})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is null, wanted a vector"),
        ([1.0] * 5 + [None] + [1.0] * 6, "holds a null, wanted numbers"),
        ([1.0] * 11, "is 11 wide, wanted 12"),
        ([float("nan")] * 12, "holds NaN or infinity"),
        ([float("inf")] * 12, "holds NaN or infinity"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_left(tmp_path, bundle, value, message):
    pa.parquet.write_table(bad(157, value), tmp_path / "a.parquet", row_group_size=100)
    done = run(tmp_path / "a.parquet", bundle, "--index", "none")
    assert done.returncode == 4, done.stderr
    assert "a.parquet, row group 1, row 57" in done.stderr and message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("name", ["lists.parquet", "a.hdf5", "a.fbin", "a.npz", "a.feather", "flat.faiss"])
def test_a_truncated_file_is_named_and_nothing_is_left(tmp_path, bundle, name):
    files.FLOAT32[name](tmp_path / name, VECTORS)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-9])
    done = run(tmp_path / name, bundle)
    assert done.returncode == 4 and name in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_null_id_or_an_empty_one_is_named(tmp_path, bundle):
    for value, message in ((None, "has no id"), ("", "has an empty id")):
        ids = [f"d{row}" for row in range(230)]
        ids[88] = value
        done = run(parquet(tmp_path / "a.parquet", doc_id=ids), bundle)
        assert done.returncode == 4 and "row group 1, row 18" in done.stderr and message in done.stderr


def test_the_source_is_not_replaced(tmp_path, bundle):
    source = parquet(tmp_path / "new", group=100)
    done = run(source, bundle, "--force")
    assert done.returncode == 2 and "is the gallery" in done.stderr
