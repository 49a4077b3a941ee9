"""Searching a published gallery under its own ids."""

from __future__ import annotations

import operator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, ArtifactError, UnsupportedError
from fct_infer.gallery.manifest import GalleryManifest, parse_manifest, read_published
from fct_infer.index.builder import IndexBuilder, load_index_file
from fct_infer.index.faiss_module import faiss, faiss_errors, inner_indexes, ivf_of
from fct_infer.index.stored_ids import StoredIds, load_ids
from fct_infer.storage import sha256_of_file
from fct_infer.transformation import Float32Array

INFOS_NAME = "index_infos.json"
SPEED_QUERIES = 100
SPEED_K = 10


class GalleryIndex:
    """The index of a published gallery, in memory with its ids: replacing the folder changes no answer of it.

    In a process forked after a search the thread that forked searches with one thread, since those of OpenMP are gone;
    threads the child starts itself use as many as FAISS is told.

    Attributes:
        rows, dim: size of the index; for cosine rows that are zero, which have no direction, are not in it.
        metric: ``l2``, ``ip`` or ``cosine``.
        index: the FAISS index itself; its ids are the gallery's, or row numbers if those are absent or no integers
            from 0 to 2^63 - 1.
    """

    def __init__(self, index: Any, metric: str, ids: StoredIds | None = None) -> None:
        self.index, self.metric, self._ids = index, metric, ids
        self.rows, self.dim = int(index.ntotal), int(index.d)

    def search(self, queries: Float32Array, k: int) -> tuple[Float32Array, NDArray[Any]]:
        """Return the k nearest rows of each query.

        Args:
            queries: (m, dim) float32, embeddings of the new model; normalised here for the cosine metric.
            k: neighbours wanted, an integer of Python or NumPy.

        Returns:
            distances (m, k) float32, as FAISS gives them (squared for l2), and the gallery's own ids (m, k); where
            fewer than k were found, id -1 (or an empty text). Binary ids come as an array of ``bytes`` objects, all
            of their NULs kept; uint64 ids as uint64, with 2^64 - 1 for nothing found.

        Raises:
            ArrayError: queries are not finite, C-contiguous float32 (m, dim), or for cosine one is zero; or k is no
                integer or less than 1.
            ArtifactError: FAISS cannot search this index.
            ResourceError: not enough memory for m times k results.
        """
        queries, k = check_search(queries, k, self.dim, self.metric)
        with faiss_errors(f"search for {k:,} neighbours", ArtifactError):
            distances, labels = self.index.search(queries, k)
        return distances, labels if self._ids is None else self._ids[labels]

    @property
    def stored_ids(self) -> StoredIds | None:
        """The gallery's ids by the row numbers that the index holds; None if it holds the ids themselves."""
        return self._ids

    def exchanged(
        self, gone: NDArray[np.int64], rows: Float32Array, ids: NDArray[Any]
    ) -> tuple[GalleryIndex, NDArray[np.int64]]:
        """Return an index without some rows and with others; this one stays as it is, and may be searched meanwhile.

        Args:
            gone: (g,) int64, what the index knows the rows to leave out by: ids, or row numbers with ``stored_ids``.
            rows: (n, dim) float32, for cosine of length one.
            ids: (n,) of the gallery's kind, none of them in the index.

        Returns:
            the index, and what it knows the new rows by (n,) int64.

        Raises:
            UnsupportedError: rows cannot be taken out of such an index, a graph for instance.
            ResourceError: not enough memory: there are two indexes for a while.
        """
        stored = self._ids
        if stored is None:
            labels = ids.astype(np.int64)
        else:
            stored, labels = stored.exchanged(gone, ids)
        with faiss_errors("rows of this index cannot be exchanged", UnsupportedError):
            index = faiss().clone_index(self.index)
            if len(gone):
                index.remove_ids(faiss().IDSelectorBatch(gone))
            if len(rows):
                index.add_with_ids(rows, labels)
        return GalleryIndex(index, self.metric, stored), labels


def check_search(queries: Float32Array, k: Any, dim: int, metric: str) -> tuple[Float32Array, int]:
    """Return queries as an index takes them, of length one for cosine, and k; errors as of a search."""
    if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != dim:
        raise ArrayError(f"queries is {queries.dtype} {queries.shape}, wanted float32 (m, {dim})")
    if not queries.flags.c_contiguous:
        raise ArrayError("queries is not C-contiguous")
    k = _whole_number("k", k)
    if k < 1:
        raise ArrayError(f"k is {k}, wanted at least 1")
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise ArrayError(f"queries: row {int(np.argmin(finite))} holds NaN or infinity")
    return (_directions(queries) if metric == "cosine" else queries), k


