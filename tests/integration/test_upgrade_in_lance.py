"""A Lance data set upgraded where it is: one more column, verified before the commit, resumed after a kill."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from support import vector_files as files
from support.children import run_code
from support.programs import linear_map

from fct_infer import SourceOptions, Transformation, open_source, upgrade_gallery
from fct_infer.connectors import lance_column
from fct_infer.errors import FctError, GalleryError, GateError, OutputError, UsageError
from fct_infer.identity import ModelId
from fct_infer.upgrade.settings import Settings

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)
AUTO = Settings(block_rows=30)


@pytest.fixture
def h():
    h = Transformation(linear_map(12, 10, seed=1))
    h.new_model = ModelId.of("text-v2")
    return h


@pytest.fixture
def dataset(tmp_path) -> Path:
    table = pa.table({"n": range(230), "id": [f"d{row}" for row in range(230)], "v": files.fixed_size(VECTORS)})
    lance.write_dataset(table, tmp_path / "a.lance", max_rows_per_file=90)
    lance.dataset(str(tmp_path / "a.lance")).delete("n % 7 = 3")
    return tmp_path / "a.lance"


def dest(dataset: Path, column: str = "w") -> str:
    return f"{dataset}?column={column}"


def column(dataset: Path, name: str) -> tuple[list[int], np.ndarray]:
    table = lance.dataset(str(dataset)).to_table(columns=["n", name])
    return table["n"].to_pylist(), table[name].combine_chunks().values.to_numpy().reshape(-1, 10)


def test_one_step_one_commit_and_the_way_back(dataset, h):
    lance.dataset(str(dataset)).create_scalar_index("id", "BTREE")
    report = upgrade_gallery(dataset, h, dest(dataset), settings=AUTO)
    assert str(report.dest) == dest(dataset) and report.rows == 197 and report.index is None
    numbers, new = column(dataset, "w")
    assert new.tobytes() == h(VECTORS[numbers]).tobytes() and len(numbers) == 197
    assert lance.dataset(str(dataset)).version == 4
    assert [path.name for path in dataset.parent.iterdir()] == ["a.lance"]
    source = open_source(dataset, SourceOptions(embedding_column="w"))
    assert source.model is not None and source.model.name == "text-v2"
    assert open_source(dataset, SourceOptions(embedding_column="v")).model is None
    with pytest.raises(OutputError, match="has a column 'w' already; name another one, or drop it"):
        upgrade_gallery(open_source(dataset, SourceOptions("v")), h, dest(dataset), settings=AUTO, force=True)
    lance.dataset(str(dataset)).insert(lance.dataset(str(dataset)).to_table(limit=3))
    assert lance_column.drop_column(dataset, "w") == 6
    now = lance.dataset(str(dataset))
    assert now.schema.names == ["n", "id", "v"] and now.count_rows() == 200
    for name in ("v", "w"):
        with pytest.raises(UsageError, match=f"has no column '{name}' that an upgrade added"):
            lance_column.drop_column(dataset, name)


@pytest.mark.parametrize(
    ("source", "place", "settings", "words"),
    [
        ("b.npy", "a.lance?column=w", AUTO, "DEST has to name the one that SOURCE is"),
        ("a.lance", "b.lance?column=w", AUTO, "DEST has to name the one that SOURCE is"),
        ("a.lance", "s3://bucket/a.lance?column=w", AUTO, "is upgraded in two steps"),
        ("a.lance", "a.lance?column=v", AUTO, "has a column 'v' already"),
        ("a.lance", "a.lance?column=w", Settings(index="Flat"), "no FAISS index lies in a data set"),
    ],
)
def test_what_is_refused(tmp_path, dataset, h, source, place, settings, words):
    np.save(tmp_path / "b.npy", VECTORS)
    target = place if "://" in place else str(tmp_path / place)
    with pytest.raises(FctError, match=words):
        upgrade_gallery(tmp_path / source, h, target, settings=settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lance", "b.npy"]
    assert lance.dataset(str(dataset)).version == 2


def test_rows_that_come_meanwhile_keep_the_column_out(dataset, h):
    def insert(stage: str, _done: int, _rows: int) -> None:
        if stage == "verify" and not told:
            told.append(1)
            handle = lance.dataset(str(dataset))
            handle.insert(handle.to_table(limit=3))

    told: list[int] = []
    with pytest.raises(GalleryError, match="rows have come, gone or changed since version 2"):
        upgrade_gallery(dataset, h, dest(dataset), settings=AUTO, progress=insert)
    assert lance.dataset(str(dataset)).schema.names == ["n", "id", "v"]
    assert upgrade_gallery(dataset, h, dest(dataset), settings=AUTO).rows == 200


def test_what_fails_a_gate_adds_nothing(dataset, h):
    with pytest.raises(GateError):
        upgrade_gallery(dataset, h, dest(dataset), settings=Settings(block_rows=30, min_cosine=1.0, dtype="float16"))
    assert lance.dataset(str(dataset)).version == 2


DYING = textwrap.dedent("""
    import os, signal, sys
    from support.programs import linear_map
    from fct_infer import Transformation, upgrade_gallery
    from fct_infer.identity import ModelId
    from fct_infer.upgrade import lance_work
    from fct_infer.upgrade.settings import Settings

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "before":
        lance_work.add_column = die
    elif sys.argv[2] == "after":
        lance_work.LanceWork.discard = die
    def progress(stage, done, rows):
        if sys.argv[2] == "half" and stage == "transform" and done >= 120:
            die()
    h = Transformation(linear_map(12, 10, seed=1))
    h.new_model = ModelId.of("text-v2")
    upgrade_gallery(sys.argv[1], h, sys.argv[1] + "?column=w", settings=Settings(block_rows=30), progress=progress)
