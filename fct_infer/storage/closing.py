"""What is half open is closed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class _Closable(Protocol):
    def close(self) -> object: ...


@contextmanager
def closed_if_refused(opened: _Closable) -> Iterator[None]:
    """Close something if what comes next raises: for constructors, which nobody can close that never had the object."""
    try:
        yield
    except BaseException:
        opened.close()
        raise
