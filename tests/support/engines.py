"""Tables with vectors in engines that run in this process, made and changed by the engines' own clients."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from urllib.parse import quote

import duckdb
import numpy as np


class Engine:
    """A table ``items`` of id, title, embedding, side."""

    scheme: str
    embedding = "embedding"
    follows_writers = False
    has_views = True

    def __init__(self, folder, table="items"):
        self.folder, self.table = folder, table
        self.path = folder / f"shop.{self.scheme}"

    def url(self, **more):
        extra = "".join(f"&{name}={quote(value, safe='')}" for name, value in more.items())
        return f"{self.scheme}://{self.path}?table={quote(self.table, safe='')}{extra}"

    def name(self, name):
        return '"' + name.replace('"', '""') + '"'

    def connect(self):
        raise NotImplementedError

    def run(self, query, *values):
        with closing(self.connect()) as connection:
            found = connection.execute(query, values).fetchall()
            connection.commit()
            return found

    def rows(self, ids, old, side):
        return [(key, f"title {key}", self.vector(o), self.vector(s)) for key, o, s in zip(ids, old, side, strict=True)]

    def insert(self, ids, old, side):
        with closing(self.connect()) as connection:
            connection.executemany(
                f"INSERT INTO {self.name(self.table)} VALUES (?, ?, ?, ?)", self.rows(ids, old, side)
            )
            connection.commit()

    def change(self, key, side):
        self.run(f"UPDATE {self.name(self.table)} SET side = ? WHERE id = ?", self.vector(side), key)

    def delete(self, key):
        self.run(f"DELETE FROM {self.name(self.table)} WHERE id = ?", key)

    def read(self, column, table=None):
        rows = self.run(f"SELECT id, {self.name(column)} FROM {self.name(table or self.table)}")
        return {key: self.array(value) for key, value in rows}

    def current(self):
        """Return what readers see: the new vectors by id, and of which version they are."""
        rows = self.run(f"SELECT id, embedding, embedding_version FROM {self.name(self.table + '_current')}")
        return {key: self.array(value) for key, value, _ in rows}, {version for *_, version in rows}


class DuckDb(Engine):
    scheme = "duckdb"

    def connect(self):
        return duckdb.connect(str(self.path))

    def vector(self, values):
        return values.tolist()

    def array(self, value):
        return np.array(value, np.float32)

    def create(self, old_dim, side_dim, kind="BIGINT"):
        self.run(
            f"CREATE TABLE {self.name(self.table)} (id {kind} PRIMARY KEY, title VARCHAR, embedding FLOAT[{old_dim}], "
            f"side FLOAT[{side_dim}])"
        )


class Sqlite(Engine):
    scheme = "sqlite"
    follows_writers = True

    def connect(self):
        return sqlite3.connect(self.path, timeout=30)

    def vector(self, values):
        return values.tobytes()

    def array(self, value):
        return np.frombuffer(value, np.float32)

    def create(self, old_dim, side_dim, kind="INTEGER"):
        self.run(f"CREATE TABLE {self.name(self.table)} (id {kind} PRIMARY KEY, title TEXT, embedding BLOB, side BLOB)")


ENGINES = {each.scheme: each for each in (DuckDb, Sqlite)}
