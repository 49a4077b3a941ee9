"""What does an upgrade in SQLite, DuckDB and LanceDB cost, next to the best loops a user would write?

Every row's new vector where readers find it. Ours recomputes a sample, can be killed and gone on with, and publishes;
the loops do none of that. Where two loops are usual, both run.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import click
import duckdb
import lance
import lancedb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.measure import WORK, environment, paired_ratio, save, warn_if_loaded
from benchmarks.programs import PROGRAMS
from benchmarks.table import engines_tables, gate, show
from fct_infer import Transformation, upgrade_gallery
from fct_infer.upgrade.settings import Settings

PROGRAM, ROWS, ROUNDS, QUICK_ROWS = "small", 200_000, 3, 20_000
PAGE = 8192
OURS = "fct-upgrade-gallery"
WANTED = 1.0  # of the fastest loop's rows/s, at least: to be checked and resumable should cost nothing

Rows = NDArray[np.float32]


def arrow(rows: Rows) -> Any:
    """Return rows as a column of Arrow."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def matrix(column: Any) -> Rows:
    """Return a column of Arrow as rows."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.flatten().to_numpy().reshape(len(column), -1)


def sqlite_origin(path: Path, old: Rows, side: Rows) -> None:
    """Make the table of SQLite."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, embedding BLOB, side BLOB)")
        values = ((row, o.tobytes(), s.tobytes()) for row, (o, s) in enumerate(zip(old, side, strict=True)))
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", values)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def sqlite_pages(connection: Any) -> Iterator[tuple[list[int], Rows, Rows]]:
    """Yield ids and vectors of SQLite."""
    last = -1
    query = f"SELECT id, embedding, side FROM items WHERE id > ? ORDER BY id LIMIT {PAGE}"
    while found := connection.execute(query, (last,)).fetchall():
        ids, *vectors = zip(*found, strict=True)
        last = ids[-1]
        old, side = (np.frombuffer(b"".join(each), np.float32).reshape(len(ids), -1) for each in vectors)
        yield list(ids), old, side


def sqlite_update(path: Path, h: Transformation) -> None:
    """A column more, and UPDATE row by row; a transaction a page."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE items ADD COLUMN embedding_v2 BLOB")
        for ids, old, side in sqlite_pages(connection):
            new = ((row.tobytes(), key) for row, key in zip(h(old, side), ids, strict=True))
            connection.executemany("UPDATE items SET embedding_v2 = ? WHERE id = ?", new)
            connection.commit()


def sqlite_insert(path: Path, h: Transformation) -> None:
    """A table beside, filled; a transaction a page."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE items_v2 (id INTEGER PRIMARY KEY, embedding_v2 BLOB)")
        for ids, old, side in sqlite_pages(connection):
            rows = ((key, row.tobytes()) for row, key in zip(h(old, side), ids, strict=True))
            connection.executemany("INSERT INTO items_v2 VALUES (?, ?)", rows)
            connection.commit()


def sqlite_read(path: Path, query: str) -> tuple[NDArray[np.int64], Rows]:
    """Return what was written, by id."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(query).fetchall()
    return np.array([key for key, _ in found]), np.stack([np.frombuffer(row, np.float32) for _, row in found])


def duckdb_origin(path: Path, old: Rows, side: Rows) -> None:
    """Make the table of DuckDB."""
    with closing(duckdb.connect(str(path))) as connection:
        connection.register("made", pa.table({"id": np.arange(len(old)), "embedding": arrow(old), "side": arrow(side)}))
        connection.execute("CREATE TABLE items AS SELECT * FROM made")


def duckdb_pages(connection: Any) -> Iterator[Any]:
    """Yield the new vectors of DuckDB's table as Arrow."""
    yield from connection.cursor().sql("SELECT id, embedding, side FROM items").to_arrow_reader(PAGE)


