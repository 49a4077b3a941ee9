"""An upgraded gallery goes back into the Lance data set it came from: whole by one commit, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from support import vector_files as files
from support.commands import run_command
from support.programs import linear_map

from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import lance_column
from fct_infer.connectors.lance_column import add_column
from fct_infer.errors import ArtifactError, GalleryError, GateError, OutputError, ResourceError, UsageError
from fct_infer.upgrade.settings import Settings

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)
NO_INDEX = Settings(index="none", block_rows=30)
H = linear_map(12, 10, seed=1)


@pytest.fixture
def dataset(tmp_path) -> Path:
    table = pa.table({"n": range(230), "id": [f"d{row}" for row in range(230)], "v": files.fixed_size(VECTORS)})
    lance.write_dataset(table, tmp_path / "a.lance", max_rows_per_file=90)
    lance.dataset(str(tmp_path / "a.lance")).delete("n % 7 = 3 OR (n >= 90 AND n < 180)")
    return tmp_path / "a.lance"


@pytest.fixture
def gallery(tmp_path, dataset) -> Path:
    upgrade_gallery(dataset, Transformation(H), tmp_path / "new", settings=NO_INDEX)
    return tmp_path / "new"


def column(dataset: Path, name: str) -> tuple[list[int], np.ndarray]:
    table = lance.dataset(str(dataset)).to_table(columns=["n", name])
    return table["n"].to_pylist(), table[name].combine_chunks().values.to_numpy().reshape(-1, 10)


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_every_row_gets_its_own_vector(tmp_path, dataset, form):
    lance.dataset(str(dataset)).create_scalar_index("id", "BTREE")
    upgrade_gallery(dataset, Transformation(H), tmp_path / "g", settings=Settings(index="none", format=form))
    stages: list[tuple[str, int, int]] = []
    report = add_column(tmp_path / "g", dataset, "w", lambda *told: stages.append(told))
    numbers, new = column(dataset, "w")
    assert numbers == [row for row in range(230) if row % 7 != 3 and not 90 <= row < 180]
    assert new.tobytes() == Transformation(H)(VECTORS[numbers]).tobytes()
    now = lance.dataset(str(dataset))
    assert (now.version, report.version, report.version_before) == (4, 4, 3) and now.schema.names[:3] == [
        "n",
        "id",
        "v",
    ]
    assert [index["name"] for index in now.list_indices()] == ["id_idx"]
    assert stages[-1] == ("write column", len(numbers), len(numbers))
    now.insert(now.to_table(limit=3))
    exec(f"import lance; {report.undo}")
    now = lance.dataset(str(dataset))
    assert now.schema.names == ["n", "id", "v"] and now.count_rows() == len(numbers) + 3


def test_a_second_model_gets_a_second_column(tmp_path, dataset, gallery):
    add_column(gallery, dataset, "w")
    upgrade_gallery(gallery, Transformation(linear_map(10, 10, seed=2)), tmp_path / "other", settings=NO_INDEX)
    with pytest.raises(GalleryError, match="other: was not upgraded from a Lance data set"):
        add_column(tmp_path / "other", dataset, "x")
    add_column(gallery, dataset, "x")
    assert column(dataset, "w")[1].tobytes() == column(dataset, "x")[1].tobytes()
    with pytest.raises(UsageError, match=r"has a column 'w' already; it has 'n', 'id', 'v', 'w', 'x'"):
        add_column(gallery, dataset, "w")


@pytest.mark.parametrize("change", ["insert", "delete"])
def test_rows_that_changed_since_are_noticed(dataset, gallery, change):
    handle = lance.dataset(str(dataset))
    handle.insert(handle.to_table(limit=3)) if change == "insert" else handle.delete("n = 0")
    with pytest.raises(GalleryError, match="rows have come, gone or changed since version 2, from which"):
        add_column(gallery, dataset, "w")
    assert lance.dataset(str(dataset)).schema.names == ["n", "id", "v"]


def test_another_data_set_of_the_same_shape_is_noticed(tmp_path, gallery):
    table = pa.table({"n": range(230), "id": [f"e{row}" for row in range(230)], "v": files.fixed_size(VECTORS)})
    lance.write_dataset(table, tmp_path / "b.lance", max_rows_per_file=90)
    lance.dataset(str(tmp_path / "b.lance")).delete("n % 7 = 3 OR (n >= 90 AND n < 180)")
    with pytest.raises(GalleryError, match=r"is not the id of row|rows have come, gone or changed"):
        add_column(gallery, tmp_path / "b.lance", "w")


def test_a_writer_meanwhile_wins_and_nothing_is_committed(dataset, gallery):
    def insert(_stage: str, done: int, rows: int) -> None:
        if done == rows:
            handle = lance.dataset(str(dataset))
            handle.insert(handle.to_table(limit=3))

    with pytest.raises(OutputError, match="was changed by another writer meanwhile; nothing was committed"):
        add_column(gallery, dataset, "w", insert)
    assert lance.dataset(str(dataset)).schema.names == ["n", "id", "v"]


def test_what_fails_on_the_way_commits_nothing(dataset, gallery, monkeypatch):
    def fail(_stage: str, done: int, rows: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match=r"a\.lance: cannot be written: .*No space left.*nothing was committed"):
        add_column(gallery, dataset, "w", fail)
    shard = next((gallery / "embeddings").iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"000000\.npy: is damaged"):
        add_column(gallery, dataset, "w")
    shard.write_bytes(whole)
    assert lance.dataset(str(dataset)).version == 2
    read = lance_column.LanceSource.read_rows
    monkeypatch.setattr(lance_column.LanceSource, "read_rows", lambda *told: (read(*told)[0] + 1, None))
    with pytest.raises(GateError, match="gives back other rows than were written; the column was taken out again"):
        add_column(gallery, dataset, "w")
    assert lance.dataset(str(dataset)).schema.names == ["n", "id", "v"]


def test_as_a_user_types_it(dataset, gallery):
    done = run_command("gallery", "add-column", gallery, dataset, "w", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == 3
    done = run_command("gallery", "add-column", gallery, dataset, "w", "--json")
    assert done.returncode == 2 and "has a column 'w' already" in done.stderr
