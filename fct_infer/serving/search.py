"""Exact search of a published gallery that has no index: all rows are read, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import open_source
from fct_infer.errors import ArrayError, ArtifactError, FctError, GalleryError
from fct_infer.evaluation import Metric, nearest
from fct_infer.gallery import GalleryManifest, Part, Source, SourceReader
from fct_infer.gallery.manifest import folder_identity
from fct_infer.identity import ModelId, NamedModel
from fct_infer.index.gallery_index import Queries, as_queries, check_query_model, results_of, whole_number
from fct_infer.index.stored_ids import load_all_ids
from fct_infer.transformation import Float32Array

BLOCK_BYTES = 64 << 20  # of rows searched at once


class ExactSearch:
    """A published gallery, searched row by row; its ids are in memory, its rows stay on the disk.

    Once another version has taken its place there, it finds nothing any more: rows would be of one, ids of the other.

    Attributes:
        rows, dim, metric: of the gallery.
        model: whose vectors it holds; None where that is not known.
    """

    def __init__(self, folder: Path, manifest: GalleryManifest) -> None:
        self._folder, self._identity = folder, folder_identity(folder)
        self._source = open_source(folder)
        self._ids = load_all_ids(folder, manifest)
        self.rows, self.dim, self.metric = manifest.rows, manifest.dim, manifest.metric
        self.model: ModelId | None = manifest.model
        if (self._source.schema.rows, self._source.schema.old_dim) != (self.rows, self.dim):
            raise ArtifactError(f"{folder}: does not hold the rows that manifest.json says")

    def __repr__(self) -> str:
        return f"ExactSearch({self._source.path}, {self.rows:,} rows of {self.dim}, {self.metric})"

    def search(
        self, queries: Queries, k: int = 10, *, model: NamedModel | None = None
    ) -> tuple[Float32Array, NDArray[Any]]:
        """Return the k nearest rows of each query, in the form of :meth:`fct_infer.index.GalleryIndex.search`.

        Rows that are zero have no direction: for cosine they are left out.

        Raises:
            ArrayError: queries or ``k`` make no sense.
            ModelMismatchError: queries are of another model than the rows.
            GalleryError, ArtifactError: a row cannot be read, or holds NaN or infinity; names file and row. Or the
                gallery was replaced since it was opened.
        """
        check_query_model(model, self.model)
        wanted, k = as_queries(queries, self.dim, self.metric), whole_number("k", k)
        if k < 1:
            raise ArrayError(f"k is {k}, wanted at least 1")
        try:
            distances, rows = self._nearest(wanted, min(k, self.rows))
        except FctError:
            self._refuse_replaced()
            raise
        self._refuse_replaced()
        missing = k - distances.shape[1]
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
        worst = np.inf if self.metric == "l2" else -np.inf
        with np.errstate(over="ignore"):  # what is too far for float32 is as FAISS has it: nothing found
            padded: Float32Array = np.pad(distances, ((0, 0), (0, missing)), constant_values=worst).astype(np.float32)
        return results_of(queries, padded, rows if self._ids is None else self._ids[rows])

    def _refuse_replaced(self) -> None:
        if folder_identity(self._folder) != self._identity:
            raise GalleryError(f"{self._folder}: was replaced since it was opened; open it again")

    def _nearest(self, queries: Float32Array, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return distances as FAISS gives them (squared for l2) and row numbers, nearest first, the first of ties."""
        best = np.empty((len(queries), 0))
        rows = np.empty((len(queries), 0), np.int64)
        sign = 1.0 if self.metric == "l2" else -1.0
        for block, numbers in self._blocks():
            metric: Metric = "ip" if self.metric == "cosine" else self.metric  # type: ignore[assignment]
            if len(queries) and len(block):
                distances, places = nearest(queries, block, min(k, len(block)), metric=metric)
                found = distances.astype(np.float64) ** (2 if self.metric == "l2" else 1)
                best = np.concatenate([best, sign * found], axis=1)
                rows = np.concatenate([rows, numbers[places]], axis=1)
                order = np.argsort(best, axis=1, kind="stable")[:, :k]
                best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return sign * best, rows

    def _blocks(self) -> Iterator[tuple[Float32Array, NDArray[np.int64]]]:
        """Yield rows as they are searched, float32, with their numbers."""
        with SourceReader(self._source) as reader:
            for part in self._source.parts():
                step = max(1, BLOCK_BYTES // (4 * self.dim))
                for start in range(0, part.rows, step):
                    block = _read(self._source, reader, part, start, min(part.rows, start + step))
                    numbers = np.arange(len(block)) + part.first_row + start
                    if self.metric == "cosine":
                        lengths = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
                        block, numbers, lengths = block[lengths > 0], numbers[lengths > 0], lengths[lengths > 0]
                        block = (block / lengths[:, None]).astype(np.float32)
                    yield block, numbers


def _read(source: Source, reader: SourceReader, part: Part, start: int, stop: int) -> Float32Array:
    block = np.empty((stop - start, source.schema.old_dim), source.schema.embedding_dtype)
    reader.at(part).read_into(start, stop, block, None)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        row = part.first_row + start + int(np.argmin(finite))
        raise ArtifactError(f"{source.where(row)} holds NaN or infinity: it is damaged")
    return block.astype(np.float32, copy=False)
