"""NumPy's own matrix products beside our threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = Lock()
_inside: list[Any] = []  # the limit, once for each who is inside


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy compute its matrix products on the calling thread alone meanwhile (process-wide).

    For small ones between other work: OpenBLAS's threads go on spinning for some 25 ms after each, for which the cores
    have better use. And for products that several threads make at once.
    """
    with _lock:
        _inside.append(_inside[0] if _inside else _blas().limit(limits=1))
    try:
        yield
    finally:
        with _lock:
            limit = _inside.pop()
            if not _inside:
                limit.restore_original_limits()


@cache
def _blas() -> Any:
    return ThreadpoolController().select(user_api="blas")
