"""Locks that are waited for a little at a time, so that nobody else is held up for long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

from fct_infer.connectors.postgres import psycopg
from fct_infer.connectors.postgres_names import Names

LOCK_SECONDS = 2.0  # that writers may be held up while one who is at work is waited for
LOCK_TRIES = 60


def patience(number: int) -> float:
    """Return for how many seconds a lock is waited for the ``number``-th time: a moment first, then longer."""
    return float(min(LOCK_SECONDS, 0.05 * 1.3**number))


@contextmanager
def locked(connection: Any, names: Names, mode: str) -> Iterator[None]:
    """Do something in one transaction that holds a lock on the table, waiting for it a little at a time.

    Who waits for a lock holds up all who come after; so after a moment it lets them pass and tries again.
    """
    errors = psycopg().errors
    try:
        for number in range(LOCK_TRIES):
            connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{patience(number) * 1000:.0f}ms",))
            connection.execute("BEGIN")
            try:
                connection.execute(names.format(f"LOCK TABLE {{table}} IN {mode} MODE"))
                break
            except errors.LockNotAvailable:
                connection.execute("ROLLBACK")
                if number == LOCK_TRIES - 1:
                    raise
                sleep(patience(number))
            except BaseException:
                _roll_back(connection)
                raise
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
    finally:
        if not connection.closed:
            connection.execute("SET lock_timeout = 0")


def _roll_back(connection: Any) -> None:
    if not connection.closed and not connection.broken:
        connection.rollback()


@contextmanager
def closing_transaction(connection: Any) -> Iterator[None]:
    """Do something in one transaction that waits for readers of a view at most :data:`LOCK_SECONDS`."""
    connection.execute("BEGIN")
    try:
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS * 1000:.0f}ms'")
        yield
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def take_lock(connection: Any, names: Names, patience: float = 10.0) -> bool:
    """Take the lock of one version for this session; a killed run's is let go once the server has noticed."""
    key = f"fct_infer {names.table.schema}.{names.side}"
    until = monotonic() + patience
    while True:
        if connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (key,)).fetchone()[0]:
            return True
        if monotonic() > until:
            return False
        sleep(0.1)
