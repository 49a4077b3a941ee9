"""Tables of sqlite-vec, made and searched by itself: read as they are, and upgraded over an ordinary table."""

from __future__ import annotations

import sqlite3 as standard
import sys
from contextlib import closing

import numpy as np
import pytest
import sqlite_vec
from pysqlite3 import dbapi2 as sqlite3
from support.programs import linear_map

from fct_infer import SourceOptions, Transformation, open_source, upgrade_gallery
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery.source import SourceReader
from fct_infer.upgrade.settings import Settings

ROWS, OLD, NEW = 61, 12, 8
VECTORS = np.random.default_rng(0).standard_normal((ROWS, OLD), np.float32)
H = Transformation(linear_map(OLD, NEW, seed=1), threads=1)


def connect(folder):
    connection = sqlite3.connect(folder / "shop.db")
    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    return connection


@pytest.fixture
def database(tmp_path):
    """Tables ``plain``, by rowid, ``full``, by its key with other columns, and ``texts``, by text."""
    columns = {
        "plain": f"embedding float[{OLD}]",
        "full": f"id integer primary key, sign int8[8], embedding float[{OLD}], coarse bit[64], +title text, kind text",
        "texts": f"id text primary key, embedding float[{OLD}]",
    }
    with closing(connect(tmp_path)) as connection:
        for name, said in columns.items():
            connection.execute(f"CREATE VIRTUAL TABLE {name} USING vec0({said})")
        for row, vector in enumerate(VECTORS):
            raw = sqlite_vec.serialize_float32(vector.tolist())
            connection.execute("INSERT INTO plain (rowid, embedding) VALUES (?, ?)", (row, raw))
            connection.execute(
                "INSERT INTO full VALUES (?, vec_int8(?), ?, vec_bit(?), ?, 'a')",
                (row, bytes(8), raw, bytes(8), f"t{row}"),
            )
            connection.execute("INSERT INTO texts VALUES (?, ?)", (f"item {row:02}", raw))
        connection.execute("DELETE FROM plain WHERE rowid = 7")
        connection.commit()
    return f"sqlite://{tmp_path}/shop.db?table="


@pytest.mark.parametrize("name", ["plain", "full", "texts"])
def test_vectors_come_by_the_key(database, tmp_path, name):
    source = open_source(database + name)
    kept = np.setdiff1d(np.arange(ROWS), [7] if name == "plain" else [])
    assert source.schema.columns["embedding"] == "embedding" and source.schema.rows == len(kept)
    upgrade_gallery(source, H, tmp_path / "dest", settings=Settings(index="none"))
    written = open_source(tmp_path / "dest")
    with SourceReader(written) as reader:
        ids = np.concatenate([reader.at(part).read_ids(0, part.rows) for part in written.parts()])
    assert ids.tolist() == ([f"item {row:02}" for row in kept] if name == "texts" else kept.tolist())
    np.testing.assert_array_equal(written.read_rows(np.arange(len(kept)))[0], H(VECTORS[kept]))


def test_a_table_that_nothing_can_follow_is_refused_and_the_way_round_works(database, tmp_path):
    with pytest.raises(UsageError, match=r"virtual table or a view; upgrade it into a folder \(-o DEST\), or copy"):
        upgrade_gallery(database + "plain", H, database + "plain&column=v2")
    with closing(connect(tmp_path)) as connection:
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, embedding BLOB)")
        connection.execute("INSERT INTO items SELECT rowid, embedding FROM plain")
        connection.commit()
        upgrade_gallery(database + "items", H, database + "items&column=v2")
        connection.execute(f"CREATE VIRTUAL TABLE plain_v2 USING vec0(embedding float[{NEW}])")
        connection.execute("INSERT INTO plain_v2 (rowid, embedding) SELECT id, embedding FROM items_current")
        query = H(VECTORS[20:21])[0].tobytes()
        nearest = connection.execute("SELECT rowid FROM plain_v2 WHERE embedding MATCH ? AND k = 1", (query,))
        assert nearest.fetchall() == [(20,)]
        nearest = connection.execute(
            "SELECT id FROM items_current ORDER BY vec_distance_l2(embedding, ?) LIMIT 1",
            (query,),
        )
        assert nearest.fetchall() == [(20,)]


def test_what_cannot_be_read_is_said(database, monkeypatch):
    with pytest.raises(GalleryError, match="there is no table 'other'"):
        open_source(database + "other")
    with pytest.raises(GalleryError, match="column 'sign' does not hold vectors of numbers"):
        open_source(database + "full", SourceOptions(embedding_column="sign"))
    monkeypatch.setitem(sys.modules, "pysqlite3.dbapi2", None)
    if not hasattr(standard.Connection, "enable_load_extension"):
        with pytest.raises(UsageError, match="loads no extensions, that of pip install pysqlite3-binary does"):
            open_source(database + "plain")


@pytest.mark.parametrize(
    ("keys", "kinds"), [((1, "a"), "integer, text"), ((1.5, 2), "integer, real"), ((None,), "null")]
)
def test_keys_of_other_kinds_are_said(tmp_path, keys, kinds):
    with closing(standard.connect(tmp_path / "shop.db")) as connection:
        connection.execute("CREATE TABLE items (id, embedding BLOB)")
        connection.executemany("INSERT INTO items VALUES (?, ?)", [(key, VECTORS[0].tobytes()) for key in keys])
        connection.commit()
    with pytest.raises(GalleryError, match=f"'id' holds {kinds}; wanted integers throughout, or text"):
        open_source(f"sqlite://{tmp_path}/shop.db?table=items", SourceOptions(id_column="id"))
