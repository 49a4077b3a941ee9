"""FAISS, imported on first use: the module is the same whether it came as ``faiss-cpu`` or as a GPU build."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from fct_infer.errors import MissingExtraError


@cache
def faiss() -> Any:
    """Return the ``faiss`` module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import faiss as module
    except ImportError as error:
        raise MissingExtraError("faiss", "cpu") from error
    return module


@contextmanager
def faiss_threads(threads: int) -> Iterator[Any]:
    """Yield the ``faiss`` module with this thread count; FAISS keeps one per calling thread, which is put back."""
    module = faiss()
    before = module.omp_get_max_threads()
    module.omp_set_num_threads(threads)
    try:
        yield module
    finally:
        module.omp_set_num_threads(before)


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
