"""FAISS, imported on first use: the module is the same whether it came as ``faiss-cpu`` or as a GPU build."""

from __future__ import annotations

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


def condensed(error: Exception) -> str:
    """Return FAISS's words without its C++ location: ``Error in <function> at <file:line>: <words>``."""
    return str(error).split(": ", 2)[-1].replace("\n", " ").strip()


def ivf_of(index: Any) -> Any | None:
    """Return the inverted-file index inside ``index``, or None."""
    try:
        return faiss().extract_index_ivf(index)
    except RuntimeError:
        return None
