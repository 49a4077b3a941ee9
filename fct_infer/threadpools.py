"""Other libraries' threads beside other work: where they wait for each other they spin, on cores that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_SPINS = "GOMP_SPINCOUNT"
_lock = Lock()
_inside: list[Any] = []  # the limit, once for each who is inside


def let_threads_wait_briefly() -> None:
    """Have PyTorch's threads soon let go of the core on which they wait for each other, unless a user chose how.

    A step of a small network is a hundred products, after each of which threads wait for the last one by spinning: for
    milliseconds, as OpenMP's library takes the cores to be theirs. Where other work needs them, the last one cannot run
    meanwhile, and steps were seen to take 0.4 s instead of 4 ms, for as long as that lasts. On an idle machine a step
    takes a tenth to a fifth longer. For commands, before anything is loaded: the library reads how often they spin
    while it is loaded, by PyTorch or by the core, and never again.
    """
    if {_SPINS, "OMP_WAIT_POLICY"}.isdisjoint(os.environ):
        os.environ[_SPINS] = "1000"  # what libgomp itself takes where its own threads outnumber the cores


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