def _whole_number(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise ArrayError(f"{name} is {value!r}, wanted an integer") from error


def _directions(queries: Float32Array) -> Float32Array:
    """Return queries divided by their norms, computed in float64: in float32 those of long rows overflow."""
    norms = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    if (norms == 0).any():
        raise ArrayError(f"queries: row {int(np.argmin(norms))} is zero, and has no direction to compare by cosine")
    directions: Float32Array = (queries / norms[:, None]).astype(np.float32)
    return directions


def load_index(dest: str | Path) -> GalleryIndex:
    """Open the index of a gallery that :func:`fct_infer.upgrade_gallery` published.

    All files are of one gallery, even if ``dest`` is replaced meanwhile: the manifest says what they hold, and where it
    changed while they were read, they are read again.

    Raises:
        ArtifactError: it is not such a folder, has no index, or a file is damaged: the manifest, one of another size
            than it says, or the index, its figures or the ids.
        MissingExtraError: FAISS is not installed.
    """
    dest = Path(dest)
    return read_published(dest, lambda data: _open_once(dest, data))


def index_infos(builder: IndexBuilder, path: Path, queries: Float32Array, recall: float) -> dict[str, Any]:
    """Return what autofaiss would say of an index, under its keys.

    Args:
        builder: the index; searched for 10 neighbours of one query at a time.
        path: where it was saved.
        queries: (m, dim) rows of the gallery, as the index takes them.
        recall: its recall@10.

    ``reconstruction error %`` is the mean distance of a row to what the index stores of it, in percent of the mean
    norm; None if the index cannot say. ``rows left out`` are those that are zero and were to be compared by cosine.
    """
    milliseconds = []
    for number in range(min(len(queries), SPEED_QUERIES)):
        start = perf_counter()
        builder.search(queries[number : number + 1], SPEED_K)
        milliseconds.append(1000 * (perf_counter() - start))
    size = path.stat().st_size
    return {
        "index_key": builder.factory,
        "index_param": f"nprobe={builder.nprobe}" if ivf_of(builder.index) is not None else "",
        "index_path": path.name,
        "size in bytes": size,
        "avg_search_speed_ms": float(np.mean(milliseconds)),
        "99p_search_speed_ms": float(np.percentile(milliseconds, 99)),
        "reconstruction error %": _reconstruction_error(builder, queries),
        "10-recall@10": recall,
        "nb vectors": int(builder.index.ntotal),
        "rows left out": builder.left_out,
        "vectors dimension": builder.dim,
        "compression ratio": 4.0 * int(builder.index.ntotal) * builder.dim / size,
    }


def _reconstruction_error(builder: IndexBuilder, rows: Float32Array) -> float | None:
    id_maps = faiss().IndexIDMap | faiss().IndexIDMap2
    codec = next(part for part in inner_indexes(builder.index) if not isinstance(part, id_maps))
    codec = getattr(codec, "storage", codec)  # a graph's vectors lie in its storage
    try:
        decoded = codec.sa_decode(codec.sa_encode(rows))
    except RuntimeError:
        return None
    norm = float(np.linalg.norm(rows, axis=1).mean())
    return 100 * float(np.linalg.norm(decoded - rows, axis=1).mean()) / norm if norm > 0 else None


def _open_once(dest: Path, data: bytes) -> GalleryIndex:
    manifest = parse_manifest(dest, data)
    if "index.faiss" not in manifest.files:
        raise ArtifactError(f"{dest}: has no index.faiss; it was upgraded with --index none")
    for name, damage in manifest.damaged_sizes(dest).items():
        raise ArtifactError(f"{dest / name}: is damaged: {damage}")
    if INFOS_NAME in manifest.files and sha256_of_file(dest / INFOS_NAME) != manifest.files[INFOS_NAME].sha256:
        raise ArtifactError(f"{dest / INFOS_NAME}: is damaged: its SHA-256 is not the one in manifest.json")
    index = load_index_file(dest / "index.faiss", manifest.files["index.faiss"].sha256)
    check_index(dest / "index.faiss", index, manifest)
    return GalleryIndex(index, manifest.metric, load_ids(dest, manifest))


def check_index(path: Path, index: Any, manifest: GalleryManifest) -> None:
    """Check that an index is the one a manifest speaks of.

    Raises:
        ArtifactError: it has other rows, dims, or another metric.
    """
    rows = manifest.rows if manifest.indexed_rows is None else manifest.indexed_rows
    if (index.ntotal, index.d) != (rows, manifest.dim):
        raise ArtifactError(
            f"{path}: holds {index.ntotal} rows of {index.d}, manifest.json says {rows} of {manifest.dim}"
        )
    if index.metric_type != metric_type(manifest.metric):
        raise ArtifactError(f"{path}: has another metric than {manifest.metric}, which manifest.json says")


def metric_type(metric: str) -> Any:
    """Return FAISS's name of ``l2``, ``ip`` or ``cosine``, which is ``ip`` of rows of length one."""
    return faiss().METRIC_L2 if metric == "l2" else faiss().METRIC_INNER_PRODUCT
