"""pgvector's index over new vectors, built before anybody reads them and without holding up writers."""

from __future__ import annotations

import re
from contextlib import closing, suppress
from threading import Event, Thread
from typing import Any

from fct_infer.connectors.postgres import TableUrl, connect, psycopg
from fct_infer.connectors.postgres_names import Names
from fct_infer.connectors.postgres_rows import VectorField
from fct_infer.errors import FctError, UsageError
from fct_infer.gallery.destination import Progress

_METRICS = {"l2": "l2", "ip": "ip", "cosine": "cosine"}
_MOST_WIDE = {"vector": 2000, "halfvec": 4000}
_POLL_SECONDS = 0.5


def index_sql(wanted: str, metric: str, field: VectorField, rows: int) -> str | None:
    """Return the method and its options that are asked for, in pgvector's words; None for no index.

    Args:
        wanted: ``auto``, ``none``, or as FAISS writes it: ``HNSW32``, ``IVF1024``.
        metric: ``l2``, ``ip`` or ``cosine``.
        field: what is indexed.
        rows: about so many.

    Raises:
        UsageError: pgvector has no such index, or none for vectors so wide.
    """
    if wanted == "none":
        return None
    if field.dim > _MOST_WIDE[field.kind]:
        if wanted == "auto":
            return None
        raise UsageError(
            f"index {wanted}: pgvector indexes {field.kind} up to {_MOST_WIDE[field.kind]:,} wide, these are "
            f"{field.dim:,}; --dtype float16 doubles that, --index none does without"
        )
    found = re.fullmatch(r"(HNSW|IVF)(\d+)?(?:,Flat)?", wanted, re.IGNORECASE)
    if wanted != "auto" and found is None:
        raise UsageError(f"index {wanted}: of a table in PostgreSQL wanted auto, none, HNSW, HNSW32, or IVF1024")
    kind, number = (found.group(1).upper(), found.group(2)) if found else ("HNSW", None)
    operators = f"{field.kind}_{_METRICS[metric]}_ops"
    if kind == "HNSW":
        return f"hnsw ({{column}} {operators})" + (f" WITH (m = {int(number)})" if number else "")
    lists = int(number) if number else max(1, rows // 1000)
    return f"ivfflat ({{column}} {operators}) WITH (lists = {lists})"


def build_index(
    connection: Any, url: TableUrl, names: Names, definition: str | None, rows: int, progress: Progress | None
) -> str | None:
    """Build the index concurrently, unless a killed run has built it; an unfinished one is dropped first.

    Returns:
        What it is; None without.
    """
    if definition is None:
        return None
    index = names.sql(f"{names.side}_idx")
    state = connection.execute(
        "SELECT i.indisvalid, pg_get_indexdef(i.indexrelid) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c "
        "ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relname = %s AND n.nspname = %s",
        (f"{names.side}_idx", names.table.schema),
    ).fetchone()
    if state is not None:
        connection.execute(names.format("DROP INDEX {index}", index=index))
    ended = Event()
    watcher = Thread(target=_watch, args=(url, connection.info.backend_pid, rows, progress, ended))
    if progress:
        watcher.start()
    try:
        # Its name goes without a schema: an index lies where its table does.
        connection.execute(
            names.format(
                f"CREATE INDEX CONCURRENTLY {{name}} ON {{side}} USING {definition}",
                name=psycopg().sql.Identifier(f"{names.side}_idx"),
            )
        )
    finally:
        ended.set()
        if progress:
            watcher.join()
    (text,) = connection.execute(
        "SELECT pg_get_indexdef(c.oid) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n "
        "ON n.oid = c.relnamespace WHERE c.relname = %s AND n.nspname = %s",
        (f"{names.side}_idx", names.table.schema),
    ).fetchone()
    return str(text)


def _watch(url: TableUrl, pid: int, rows: int, progress: Progress, ended: Event) -> None:
    """Tell how far the server is, over a connection of its own; that it cannot be told stops nothing."""
    query = (
        "SELECT phase, tuples_done, tuples_total, blocks_done, blocks_total "
        "FROM pg_catalog.pg_stat_progress_create_index WHERE pid = %s"
    )
    with suppress(FctError, psycopg().Error), closing(connect(url)) as connection:
        while not ended.wait(_POLL_SECONDS):
            found = connection.execute(query, (pid,)).fetchone()
            if found:
                phase, done, whole, blocks, all_blocks = found
                share = done / whole if whole else blocks / all_blocks if all_blocks else 0
                progress(f"index: {phase}", int(min(1, share) * rows), rows)
