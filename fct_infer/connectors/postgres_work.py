"""A table in PostgreSQL upgraded where it is, while it is written to.

The new vectors are copied into a table beside it, a range of keys in one transaction with the record that it is done.
What is written to the table meanwhile is noted by a trigger, in the writer's own transaction, and transformed once more
afterwards; at the very end under a lock that holds up writers, not readers, for the last few rows.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np

from fct_infer.connectors.postgres import (
    TableUrl,
    connect,
    literals,
    pin_search_path,
    psycopg,
    server_errors,
)
from fct_infer.connectors.postgres_books import check_free, is_published, read_record
from fct_infer.connectors.postgres_changes import Changes
from fct_infer.connectors.postgres_ddl import create_version, drop_version, ensure_books, show_version
from fct_infer.connectors.postgres_index import build_index, index_sql
from fct_infer.connectors.postgres_live import LiveTable
from fct_infer.connectors.postgres_locks import LOCK_TRIES, locked, patience, take_lock
from fct_infer.connectors.postgres_names import Names
from fct_infer.connectors.postgres_reader import copied
from fct_infer.connectors.postgres_rows import VECTOR_TYPES, VectorField, VectorRows
from fct_infer.connectors.postgres_sink import TableSink
from fct_infer.errors import GalleryError, OutputError, ResourceError
from fct_infer.gallery import GalleryManifest, Part
from fct_infer.gallery.destination import Job, Progress, check_same_upgrade
from fct_infer.gallery.sink import Receipt
from fct_infer.gallery.source import Rows
from fct_infer.storage.closing import closed_if_refused

_TAKEN_OVER = "another upgrade has taken this one over"


class PostgresWork:
    """See :class:`~fct_infer.gallery.destination.Work`; holds a lock on the server as long as it is connected."""

    is_published = False  # what was published is caught up with, and published again if it is not shown

    def __init__(self, url: TableUrl, names: Names, job: Job, *, restart: bool, progress: Progress | None) -> None:
        assert isinstance(job.gallery, LiveTable)
        self.job, self.source, self.names, self.url = job, job.gallery, names, url
        self._progress = progress
        self.repeated: list[str] = []
        self.token = secrets.token_hex(8)
        self.field = VectorField(VECTOR_TYPES[job.dtype.name], job.new_dim)
        self._index = index_sql(*job.index_wanted, self.field, self.source.schema.rows)
        self._finished: dict[str, dict[str, Any]] = {}
        self._lock = Lock()
        self._sinks: list[TableSink] = []
        self.connection = connect(self.url)
        self.changes = Changes(self)
        with closed_if_refused(self), server_errors(self.url):
            pin_search_path(self.connection)
            self._open(restart)

    def _open(self, restart: bool) -> None:
        connection, names = self.connection, self.names
        if not take_lock(connection, names):
            raise OutputError(f"{self.url.name}: another upgrade of it is running")
        ensure_books(connection, names)
        check_free(connection, names)
        record = read_record(connection, names)
        self.was_published = bool(record and record["state"] == "published")
        if record and record["identity"] != self.job.identity():
            if self.was_published:
                raise OutputError(
                    f"{self.url.name}: {names.column!r} was published from other inputs or settings; name another "
                    "column, such as embedding_v3"
                )
            if not restart and record["state"] != "gate failed":
                check_same_upgrade(f"{names.table.schema}.{names.side}", record["identity"], self.job)
            restart = True
        if record and restart and not self.was_published:
            with locked(connection, names, "SHARE ROW EXCLUSIVE"):
                drop_version(connection, names)
            record = None
        if record is None:
            self._begin()
            self._state = "begun"
        else:
            self._state = record["state"]
            token = psycopg().sql.Literal(self.token)
            connection.execute(names.format("UPDATE {upgrades} SET token = {token} WHERE {this}", token=token))
        if not self.is_ready:
            self.source.refresh()
            done = connection.execute(
                names.format("SELECT part, rows FROM {parts} WHERE {this} AND done IS NOT NULL ORDER BY part")
            )
            self._finished = {part: {"rows": rows, "files": {}} for part, rows in done.fetchall()}

    def _begin(self) -> None:
        """Make the tables and the triggers; from the commit on nothing is written unnoticed."""
        connection, names = self.connection, self.names
        inputs = [names.embedding] + ([self.source.schema.columns["side"]] if self.job.reads_side else [])
        with locked(connection, names, "SHARE ROW EXCLUSIVE"):
            create_version(connection, names, inputs, f"{self.field.kind}({self.field.dim})")
            if not is_published(connection, names):  # its type is that of the first version that is published
                connection.execute(names.format("DROP VIEW IF EXISTS {view}"))
                show_version(connection, names, names.embedding, self.field.kind)
            connection.execute(
                names.format(
                    "INSERT INTO {upgrades} (table_name, column_name, embedding, view_name, key_columns, identity, "
                    "state, token) VALUES ({values})",
                    values=literals(
                        names.table.name,
                        names.column,
                        names.embedding,
                        names.view_name,
                        list(names.table.key),
                        json.dumps(self.job.identity()),
                        "begun",
                        self.token,
                    ),
                )
            )
            for part, bounds in self.source.bounds.items():
                limits = (None if bound is None else list(bound) for bound in bounds)
                connection.execute(
                    names.format(
                        "INSERT INTO {parts} (table_name, column_name, part, above, upto) VALUES ({values})",
                        values=literals(names.table.name, names.column, part, *limits),
                    )
                )

    @property
    def is_ready(self) -> bool:
        """Whether the vectors are verified and indexed, so that only the last changes and the view are missing."""
        return self._state in ("ready", "published")

    @property
    def finished(self) -> Mapping[str, Mapping[str, Any]]:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        return self._finished

    def open_sink(self) -> TableSink:
        """Return what copies rows into the table beside, over a connection of its own."""
        sink = TableSink(self)
        with self._lock:
            self._sinks.append(sink)
        return sink

    def record(self, part: Part, receipt: Receipt) -> None:
        """Its writer has recorded it, in the transaction of the rows."""
        with self._lock:
            self._finished[part.name] = {"rows": part.rows, "files": {}}

    def infos(self) -> dict[str, Any]:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        with server_errors(self.url):
            record = read_record(self.connection, self.names)
        assert record is not None
        return dict(record["infos"])

    def fence(self, connection: Any) -> None:
        """Keep another run from going on with this work until the transaction ends; raise if one has."""
        found = connection.execute(self.names.format("SELECT token FROM {upgrades} WHERE {this} FOR SHARE")).fetchone()
        if found is None or found[0] != self.token:
            raise OutputError(f"{self.url.name}: {_TAKEN_OVER}")

    def settle(self) -> None:
        """Transform what was written since the snapshot, and compare keys with keys."""
        self.source.close()  # or an index would wait for its snapshot
        self.changes.settle()

    def report(self, stage: str, done: int) -> None:
        """Tell how far a stage is, in rows."""
        if self._progress:
            self._progress(stage, min(done, self.source.schema.rows), self.source.schema.rows)

    # -- the end -------------------------------------------------------------------------------------------------------

    def read_back(self, rows: int, seed: int) -> tuple[Sequence[int | str], Rows, Rows | None, Rows]:
        """Return rows with their new vectors as one snapshot has both; rows noted as changed are left out."""
        names, sql, connection = self.names, psycopg().sql, self.connection
        with server_errors(self.url):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                keys = connection.execute(
                    names.format(
                        "SELECT {text} FROM {side} AS s WHERE NOT EXISTS (SELECT FROM {changes} AS i WHERE {same}) "
                        "ORDER BY hashtextextended(concat_ws('|', {text}), {seed}) LIMIT {rows}",
                        text=names.table.key_text_sql("s"),
                        seed=sql.Literal(seed),
                        rows=sql.Literal(rows),
                    )
                ).fetchall()
                if not keys:
                    raise GalleryError(f"{self.url.name}: no row is left to be checked")
                keys = connection.execute(self.changes.of(keys, "{text}", "ORDER BY {order}")).fetchall()
                outs, new = self.changes.buffers(len(keys)), np.empty((len(keys), self.job.new_dim), self.job.dtype)
                with copied(connection, self.changes.of(keys, "{vectors}", "ORDER BY {order}")) as found:
                    self.source.decode(found, outs, lambda place: names.table.where(keys[place]))
                query = self.changes.of(keys, "s.{column}", "JOIN {side} AS s ON {same} ORDER BY {order}")
                with copied(connection, query) as found:
                    fault = VectorRows(self.field).decode(list(found), [new])
                if fault is not None:
                    raise GalleryError(f"{names.side}: {names.table.where(keys[fault])} is not what was written")
            finally:
                self.changes.roll_back()
        return [names.table.where(key) for key in keys], outs[0], outs[1] if len(outs) > 1 else None, new

    def finish(self, infos: dict[str, Any], manifest: GalleryManifest) -> None:
        """Build the index, then record that all is there but the last changes."""
        with server_errors(self.url, "building the index: "):
            self.connection.execute(self.names.format("ANALYZE {side}"))
            index = build_index(
                self.connection, self.url, self.names, self._index, self.source.schema.rows, self._progress
            )
        with server_errors(self.url):
            self.connection.execute(
                self.names.format(
                    "UPDATE {upgrades} SET state = 'ready', infos = {infos} WHERE {this} AND token = {token}",
                    infos=literals(json.dumps(infos | {"database_index": index})),
                    token=literals(self.token),
                )
            )
        self._state = "ready"

    def publish(self) -> None:
        """Catch up with the last changes under a lock on the table, and let the view show the new vectors."""
        with server_errors(self.url, "publishing: "):
            for number in range(LOCK_TRIES):
                self.changes.catch_up()
                try:
                    return self._publish_once(patience(number))
                except _TooManyError:
                    if number == LOCK_TRIES - 1:
                        raise ResourceError(
                            f"{self.url.name}: more is written than can be caught up with; the same command goes on"
                        ) from None
                except psycopg().errors.LockNotAvailable:  # somebody is reading the view
                    if number == LOCK_TRIES - 1:
                        raise
                time.sleep(patience(number))  # so that writers are not held up all the time

    def _publish_once(self, seconds: float) -> None:
        """Hold up writers, and wait for readers of the view no longer than some seconds while they are."""
        connection = self.connection
        with locked(connection, self.names, "SHARE"):
            started = time.perf_counter()
            self.fence(connection)
            self.changes.transform("")
            if self.changes.waiting():  # too many came while the lock was waited for
                raise _TooManyError
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{seconds * 1000:.0f}ms",))
            if not connection.execute(self.names.format("SELECT is_current FROM {upgrades} WHERE {this}")).fetchone()[
                0
            ]:
                show_version(connection, self.names, self.names.column)
            connection.execute(
                self.names.format(
                    "UPDATE {upgrades} SET state = 'published', published = coalesce(published, now()), "
                    "infos = infos || jsonb_build_object('lock_seconds', {seconds}::float8) WHERE {this}",
                    seconds=literals(time.perf_counter() - started),
                )
            )
        self._state = "published"

    def failed_gate(self) -> None:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        with server_errors(self.url):
            self.connection.execute(self.names.format("UPDATE {upgrades} SET state = 'gate failed' WHERE {this}"))

    def discard(self) -> None:
        """Nothing: a row that cannot be upgraded is noted by the trigger when it is corrected, and the rest stays."""

    def close(self) -> None:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        for sink in self._sinks:
            sink.close()
        self.connection.close()

    @property
    def copy_sql(self) -> Any:
        """How new rows are sent."""
        return self.names.format("COPY {side} ({key}, {column}) FROM STDIN (FORMAT BINARY)")


class _TooManyError(Exception):
    """More was written than is transformed under a lock."""
