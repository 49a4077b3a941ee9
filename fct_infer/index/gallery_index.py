"""Searching a published gallery under its own ids."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, ArtifactError, UnsupportedError
from fct_infer.gallery.manifest import GalleryManifest, parse_manifest, read_published
from fct_infer.identity import ModelId, NamedModel, check_same_model, model_id
from fct_infer.index.builder import INDEX_NAME, IndexBuilder, load_index_file
from fct_infer.index.faiss_module import faiss, faiss_errors, inner_indexes, ivf_of
from fct_infer.index.parts import open_on_disk
from fct_infer.index.sharded import SHARDED_NAME, load_sharded
from fct_infer.index.stored_ids import StoredIds, load_ids
from fct_infer.machine import usable_memory
from fct_infer.pages import html_summary
from fct_infer.storage import DigestedFile, RemotePath, location, sha256_of_file
from fct_infer.transformation import Float32Array

Queries: TypeAlias = NDArray[np.floating[Any]] | Sequence[float] | Sequence[Sequence[float]]

INFOS_NAME = "index_infos.json"
MEMORY_SHARE = 0.8  # of what is usable, that an index may take; a larger one is read where it lies
SPEED_QUERIES = 32  # one after the other: while they are searched, all cores but one rest
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
        model: whose vectors it holds, and is searched with; None where that is not known.
    """

    def __init__(self, index: Any, metric: str, ids: StoredIds | None = None, model: ModelId | None = None) -> None:
        self.index, self.metric, self._ids, self.model = index, metric, ids, model
        self.rows, self.dim = int(index.ntotal), int(index.d)

    def __repr__(self) -> str:
        ids = "row numbers or integers" if self._ids is None else str(self._ids.dtype)
        return f"GalleryIndex({type(self.index).__name__}, {self.rows:,} rows of {self.dim}, {self.metric}, ids {ids})"

    def _repr_html_(self) -> str:
        ids = "row numbers or integers" if self._ids is None else str(self._ids.dtype)
        known = {
            "index": type(self.index).__name__,
            "rows": f"{self.rows:,} of {self.dim}",
            "metric": self.metric,
            "ids": ids,
        }
        return html_summary("GalleryIndex", known)

    def search(
        self, queries: Queries, k: int = 10, *, model: NamedModel | None = None
    ) -> tuple[Float32Array, NDArray[Any]]:
        """Return the k nearest rows of each query.

        Args:
            queries: (m, dim) embeddings of the new model, float32 or float16 in any layout, or lists of numbers; or
                one of them, (dim,). Normalised here for the cosine metric.
            k: neighbours wanted, an integer of Python or NumPy.
            model: whose vectors the queries are: a name, ``sha256:`` and a digest, or an embedder's ``model``. Compared
                with :attr:`model`, unless one of the two is not known.

        Returns:
            distances (m, k) float32, as FAISS gives them (squared for l2), and the gallery's own ids (m, k); where
            fewer than k were found, id -1 (or an empty text). Binary ids come as an array of ``bytes`` objects, all
            of their NULs kept; uint64 ids as uint64, with 2^64 - 1 for nothing found. Of a single query both are (k,).

        Raises:
            ArrayError: queries are no finite (m, dim) or (dim,) of numbers that float32 holds, or for cosine one is
                zero; or k is no integer or less than 1.
            ModelMismatchError: queries are of another model than the rows.
            ArtifactError: FAISS cannot search this index.
            ResourceError: not enough memory for m times k results.
        """
        self.check_model(model)
        rows, k = check_search(queries, k, self.dim, self.metric)
        with faiss_errors(f"search for {k:,} neighbours", ArtifactError):
            distances, labels = self.index.search(rows, k)
        return results_of(queries, distances, labels if self._ids is None else self._ids[labels])

    def check_model(self, model: NamedModel | None) -> None:
        """Raise a ModelMismatchError if ``model`` is known to be another one than whose vectors the index holds."""
        check_query_model(model, self.model)

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
        return GalleryIndex(index, self.metric, stored, self.model), labels


def check_search(queries: Queries, k: Any, dim: int, metric: str) -> tuple[Float32Array, int]:
    """Return queries as an index takes them, (m, dim), of length one for cosine, and k; errors as of a search."""
    rows, k = as_queries(queries, dim, metric), whole_number("k", k)
    if k < 1:
        raise ArrayError(f"k is {k}, wanted at least 1")
    return rows, k


