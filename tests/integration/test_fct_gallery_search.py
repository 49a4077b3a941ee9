"""``fct-gallery search``: the same rows by index and without, queries from any format, results in files."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from support.commands import run_command
from support.galleries import write_gallery
from support.programs import linear_map
from support.vector_files import lists

from fct_infer import Transformation, load_index, open_gallery, upgrade_gallery
from fct_infer.cli.gallery import command
from fct_infer.errors import ArrayError, ArtifactError, GalleryError, UsageError
from fct_infer.serving import ExactSearch, search
from fct_infer.upgrade.settings import Settings

H = Transformation(linear_map(6, 4), precision="fp32")
ROWS = (40, 9)


@pytest.fixture(params=[None, "int", "str"])
def source(tmp_path, request):
    write_gallery(tmp_path / "g", ROWS, old_dim=6, side_dim=None, ids=request.param)
    return tmp_path / "g"


def publish(source, dest, **settings):
    upgrade_gallery(source, H, dest, settings=Settings(**settings))
    return dest


def run(*arguments):
    return CliRunner().invoke(command, ["search", *map(str, arguments)])


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_without_an_index_the_same_rows_are_found(tmp_path, monkeypatch, source, metric, format):
    monkeypatch.setattr(search, "BLOCK_BYTES", 7 * 16)
    indexed = load_index(publish(source, tmp_path / "flat", index="Flat", metric=metric))
    gallery = open_gallery(publish(source, tmp_path / "none", index="none", metric=metric, format=format))
    assert isinstance(gallery.index, ExactSearch) and not gallery.has_index and "49 rows of 4" in repr(gallery)
    queries = np.random.default_rng(5).standard_normal((6, 4), np.float32)
    for k in (1, 5, 49):
        (distances, ids), (expected, names) = gallery.search(queries, k), indexed.search(queries, k)
        assert np.array_equal(ids, names) and ids.dtype == names.dtype
        np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-5)
    _, ids = gallery.search(queries[0], 60)
    assert ids.shape == (60,) and np.array_equal(ids, indexed.search(queries[0], 60)[1])
    assert gallery.search([], 3)[1].shape == (0, 3)
    with np.errstate(over="raise"):
        far, _ = gallery.search(np.float32([1e30, 1, 1, 1]), 2)
    assert np.isinf(far).all() == (metric == "l2")
    with pytest.raises(ArrayError, match="k is 0"):
        gallery.search(queries, 0)


@pytest.mark.parametrize("rows", [(49,), (9, 40)])
def test_without_an_index_versions_are_not_mixed(tmp_path, source, rows):
    gallery = open_gallery(publish(source, tmp_path / "d", index="none"))
    found = gallery.search([1.0, 0, 0, 0])[1].tolist()
    write_gallery(tmp_path / "other", rows, old_dim=6, side_dim=None, ids="str")
    upgrade_gallery(tmp_path / "other", H, tmp_path / "d", settings=Settings(index="none"), force=True)
    with pytest.raises(GalleryError, match="/d: was replaced since it was opened; open it again"):
        gallery.search([1.0, 0, 0, 0])
    gallery.rollback()
    assert gallery.search([1.0, 0, 0, 0])[1].tolist() == found


def test_rows_without_direction_are_left_out(tmp_path):
    write_gallery(tmp_path / "g", (5,), old_dim=6, side_dim=None)
    path = tmp_path / "g" / "embeddings" / "000000.npy"
    rows = np.load(path)
    rows[2] = 0
    np.save(path, rows)
    gallery = open_gallery(publish(tmp_path / "g", tmp_path / "d", index="none", metric="cosine"))
    if not gallery.source().read_rows(np.array([2]))[0].any():
        assert sorted(gallery.search([1.0, 0, 0, 0], 5)[1].tolist()) == [-1, 0, 1, 3, 4]


@pytest.mark.parametrize("index", ["Flat", "none"])
def test_results_for_people_and_for_files(tmp_path, source, index):
    dest = publish(source, tmp_path / "d", index=index)
    queries = np.random.default_rng(5).standard_normal((6, 4), np.float32)
    names = [f"q{number}" for number in range(6)]
    table = pyarrow.table({"id": names, "vector": lists(queries)})
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
    wanted_distances, wanted = open_gallery(dest).search(queries, 3)
    shown = run(dest, "--queries", tmp_path / "q.parquet", "-k", "3", "-o", tmp_path / "out.npz", "--show", "2")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["query", "rank", "id", "distance"]
    assert lines[1].split() == ["q0", "1", str(wanted[0, 0]), f"{wanted_distances[0, 0]:.6g}"] and len(lines) == 9
    by = "all rows" if index == "none" else "IndexIDMap"
    assert f"6 queries of {dest} by {by}" in lines[-1] and "out.npz" in lines[-1]
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["queries"].tolist() == names
        assert np.array_equal(arrays["ids"], wanted) and np.array_equal(arrays["distances"], wanted_distances)
    run(dest, "--queries", tmp_path / "q.parquet", "-k", "3", "-o", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted)
    run(dest, "--queries", tmp_path / "q.parquet", "-k", "60", "-o", tmp_path / "out.parquet")
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert len(found["id"]) == 6 * 49  # what is not there has no row
    assert found["query"][:49] == ["q0"] * 49 and found["rank"][:49] == list(range(1, 50))
    assert found["id"][:3] == wanted[0].tolist()
    document = json.loads(run(dest, "--queries", tmp_path / "q.parquet", "-k", "3", "--json").stdout)
    assert document["results"][5] == {
        "query": "q5", "ids": wanted[5].tolist(), "distances": wanted_distances[5].tolist()
    }  # fmt: skip


def test_queries_are_asked_for_as_sources_are(tmp_path, source):
    dest = publish(source, tmp_path / "d", index="none")
    queries = np.random.default_rng(5).standard_normal((3, 4))
    np.save(tmp_path / "q.npy", queries)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    refused = CliRunner().invoke(command, ["search", str(dest), "--queries", str(tmp_path / "q.npy")])
    assert "float64" in str(refused.exception)
    shown = run(dest, "--queries", tmp_path / "q.npy", "--allow-cast", "--ids", tmp_path / "names.txt", "--json")
    assert [each["query"] for each in json.loads(shown.stdout)["results"]] == ["a", "b", "c"]


def test_what_cannot_be_done_is_said_before_the_search(tmp_path, source):
    dest = publish(source, tmp_path / "d", index="none")
    np.save(tmp_path / "q.npy", np.ones((2, 5), np.float32))
    cases = (
        ((dest, "--queries", tmp_path / "q.npy", "-o", tmp_path / "out.csv"), UsageError, "written as .npz"),
        ((dest, "--queries", tmp_path / "q.npy"), ArrayError, r"float32 (2, 5), wanted float32 (m, 4)"),
        ((source, "--queries", tmp_path / "q.npy"), ArtifactError, "is not a published gallery"),
    )
    for arguments, kind, words in cases:
        error = run(*arguments).exception
        assert isinstance(error, kind) and words in str(error)
    done = run_command("gallery", "search", source, "--queries", tmp_path / "q.npy")
    assert done.returncode == 4 and done.stderr.startswith("error: ") and not done.stdout


def test_a_row_that_was_damaged_is_named(tmp_path, source):
    dest = publish(source, tmp_path / "d", index="none")
    path = dest / "embeddings" / "000001.npy"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"000001\.npy: row 8 holds NaN or infinity: it is damaged"):
        open_gallery(dest).search(np.ones((1, 4), np.float32), 1)
