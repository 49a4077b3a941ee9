"""Searching a published gallery under its own ids."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, ArtifactError, GalleryError
from fct_infer.index.builder import IndexBuilder, load_index_file
from fct_infer.index.faiss_module import faiss, inner_indexes, ivf_of
from fct_infer.index.text_ids import TextIds
from fct_infer.storage import ReadFile, read_npy_header
from fct_infer.transformation import Float32Array

MAX_MANIFEST_BYTES = 1 << 28
SPEED_QUERIES = 100
SPEED_K = 10


class GalleryIndex:
    """The index of a published gallery.

    Attributes:
        rows, dim: size of the index.
        metric: ``l2``, ``ip`` or ``cosine``.
        index: the FAISS index itself; its ids are the gallery's int64 ids, or row numbers if those are text or absent.
    """

    def __init__(self, index: Any, metric: str, text_ids: TextIds | None = None) -> None:
        self.index, self.metric, self._text_ids = index, metric, text_ids
        self.rows, self.dim = int(index.ntotal), int(index.d)

    def search(self, queries: Float32Array, k: int) -> tuple[Float32Array, NDArray[Any]]:
        """Return the k nearest rows of each query.

        Args:
            queries: (m, dim) float32, embeddings of the new model; normalised here for the cosine metric.
            k: neighbours wanted.

        Returns:
            distances (m, k) float32, as FAISS gives them (squared for l2), and the gallery's own ids (m, k); where
            fewer than k were found, id -1 (or an empty text).

        Raises:
            ArrayError: queries are not finite, C-contiguous float32 (m, dim), or k is less than 1.
            ArtifactError: a file of text ids is damaged.
        """
        if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ArrayError(f"queries is {queries.dtype} {queries.shape}, wanted float32 (m, {self.dim})")
        if not queries.flags.c_contiguous:
            raise ArrayError("queries is not C-contiguous")
        if k < 1:
            raise ArrayError(f"k is {k}, wanted at least 1")
        finite = np.isfinite(queries).all(axis=1)
        if not finite.all():
            raise ArrayError(f"queries: row {int(np.argmin(finite))} holds NaN or infinity")
        if self.metric == "cosine":
            queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        distances, ids = self.index.search(queries, k)
        return distances, ids if self._text_ids is None else self._text_ids[ids]


def load_index(dest: str | Path) -> GalleryIndex:
    """Open the index of a gallery that :func:`fct_infer.upgrade_gallery` published, checking its digest.

    Raises:
        ArtifactError: it is not such a folder, has no index, or the index is damaged.
        MissingExtraError: FAISS is not installed.
    """
    dest = Path(dest)
    manifest = _read_manifest(dest)
    try:
        digests = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
        rows, dim, metric = int(manifest["rows"]), int(manifest["dim"]), str(manifest["metric"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{dest / 'manifest.json'}: is malformed: {type(error).__name__} {error}") from error
    if "index.faiss" not in digests:
        raise ArtifactError(f"{dest}: has no index.faiss; it was upgraded with --index none")
    index = load_index_file(dest / "index.faiss", digests["index.faiss"])
    if (index.ntotal, index.d) != (rows, dim):
        raise ArtifactError(
            f"{dest / 'index.faiss'}: holds {index.ntotal} rows of {index.d}, manifest.json says {rows} of {dim}"
        )
    return GalleryIndex(index, metric, _open_text_ids(dest, digests, rows))


def index_infos(builder: IndexBuilder, path: Path, queries: Float32Array, recall: float) -> dict[str, Any]:
    """Return what autofaiss would say of an index, under its keys.

    Args:
        builder: the index; searched for 10 neighbours of one query at a time.
        path: where it was saved.
        queries: (m, dim) rows of the gallery, as the index takes them.
        recall: its recall@10.

    ``reconstruction error %`` is the mean distance of a row to what the index stores of it, in percent of the mean
    norm; None if the index cannot say.
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
        "nb vectors": builder.rows,
        "vectors dimension": builder.dim,
        "compression ratio": 4.0 * builder.rows * builder.dim / size,
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


def _read_manifest(dest: Path) -> dict[str, Any]:
    path = dest / "manifest.json"
    try:
        with ReadFile(path) as file:
            if file.size > MAX_MANIFEST_BYTES:
                raise ArtifactError(f"{path}: is {file.size} bytes long, at most {MAX_MANIFEST_BYTES} are accepted")
            manifest = json.loads(file.read(file.size))
    except GalleryError as error:
        raise ArtifactError(f"{dest}: is not a published gallery: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "gallery":
        raise ArtifactError(f"{path}: does not describe a published gallery")
    if manifest.get("schema") != 1:
        raise ArtifactError(f"{path}: has schema {manifest.get('schema')!r}; this version reads 1")
    return manifest


def _open_text_ids(dest: Path, digests: dict[str, str], rows: int) -> TextIds | None:
    """Return the gallery's text ids, or None if its ids are numbers, which the index holds itself, or absent."""
    names = sorted(name for name in digests if name.startswith("ids/"))
    if not names:
        return None
    with ReadFile(dest / names[0]) as file:
        if read_npy_header(file).dtype.kind == "i":
            return None
    ids = TextIds({dest / name: digests[name] for name in names})
    if ids.rows != rows:
        raise ArtifactError(f"{dest / 'ids'}: holds {ids.rows} ids, manifest.json says {rows} rows")
    return ids