def duckdb_insert(path: Path, h: Transformation) -> None:
    """A table beside, filled from Arrow, page by page."""
    with closing(duckdb.connect(str(path))) as connection:
        connection.execute(f"CREATE TABLE items_v2 (id BIGINT, embedding_v2 FLOAT[{h.new_dim}])")
        for page in duckdb_pages(connection):
            new = h(matrix(page.column(1)), matrix(page.column(2)))
            connection.register("new_rows", pa.table({"id": page.column(0), "v": arrow(new)}))
            connection.execute("INSERT INTO items_v2 SELECT * FROM new_rows")


def duckdb_update(path: Path, h: Transformation) -> None:
    """A column more, and UPDATE ... FROM Arrow, page by page."""
    with closing(duckdb.connect(str(path))) as connection:
        pages = list(duckdb_pages(connection))
        connection.execute(f"ALTER TABLE items ADD COLUMN embedding_v2 FLOAT[{h.new_dim}]")
        for page in pages:
            new = h(matrix(page.column(1)), matrix(page.column(2)))
            connection.register("new_rows", pa.table({"id": page.column(0), "v": arrow(new)}))
            connection.execute("UPDATE items SET embedding_v2 = v FROM new_rows WHERE items.id = new_rows.id")


def duckdb_read(path: Path, query: str) -> tuple[NDArray[np.int64], Rows]:
    """Return what was written, by id."""
    with closing(duckdb.connect(str(path))) as connection:
        found = connection.sql(query).to_arrow_table()
    return found.column(0).to_numpy(), matrix(found.column(1))


def lancedb_origin(path: Path, old: Rows, side: Rows) -> None:
    """Make the table of LanceDB."""
    made = pa.table({"id": np.arange(len(old)), "embedding": arrow(old), "side": arrow(side)})
    lancedb.connect(path).create_table("items", made)


def lancedb_udf(path: Path, h: Transformation) -> None:
    """Lance's own way: a column made by a function of batches."""

    def of_batch(batch: Any) -> Any:
        return pa.record_batch({"embedding_v2": arrow(h(matrix(batch.column(0)), matrix(batch.column(1))))})

    schema = pa.schema({"embedding_v2": pa.list_(pa.float32(), h.new_dim)})
    wrapped = lance.batch_udf(output_schema=schema)(of_batch)
    lance.dataset(str(path / "items.lance")).add_columns(wrapped, read_columns=["embedding", "side"], batch_size=PAGE)