""")


@pytest.mark.parametrize("moment", ["half", "before", "after"])
def test_killed_and_resumed(dataset, h, monkeypatch, moment):
    from fct_infer.connectors import parted

    code = "from fct_infer.connectors import parted; parted.PART_BYTES = 60 * 48\n" + DYING
    done = run_code(code, dataset, moment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    monkeypatch.setattr(parted, "PART_BYTES", 60 * 48)
    resumed = upgrade_gallery(dataset, h, dest(dataset), settings=AUTO) if moment != "after" else None
    assert resumed is None or moment == "before" or resumed.resumed_rows > 0
    if moment == "after":  # the commit is done: only cleaning up is left, by the same command on the same version
        assert (dataset.parent / "a.lance.w.partial").exists()
        assert str(upgrade_gallery(dataset_before(dataset), h, dest(dataset), settings=AUTO).dest) == dest(dataset)
    numbers, new = column(dataset, "w")
    assert new.tobytes() == h(VECTORS[numbers]).tobytes()
    assert [path.name for path in dataset.parent.iterdir()] == ["a.lance"]


def dataset_before(dataset: Path):
    """The data set as a user names it again: which of the two columns is read has to be said now."""
    return open_source(dataset, SourceOptions(embedding_column="v"))


def test_as_a_user_types_it(tmp_path, dataset):
    from fct_infer.cli.gallery import command as gallery_command
    from fct_infer.cli.upgrade_gallery import command as upgrade_command
    from fct_infer.export import Options, export_transformation

    export_transformation(linear_map(12, 10, seed=1), tmp_path / "h", Options(targets=("core",)))

    def run(command, *arguments: object) -> str:
        done = CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)
        assert done.exception is None, done.output
        return done.output

    upgrade = (dataset, "--transformation", tmp_path / "h", "-o", dest(dataset))
    assert "by one commit; no row and no index is rewritten" in run(upgrade_command, *upgrade, "--dry-run")
    assert f"undo: fct-gallery rollback '{dest(dataset)}'" in run(upgrade_command, *upgrade)
    assert "w" in lance.dataset(str(dataset)).schema.names
    assert "is without column 'w'" in run(gallery_command, "rollback", dest(dataset))
    assert lance.dataset(str(dataset)).schema.names == ["n", "id", "v"]
