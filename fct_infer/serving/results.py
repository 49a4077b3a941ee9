"""What a search found, for people and for files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import UsageError, import_error
from fct_infer.storage import DurableWriter, write_bytes
from fct_infer.transformation import Float32Array

SUFFIXES = (".npz", ".parquet", ".npy")


@dataclass(frozen=True)
class SearchResults:
    """Result of a search.

    Attributes:
        dest: the gallery searched.
        metric: ``l2`` (distances are squared), ``ip`` or ``cosine``.
        searched_by: the index, or ``all rows``.
        queries: (m,) ids of the queries, or their row numbers.
        distances: (m, k) float32, nearest first.
        ids: (m, k) ids of the rows found, or their row numbers; -1 or an empty text where there were fewer.
        seconds: of the search.
    """

    dest: Path
    metric: str
    searched_by: str
    queries: NDArray[Any]
    distances: Float32Array
    ids: NDArray[Any]
    seconds: float

    @property
    def found(self) -> NDArray[np.bool_]:
        """(m, k) whether there is a row at all: galleries may hold fewer, an index may visit fewer."""
        found: NDArray[np.bool_] = np.isfinite(self.distances) & (np.abs(self.distances) < np.finfo(np.float32).max)
        return found

    def neighbours(self, query: int) -> list[tuple[Any, float]]:
        """Return id and distance of what one query found, nearest first; ids as JSON holds them."""
        pairs = zip(self.ids[query].tolist(), self.distances[query].tolist(), self.found[query].tolist(), strict=True)
        return [(plain_id(each), distance) for each, distance, is_there in pairs if is_there]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON."""
        results = []
        for row, query in enumerate(self.queries.tolist()):
            near = self.neighbours(row)
            results.append(
                {
                    "query": plain_id(query),
                    "ids": [each for each, _ in near],
                    "distances": [distance for _, distance in near],
                }
            )
        return {
            "dest": str(self.dest),
            "metric": self.metric,
            "searched_by": self.searched_by,
            "k": self.ids.shape[1],
            "seconds": self.seconds,
            "results": results,
        }

    def write(self, path: str | Path) -> None:
        """Write all results to a file, whose suffix says how.

        ``.npz``: arrays ``queries``, ``ids`` and ``distances``; ``.npy``: the ids, (m, k); ``.parquet``: a row for each
        row found, with ``query``, ``rank`` from 1 on, ``id`` and ``distance``.

        Raises:
            UsageError: another suffix.
            MissingExtraError: ``.parquet`` without pyarrow.
            ResourceError: disk full or another I/O error.
        """
        path = Path(path)
        check_results_path(path)
        buffer = io.BytesIO()
        # What Python objects hold (binary ids) is fixed-width bytes in a file: they are as long as each other.
        ids, queries = _fixed_width(self.ids), _fixed_width(self.queries)
        if path.suffix == ".npz":
            np.savez(buffer, queries=queries, ids=ids, distances=self.distances)
        elif path.suffix == ".npy":
            np.save(buffer, ids)
        else:
            self._write_parquet(buffer)
        write_bytes(path, buffer.getbuffer())

    def _write_parquet(self, buffer: io.BytesIO) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise import_error("pyarrow", "parquet", error) from error
        rows, ranks = np.nonzero(self.found)
        columns = {
            "query": self.queries[rows].tolist(),
            "rank": ranks + 1,
            "id": self.ids[self.found].tolist(),
            "distance": self.distances[self.found],
        }
        parquet.write_table(pyarrow.table(columns), buffer)


def check_results_path(path: Path) -> None:
    """Say before any work whether :meth:`SearchResults.write` could write there; leaves no file.

    Raises:
        UsageError: the suffix is none of :data:`SUFFIXES`.
        ResourceError: it cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: results are written as {', '.join(SUFFIXES)}")
    DurableWriter(path).abort()


def plain_id(value: Any) -> Any:
    """Return an id as JSON can hold it: bytes that are no text as hex digits."""
    if not isinstance(value, bytes):
        return value
    text = value.decode("utf-8", errors="replace")
    return text if text.isprintable() and "\ufffd" not in text else value.hex()


def table_of(results: SearchResults, queries: int, neighbours: int) -> list[Sequence[str]]:
    """Return the first results as rows of text, a head first."""
    rows: list[Sequence[str]] = [("query", "rank", "id", "distance")]
    for row in range(min(queries, len(results.queries))):
        query = str(plain_id(results.queries[row : row + 1].tolist()[0]))
        near = results.neighbours(row)[:neighbours]
        for rank, (found, distance) in enumerate(near, 1):
            rows.append((query if rank == 1 else "", str(rank), str(found), f"{distance:.6g}"))
        if not near:
            rows.append((query, "", "nothing found", ""))
    return rows


def _fixed_width(ids: NDArray[Any]) -> NDArray[Any]:
    return ids.astype("S") if ids.dtype == object else ids
