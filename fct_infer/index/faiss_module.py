"""FAISS, imported on first use: the module is the same whether it came as ``faiss-cpu`` or as a GPU build."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from fct_infer.errors import FctError, ResourceError, import_error
from fct_infer.machine import can_load_libraries

_this_thread = threading.local()


@cache
def faiss() -> Any:
    """Return the ``faiss`` module.

    Raises:
        MissingExtraError: it is not installed.
        ResourceError: it is, and cannot be loaded.
    """
    if not can_load_libraries():  # FAISS and its OpenBLAS take their buffers as they are loaded, and crash without
        raise ResourceError("ulimit -v leaves too little memory to load FAISS")
    try:
        import faiss as module
    except ImportError as error:
        raise import_error("faiss", "cpu", error) from error
    os.register_at_fork(after_in_child=_after_fork)
    return module


def _after_fork() -> None:
    """Keep the one thread of a forked child to itself.

    OpenMP's threads do not survive ``fork``, and the thread that forked would wait for them for ever. Threads the child
    starts have none yet, so they may use as many as they like.
    """
    _this_thread.is_alone = True
    faiss().omp_set_num_threads(1)


@contextmanager
def faiss_threads(threads: int) -> Iterator[Any]:
    """Yield the ``faiss`` module with this thread count; FAISS keeps one per calling thread, which is put back.

    In a process forked after a first use of FAISS the thread that forked works alone: see :func:`_after_fork`.
    """
    module = faiss()
    if getattr(_this_thread, "is_alone", False):
        threads = 1
    before = module.omp_get_max_threads()
    module.omp_set_num_threads(threads)
    try:
        yield module
    finally:
        module.omp_set_num_threads(before)


@contextmanager
def faiss_errors(what: str, kind: type[FctError]) -> Iterator[None]:
    """Turn what FAISS raises inside the block into one error of ``kind``, or a ResourceError where memory ran out."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"{what}: not enough memory") from error
    except (RuntimeError, AssertionError) as error:
        if "bad_alloc" in str(error):
            raise ResourceError(f"{what}: not enough memory") from error
        raise kind(f"{what}: {condensed(error) or type(error).__name__}") from error


def condensed(error: Exception) -> str:
    """Return FAISS's words out of its C++: ``Error in <function> at <file:line>: Error: '<check>' failed: <words>``."""
    words = str(error).partition(" at /")[2].partition(": ")[2] or str(error)
    return re.sub(r"^(Error: )?('.*?' failed: )?", "", words).replace("\n", " ").strip()


def inner_indexes(index: Any) -> list[Any]:
    """Return the index and those it wraps, outermost first, each as its own class."""
    module = faiss()
    chain = [module.downcast_index(index)]
    while True:
        outer = chain[-1]
        if isinstance(outer, module.IndexPreTransform | module.IndexIDMap | module.IndexIDMap2):
            chain.append(module.downcast_index(outer.index))
        elif isinstance(outer, module.IndexRefine):
            chain.append(module.downcast_index(outer.base_index))
        else:
            return chain


def ivf_of(index: Any) -> Any | None:
    """Return the inverted-file index inside ``index``, or None."""
    innermost = inner_indexes(index)[-1]
    return innermost if isinstance(innermost, faiss().IndexIVF) else None


def transforms_of(index: Any) -> list[Any]:
    """Return the vector transforms (OPQ, PCA ...) that an index applies to rows before it hands them on."""
    module = faiss()
    if not isinstance(index, module.IndexPreTransform):
        return []
    return [module.downcast_VectorTransform(index.chain.at(place)) for place in range(index.chain.size())]