def lancedb_merge(path: Path, h: Transformation) -> None:
    """LanceDB's way to write rows: merge_insert by id, page by page, with every column."""
    table = lancedb.connect(path).open_table("items")
    table.add_columns({"embedding_v2": f"arrow_cast(NULL, 'FixedSizeList({h.new_dim}, Float32)')"})
    data = table.to_arrow().select(["id", "embedding", "side"])
    for page in data.to_batches(max_chunksize=len(data) // 4):
        new = arrow(h(matrix(page.column(1)), matrix(page.column(2))))
        rows = pa.table({**{name: page.column(name) for name in page.schema.names}, "embedding_v2": new})
        table.merge_insert("id").when_matched_update_all().execute(rows)


def lancedb_read(path: Path, column: str) -> tuple[NDArray[np.int64], Rows]:
    """Return what was written, by id."""
    found = lancedb.connect(path).open_table("items").to_arrow()
    return found.column("id").to_numpy(), matrix(found.column(column))


def upgrade_here(scheme: str) -> Callable[[Path, Transformation], None]:
    """Return the upgrade in place."""

    def run(path: Path, h: Transformation) -> None:
        url = f"{scheme}://{path}?table=items"
        upgrade_gallery(url, h, f"{url}&column=embedding_v2", settings=Settings(index="none"))

    return run


_NEW, _BESIDE = "SELECT id, embedding_v2 FROM items", "SELECT id, embedding_v2 FROM items_v2"
_VIEW = "SELECT id, embedding FROM items_current"
# engine -> what makes its table; contestants: what upgrades it, what reads it back, and how
ENGINES: dict[str, tuple[Any, dict[str, tuple[Any, Any, str]]]] = {
    "sqlite": (
        sqlite_origin,
        {
            OURS: (upgrade_here("sqlite"), sqlite_read, _VIEW),
            "INSERT, table beside": (sqlite_insert, sqlite_read, _BESIDE),
            "executemany UPDATE": (sqlite_update, sqlite_read, _NEW),
        },
    ),
    "duckdb": (
        duckdb_origin,
        {
            OURS: (upgrade_here("duckdb"), duckdb_read, _VIEW),
            "INSERT from Arrow, table beside": (duckdb_insert, duckdb_read, _BESIDE),
            "UPDATE ... FROM Arrow": (duckdb_update, duckdb_read, _NEW),
        },
    ),
    "lancedb": (
        lancedb_origin,
        {
            OURS: (upgrade_here("lancedb"), lancedb_read, "embedding_v2"),
            "add_columns, batch_udf": (lancedb_udf, lancedb_read, "embedding_v2"),
            "merge_insert": (lancedb_merge, lancedb_read, "embedding_v2"),
        },
    ),
}


def check(read: Callable[[Path, str], Any], path: Path, query: str, wanted: Rows, name: str) -> None:
    """Refuse a contestant that has not written h of every row."""
    ids, new = read(path, query)
    if len(ids) != len(wanted) or not np.allclose(new[np.argsort(ids)], wanted, rtol=1e-5, atol=1e-6):
        raise click.ClickException(f"{name}: has not written h of every row")


def bench(engine: str, folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Return the figures of one engine."""
    h, rng = Transformation(PROGRAMS[PROGRAM]), np.random.default_rng(0)
    old, side = (rng.standard_normal((rows, dim), np.float32) for dim in (h.old_dim, h.side_dim))
    origin, contestants = ENGINES[engine]
    origin(folder / "origin", old, side)
    wanted = h(old, side)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, (write, read, query) in contestants.items():
            print(f"{engine}, round {number + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
            path = folder / "shop"
            (shutil.copytree if (folder / "origin").is_dir() else shutil.copyfile)(folder / "origin", path)
            start = time.perf_counter()
            write(path, h)
            seconds[name].append(time.perf_counter() - start)
            check(read, path, query, wanted, name)
            for made in folder.glob("shop*"):
                shutil.rmtree(made) if made.is_dir() else made.unlink()
    return {
        name: {"wall": median(found), "ratio": paired_ratio(found, seconds[OURS])} for name, found in seconds.items()
    }


def fastest(found: dict[str, dict[str, float]]) -> float:
    """Return the seconds of the fastest loop, in those of ours."""
    return min(run["ratio"] for name, run in found.items() if name != OURS)


@click.command()
@click.option("--rows", default=ROWS, show_default=True)
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--quick", is_flag=True, help="A tenth of the rows, one round; nothing is written to results/.")
def main(rows: int, rounds: int, quick: bool) -> None:
    """Compare upgrading tables of engines that are files with the loops a user would write (needs 2 GB of disk)."""
    warn_if_loaded()
    WORK.mkdir(exist_ok=True)
    rows, rounds = (QUICK_ROWS, 1) if quick else (rows, rounds)
    engines = {}
    for engine in ENGINES:
        with tempfile.TemporaryDirectory(dir=WORK, ignore_cleanup_errors=True) as name:
            engines[engine] = bench(engine, Path(name), rows, rounds)
    result = {
        **environment(),
        "parameters": {"rows": rows, "rounds": rounds, "program": PROGRAM},
        "engines": engines,
        "not_measured": [],
        "gates": [
            gate(f"{engine}: fastest loop / {OURS}, seconds", fastest(found), WANTED)
            for engine, found in engines.items()
        ],
    }
    show(result, engines_tables(result))
    if not quick:
        print(f"written: {save('engines', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
