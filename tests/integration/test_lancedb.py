"""A table that LanceDB wrote: read, and upgraded where it is, its new rows a column of it by one commit."""

from __future__ import annotations

import json

import lancedb
import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.cli.gallery import command as gallery_command
from fct_infer.cli.upgrade_gallery import command as upgrade_command
from fct_infer.connectors import open_destination, open_source
from fct_infer.connectors.table_versions import drop, open_version, rollback, versions
from fct_infer.errors import FctError, GalleryError, OutputError, UsageError
from fct_infer.upgrade.settings import Settings

ROWS, OLD, SIDE, NEW = 61, 12, 6, 10
PROGRAM = paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=1)
H = Transformation(PROGRAM, threads=1)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, OLD), np.float32), rng.standard_normal((ROWS, SIDE), np.float32)


@pytest.fixture
def database(tmp_path, rows):
    """A database with the table ``items`` of 61 rows in two fragments, two of which were deleted."""
    database = lancedb.connect(tmp_path / "shop")
    made = [
        {"id": row, "vector": old, "side": side, "title": f"t{row}"}
        for row, (old, side) in enumerate(zip(*rows, strict=True))
    ]
    table = database.create_table("items", made[:40])
    table.add(made[40:])
    table.delete("id IN (7, 50)")
    return database


def url(folder, **more):
    return f"lancedb://{folder}/shop?table=items" + "".join(f"&{name}={value}" for name, value in more.items())


def test_a_table_is_upgraded_where_it_is_and_back(tmp_path, database, rows):
    reader = database.open_table("items")
    before, tables = reader.version, database.table_names()
    upgrade_gallery(url(tmp_path), H, url(tmp_path, column="vector_v2"), settings=Settings(block_rows=9))
    assert database.table_names() == tables and [each.name for each in (tmp_path / "shop").iterdir()] == ["items.lance"]
    table = database.open_table("items")
    assert table.version == before + 1
    found = table.to_arrow().sort_by("id")
    ids = found.column("id").to_pylist()
    assert ids == [row for row in range(ROWS) if row not in (7, 50)]
    new = np.stack(found.column("vector_v2").to_pylist()).astype(np.float32)
    np.testing.assert_array_equal(new, H(rows[0][ids], rows[1][ids]))
    hits = table.search(new[20], vector_column_name="vector_v2").limit(1).to_list()
    assert hits[0]["id"] == ids[20] and hits[0]["title"] == f"t{ids[20]}"
    assert reader.search(rows[0][5], vector_column_name="vector").limit(1).to_list()[0]["id"] == 5
    states = [(each.version, each.state) for each in versions(url(tmp_path))]
    assert states == [("vector", "original"), ("side", "original"), ("vector_v2", "published")]
    table.add([{"id": 100, "vector": rows[0][0], "side": rows[1][0], "title": "later", "vector_v2": new[0]}])
    drop(url(tmp_path, column="vector_v2"))
    table = database.open_table("items")
    assert table.schema.names == ["id", "vector", "side", "title"] and table.count_rows() == ROWS - 1
    with pytest.raises(UsageError, match="has no column 'vector' that an upgrade added"):
        drop(url(tmp_path, column="vector"))


def test_as_a_user_types_it(tmp_path, database):
    core_bundle(PROGRAM, tmp_path / "h")
    column = url(tmp_path, column="v2")

    def run(command, *arguments: object) -> str:
        done = CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)
        assert done.exception is None, done.output
        return done.output

    upgrade = (url(tmp_path), "--transformation", tmp_path / "h", "-o", column)
    assert "by one commit; no row and no index is rewritten" in run(upgrade_command, *upgrade, "--dry-run")
    assert "undo: fct-gallery rollback '" in run(upgrade_command, *upgrade)
    found = json.loads(run(gallery_command, "versions", url(tmp_path), "--json"))
    assert [each["version"] for each in found] == ["vector", "side", "v2"]
    assert "is without column 'v2'" in run(gallery_command, "rollback", column)
    assert "v2" not in database.open_table("items").schema.names


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("lancedb://{0}?table=items&column=v2", GalleryError, "there is no table 'items'"),
        ("lancedb://{0}?table=..%2Fitems&column=v2", UsageError, "is no name of a table"),
        ("lancedb://{0}/shop?table=items", UsageError, "names no column for the new vectors"),
        ("lancedb://{0}/shop?table=items&column=a%3Fb.c", UsageError, r"\.\? cannot be in the name of a new column"),
        ("lancedb://{0}/shop?table=items&column=v2&view=v", UsageError, "LanceDB has no views"),
        ("lancedb://{0}/shop?table=other&column=v2", UsageError, "DEST has to name the one that SOURCE is"),
        ("lancedb://{0}/shop?table=items&column=title", OutputError, "has a column 'title' already"),
        ("lancedb://me:secret@{0}/shop?table=items&column=v2", UsageError, "must not hold a user or a password"),
    ],
)
def test_what_is_refused(tmp_path, database, place, error, words):
    database.create_table("other", [{"id": 1, "vector": np.zeros(OLD, np.float32)}])
    version = database.open_table("items").version
    with pytest.raises(error, match=words) as said:
        upgrade_gallery(url(tmp_path), H, place.format(tmp_path))
    assert "secret" not in str(said.value)
    assert database.open_table("items").version == version
    assert sorted(each.name for each in (tmp_path / "shop").iterdir()) == ["items.lance", "other.lance"]


def test_what_lancedb_does_in_other_ways_is_said(tmp_path, database):
    with pytest.raises(GalleryError, match="there is no table 'items'"):
        open_source(f"lancedb://{tmp_path}?table=items")
    with pytest.raises(UsageError, match="readers of LanceDB name the column"):
        rollback(url(tmp_path))
    with pytest.raises(FctError, match="replaced in PostgreSQL, SQLite and DuckDB only"):
        open_version(url(tmp_path, column="v2"))
    assert open_destination(url(tmp_path, column="v2")) == tmp_path / "shop" / "items.lance?column=v2"
