"""Rows that are written to a table while it is upgraded: noted by its triggers, transformed once more here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_infer.connectors.postgres import psycopg, server_errors
from fct_infer.connectors.postgres_reader import copied
from fct_infer.connectors.postgres_rows import HEADER, TRAILER, with_vectors
from fct_infer.errors import GalleryError, NonFiniteError
from fct_infer.gallery.source import Rows

if TYPE_CHECKING:
    from fct_infer.connectors.postgres_work import PostgresWork

AT_ONCE = 4096  # changed rows that are transformed in one transaction
FEW = 64  # changed rows that are left for the lock
_MOST_ROUNDS = 100_000  # of catching up before the lock is taken whatever is left


class Changes:
    """What waits to be transformed once more, over the connection of the work."""

    def __init__(self, work: PostgresWork) -> None:
        self._work, self._connection, self._names = work, work.connection, work.names

    def settle(self) -> None:
        """Transform what was written since the snapshot, and compare keys with keys."""
        with server_errors(self._work.url):
            self._connection.execute("BEGIN")
            self._connection.execute(
                self._names.format(
                    "INSERT INTO {changes} ({key}) SELECT {key} FROM {table} AS i WHERE NOT EXISTS "
                    "(SELECT FROM {side} AS s WHERE {same})"
                )
            )
            self._connection.execute(
                self._names.format("DELETE FROM {side} AS s WHERE NOT EXISTS (SELECT FROM {table} AS i WHERE {same})")
            )
            self._connection.execute("COMMIT")
            self.catch_up()

    def waiting(self) -> int:
        """Return how many keys are noted."""
        return int(self._connection.execute(self._names.format("SELECT count(*) FROM {changes}")).fetchone()[0])

    def catch_up(self) -> None:
        """Transform changed rows until few are left; more come while it does."""
        for _ in range(_MOST_ROUNDS):
            waiting = self.waiting()
            if waiting <= FEW:
                return
            self._work.report("catch up with writers", waiting)
            if self._round() == waiting:  # all of them are locked
                time.sleep(0.05)

    def _round(self) -> int:
        """Transform one lot of changed rows in a transaction of its own; return how many are left for later."""
        self._connection.execute("BEGIN")
        try:
            self._work.fence(self._connection)
            left = self.transform("FOR SHARE OF i SKIP LOCKED")
            self._connection.execute("COMMIT")
        except BaseException:
            self.roll_back()
            raise
        return left

    def transform(self, lock: str) -> int:
        """Take noted keys, at most :data:`AT_ONCE`, and write the new vectors of their rows.

        A row is locked until the new vector is written, so that who writes it next deletes that vector. Rows that a
        writer has locked are left to the next time: nobody is waited for, so nobody can wait in a circle.

        Returns:
            How many were left.
        """
        connection, names, sql = self._connection, self._names, psycopg().sql
        found = connection.execute(
            names.format(
                "WITH taken AS (DELETE FROM {changes} WHERE fct_place = ANY (ARRAY(SELECT fct_place FROM {changes} "
                "ORDER BY fct_place LIMIT {most})) RETURNING {key}, fct_is_blind) "
                "SELECT bool_or(fct_is_blind), {text} FROM taken GROUP BY {key}",
                most=sql.Literal(AT_ONCE),
                text=names.table.key_text_sql(),
            )
        ).fetchall()
        if not found:
            return 0
        keys = [tuple(key) for _, *key in found]
        if blind := [key for (is_blind, *_), key in zip(found, keys, strict=True) if is_blind]:
            self._delete(blind)
        # What was published already may have been written by someone who knows the new model: that stays.
        missing = "NOT EXISTS (SELECT FROM {side} AS s WHERE {same})" if self._work.was_published else "true"
        texts = connection.execute(self.of(keys, "{text}", f"WHERE {missing} ORDER BY {{order}} {lock}")).fetchall()
        if texts:
            new = self._transformed(texts)
            with copied(connection, self.of(texts, "{order}", "ORDER BY {order}")) as rows:
                raw_keys = list(rows)
            self._delete(texts)
            with connection.cursor().copy(self._work.copy_sql) as copy:
                copy.write(HEADER + with_vectors(raw_keys, len(names.table.key), new, self._work.field) + TRAILER)
        return self._leave(sorted(set(keys) - set(texts)), missing)

    def of(self, keys: Sequence[tuple[str, ...]], columns: str, rest: str) -> Any:
        """Return a query of the table's rows of some keys."""
        names, sql = self._names, psycopg().sql
        return names.format(
            f"SELECT {columns} FROM (VALUES {{rows}}) AS t ({{key}}) JOIN {{table}} AS i ON {{same_t}} {rest}",
            rows=sql.SQL(", ").join(map(names.table.literal, keys)),
            same_t=sql.SQL(" AND ").join(
                sql.SQL("i.{} = t.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in names.table.key
            ),
            text=names.table.key_text_sql("i"),
            order=names.table.key_sql("i"),
            vectors=self._work.source.vectors_sql(self._work.job.reads_side, "i"),
        )

    def _transformed(self, keys: list[tuple[str, ...]]) -> Rows:
        """Return the new vectors of some rows, sorted by key.

        Raises:
            GalleryError: a row is no finite vector; names its key.
        """
        table, outs = self._names.table, self.buffers(len(keys))
        with copied(self._connection, self.of(keys, "{vectors}", "ORDER BY {order}")) as rows:
            self._work.source.decode(rows, outs, lambda place: table.where(keys[place]))
        try:
            return self._work.job.transform(outs[0], outs[1] if len(outs) > 1 else None)
        except NonFiniteError as error:
            what = "its transformed value does not fit" if error.array == "result" else f"{error.array} is not finite"
            raise GalleryError(f"{table.where(keys[error.row])}: {what}") from error

    def buffers(self, rows: int) -> list[Rows]:
        """Return empty arrays for so many rows: ``old``, and ``side`` if it is read."""
        schema = self._work.source.schema
        outs = [np.empty((rows, schema.old_dim), schema.embedding_dtype)]
        if self._work.job.reads_side:
            outs.append(np.empty((rows, schema.side_dim or 0), schema.side_dtype))
        return outs

    def _delete(self, keys: Sequence[tuple[str, ...]]) -> None:
        """Delete the new vectors of some keys, but those that a writer is about to delete."""
        rows = psycopg().sql.SQL(", ").join(map(self._names.table.literal, keys))
        query = "DELETE FROM {side} WHERE ({key}) IN (SELECT {key} FROM {side} WHERE ({key}) IN (VALUES {rows}) {lock})"
        lock = psycopg().sql.SQL("FOR UPDATE SKIP LOCKED")
        self._connection.execute(self._names.format(query, rows=rows, lock=lock))

    def _leave(self, keys: list[tuple[str, ...]], missing: str) -> int:
        """Note keys again whose rows are there and were not to be had; of those that are gone no new vector stays."""
        if not keys:
            return 0
        there = set(self._connection.execute(self.of(keys, "{text}", "")).fetchall())
        if gone := [key for key in keys if key not in there]:
            self._delete(gone)
        again = self._connection.execute(self.of(keys, "{text}", f"WHERE {missing}")).fetchall()
        if again:
            rows = self.of(again, "{order}", "")
            self._connection.execute(self._names.format("INSERT INTO {changes} ({key}) {rows}", rows=rows))
        return len(again)

    def roll_back(self) -> None:
        """End a transaction without what it did; never raises."""
        with suppress(psycopg().Error):
            self._connection.rollback()