def as_queries(queries: Queries, dim: int, metric: str) -> Float32Array:
    """Return queries as an index takes them, (m, dim) float32; ``dim`` is what is searched.

    Lists are numbers without a dtype, which float32 rounds; an array keeps all it has, or is refused.

    Raises:
        ArrayError: see :meth:`GalleryIndex.search`.
    """
    array: NDArray[Any]
    if isinstance(queries, list | tuple):
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(queries, np.float32) if len(queries) else np.empty((0, dim), np.float32)
        except (TypeError, ValueError) as error:
            raise ArrayError(f"queries cannot be made an array: {error}") from error
    else:
        array = np.asanyarray(queries)
    if array.dtype not in (np.float32, np.float16) or array.ndim not in (1, 2):
        raise ArrayError(_unfit(array, dim))
    rows = np.ascontiguousarray(np.atleast_2d(array), np.float32)
    if rows.shape[1] != dim:
        raise ArrayError(_unfit(array, dim))
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ArrayError(f"queries: row {int(np.argmin(finite))} holds NaN or infinity")
    return _directions(rows) if metric == "cosine" else rows


def results_of(queries: Queries, distances: Float32Array, ids: NDArray[Any]) -> tuple[Float32Array, NDArray[Any]]:
    """Return (m, k) results as they are, or (k,) if one query was asked for and no list of them."""
    return (distances[0], ids[0]) if np.ndim(queries) == 1 and len(queries) else (distances, ids)


def _unfit(array: NDArray[Any], dim: int) -> str:
    wanted = f"float32 (m, {dim}), or one of ({dim},)"
    return f"queries is {array.dtype} {array.shape}, wanted {wanted}; float16 and lists will do"


def whole_number(name: str, value: Any) -> int:
    """Return an integer of Python or NumPy as one of Python's.

    Raises:
        ArrayError: it is none.
    """
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


def check_query_model(model: NamedModel | None, rows: ModelId | None) -> None:
    """Raise a ModelMismatchError if queries are known to be of another model than what they search."""
    way_out = "embed queries with the gallery's model, or search a gallery of theirs"
    check_same_model(("queries", model_id(model)), ("the gallery", rows), way_out)


def load_index(dest: str | Path, *, model: NamedModel | None = None) -> GalleryIndex:
    """Open the index of a gallery that :func:`fct_infer.upgrade_gallery` published.

    All files are of one gallery, even if ``dest`` is replaced meanwhile: the manifest says what they hold, and where it
    changed while they were read, they are read again.

    Args:
        dest: the published folder.
        model: whose vectors it is to be searched with; compared with the manifest's, unless one is not known.

    Raises:
        ArtifactError: it is not such a folder, has no index, or a file is damaged: the manifest, one of another size
            than it says, or the index, its figures or the ids.
        ModelMismatchError: it holds another model's vectors.
        MissingExtraError: FAISS is not installed.
    """
    dest = location(dest)
    index = read_published(dest, _open_once)
    index.check_model(model)
    return index


def index_infos(
    builder: IndexBuilder, files: Mapping[str, DigestedFile], queries: Float32Array, recall: float
) -> dict[str, Any]:
    """Return what autofaiss would say of an index, under its keys.

    Args:
        builder: the index; searched for 10 neighbours of one query at a time.
        files: it was saved to, the one by which it is opened first.
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
    size = sum(file.size for file in files.values())
    return {
        "index_key": builder.factory,
        "index_param": f"nprobe={builder.nprobe}" if ivf_of(builder.index) is not None else "",
        "index_path": next(iter(files)),
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
    if index_name(manifest) is None:
        raise ArtifactError(f"{dest}: has no index.faiss; it was upgraded with --index none")
    for name, damage in manifest.damaged_sizes(dest).items():
        raise ArtifactError(f"{dest / name}: is damaged: {damage}")
    if INFOS_NAME in manifest.files and sha256_of_file(dest / INFOS_NAME) != manifest.files[INFOS_NAME].sha256:
        raise ArtifactError(f"{dest / INFOS_NAME}: is damaged: its SHA-256 is not the one in manifest.json")
    return GalleryIndex(open_faiss(dest, manifest), manifest.metric, load_ids(dest, manifest), manifest.model)


def index_name(manifest: GalleryManifest) -> str | None:
    """Return the file by which a published index is opened; None if the gallery has none."""
    return next((name for name in (INDEX_NAME, SHARDED_NAME) if name in manifest.files), None)


def open_faiss(dest: Path, manifest: GalleryManifest, *, was_digested: bool = False) -> Any:
    """Open the index of a published gallery, checked; the lists of one that memory cannot hold stay on the disk.

    Args:
        dest: the folder.
        manifest: its manifest.
        was_digested: whether its files have just been compared with their digests.

    Raises:
        ArtifactError: a file is damaged, or the index is not the one the manifest speaks of.
    """
    name = index_name(manifest)
    assert name is not None, "a gallery without an index"
    path, file = dest / name, manifest.files[name]
    if name == SHARDED_NAME:
        index = load_sharded(dest, manifest)
    elif file.size > MEMORY_SHARE * usable_memory() and not isinstance(path, RemotePath):
        index = open_on_disk(path, file.sha256)
    else:
        index = load_index_file(path, None if was_digested else file.sha256)
    check_index(path, index, manifest)
    return index


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
