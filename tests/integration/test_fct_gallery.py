"""``fct-gallery convert`` and ``inspect`` as a user types them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from support import vector_files as files
from support.commands import run_command

VECTORS = np.random.default_rng(3).standard_normal((100, 6), np.float32)


def run(*arguments):
    return run_command("gallery", *arguments)


def test_convert_then_inspect(tmp_path):
    table = pa.table({"doc_id": [f"d{row}" for row in range(100)], "v": files.lists(VECTORS)})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    done = run("convert", tmp_path / "a.parquet", tmp_path / "gallery", "--rows-per-shard", 40, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["shards"]) == (100, 3) and "convert: 100/100 rows" in done.stderr
    assert report["columns"] == {"embedding": "v", "id": "doc_id"}
    done = run("inspect", tmp_path / "gallery")
    assert done.returncode == 0 and "100 rows in 3 parts, folder" in done.stdout and "6 wide, float32" in done.stdout


def test_bad_input_ends_with_4_and_leaves_nothing(tmp_path):
    vectors = VECTORS.copy()
    vectors[70, 2] = np.nan
    files.write_parquet_lists(tmp_path / "a.parquet", vectors)
    done = run("convert", tmp_path / "a.parquet", tmp_path / "gallery")
    assert done.returncode == 4 and "row group 1, row 0: embedding holds NaN or infinity" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_gallery_that_exists_is_replaced_only_if_asked(tmp_path):
    np.save(tmp_path / "a.npy", VECTORS)
    assert run("convert", tmp_path / "a.npy", tmp_path / "gallery").returncode == 0
    assert run("convert", tmp_path / "a.npy", tmp_path / "gallery").returncode == 6
    assert run("convert", tmp_path / "a.npy", tmp_path / "gallery", "--force", "--dtype", "float16").returncode == 0
    assert np.load(tmp_path / "gallery/embeddings/000000.npy").dtype == np.float16
