"""Searching a published gallery under its own ids."""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, ArtifactError
from fct_infer.gallery import Gallery, ShardReader
from fct_infer.index.builder import IndexBuilder, load_index_file
from fct_infer.index.faiss_module import ivf_of
from fct_infer.transformation import Float32Array

SPEED_QUERIES = 100


class GalleryIndex:
    """The index of a published gallery.

    Attributes:
        rows, dim: size of the index.
        metric: ``l2``, ``ip`` or ``cosine``.
        index: the FAISS index itself; its ids are the gallery's int64 ids, or row numbers if those are text or absent.
    """

    def __init__(self, index: Any, metric: str, gallery: Gallery) -> None:
        self.index, self.metric, self._gallery = index, metric, gallery
        self.rows, self.dim = int(index.ntotal), int(index.d)
        self._first_rows = [shard.first_row for shard in gallery.shards]

    def search(self, queries: Float32Array, k: int) -> tuple[Float32Array, NDArray[Any]]:
        """Return the k nearest rows of each query.

        Args:
            queries: (m, dim) float32, embeddings of the new model; normalised here for the cosine metric.
            k: neighbours wanted.

        Returns:
            distances (m, k) float32, as FAISS gives them (squared for l2), and the gallery's own ids (m, k); where
            fewer than k were found, id -1 (or an empty text).

        Raises:
            ArrayError: queries are not C-contiguous float32 (m, dim), or k is less than 1.
        """
        if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ArrayError(f"queries is {queries.dtype} {queries.shape}, wanted float32 (m, {self.dim})")
        if not queries.flags.c_contiguous or k < 1:
            raise ArrayError(f"queries must be C-contiguous and k at least 1 (it is {k})")
        if self.metric == "cosine":
            queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        distances, ids = self.index.search(queries, k)
        if self._gallery.id_dtype is not None and self._gallery.id_dtype.kind != "i":
            ids = self._texts(ids)
        return distances, ids

    def _texts(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the text ids of row numbers, read from the shards."""
        assert self._gallery.id_dtype is not None
        texts = np.zeros(rows.shape, self._gallery.id_dtype)
        wanted, inverse = np.unique(rows, return_inverse=True)
        found = np.zeros(wanted.shape, self._gallery.id_dtype)
        readers: dict[int, ShardReader] = {}
        try:
            for position, row in enumerate(wanted.tolist()):
                if row < 0:
                    continue
                number = bisect_right(self._first_rows, row) - 1
                reader = readers.setdefault(number, ShardReader(self._gallery.shards[number]))
                start = row - self._first_rows[number]
                found[position] = reader.read_ids(start, start + 1)[0]
        finally:
            for reader in readers.values():
                reader.close()
        texts[...] = found[inverse.reshape(rows.shape)]
        return texts


def load_index(dest: str | Path) -> GalleryIndex:
    """Open the index of a gallery that :func:`fct_infer.upgrade_gallery` published, checking its digest.

    Raises:
        ArtifactError: it is not such a folder, has no index, or the index is damaged.
        MissingExtraError: FAISS is not installed.
    """
    dest = Path(dest)
    try:
        manifest = json.loads((dest / "manifest.json").read_text())
        digest = manifest["files"]["index.faiss"]["sha256"]
        metric = manifest["metric"]
    except OSError as error:
        raise ArtifactError(f"{dest}: is not a published gallery: it has no readable manifest.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{dest}: its manifest.json names no index") from error
    return GalleryIndex(load_index_file(dest / "index.faiss", digest), metric, Gallery.open(dest))


def index_infos(builder: IndexBuilder, path: Path, queries: Float32Array, recall: float) -> dict[str, Any]:
    """Return what autofaiss would say of an index, under its keys; searches one query at a time, 10 neighbours."""
    milliseconds = []
    for number in range(min(len(queries), SPEED_QUERIES)):
        start = perf_counter()
        builder.search(queries[number : number + 1], 10)
        milliseconds.append(1000 * (perf_counter() - start))
    size = path.stat().st_size
    return {
        "index_key": builder.factory,
        "index_param": f"nprobe={builder.nprobe}" if ivf_of(builder.index) is not None else "",
        "index_path": path.name,
        "size in bytes": size,
        "avg_search_speed_ms": float(np.mean(milliseconds)),
        "99p_search_speed_ms": float(np.percentile(milliseconds, 99)),
        "10-recall@10": recall,
        "nb vectors": builder.rows,
        "vectors dimension": builder.dim,
        "compression ratio": 4.0 * builder.rows * builder.dim / size,
    }
