"""Building one FAISS index: train, add, save checked, load checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArtifactError, GalleryError, ResourceError, UsageError
from fct_infer.index.factory import make_index
from fct_infer.index.faiss_module import (
    condensed,
    faiss,
    faiss_errors,
    faiss_threads,
    inner_indexes,
    ivf_of,
)
from fct_infer.index.filling import Fill, filler_of
from fct_infer.index.training import train_index
from fct_infer.index.warm_start import WarmStart
from fct_infer.storage import DigestedFile, DurableWriter, ReadFile, sha256_of_file
from fct_infer.transformation import Float32Array

INDEX_NAME = "index.faiss"

_LITTLE_WORK = 1 << 22  # products of numbers: a search of so few takes no longer than threads to meet

Ids: TypeAlias = NDArray[np.int64]


class IndexBuilder:
    """An index that keeps the ids it is given: the index's own where it can, else wrapped in an IDMap.

    It is trained and filled by the core where that has kernels (:mod:`fct_infer.index.training`,
    :mod:`fct_infer.index.filling`), else by FAISS. The same sample and the same blocks of rows, added in the same order
    with the same thread count, give the same file.
    Training may depend on the thread count (PCA does); adding was not seen to. How rows are cut into blocks shows
    in the file of an HNSW graph only.

    Attributes:
        factory, dim, metric: as described by :func:`fct_infer.index.describe_index`.
        threads: for all work, whichever thread calls.
        index: the FAISS index.
        left_out: zero rows that :meth:`add` was given for the cosine metric.
        loaded_rows: rows that the index which :meth:`load_trained` took over held already, those left out included.
        placement: on which device it is trained (``train``) and rows are added (``add``), ``cpu`` or ``cuda:0``, and
            why not on a device (``reason``), where one was thought of; on which device rows lay (``rows``), if any did;
            whose ``kernels`` a device ran, if not FAISS's; what came of a warm start (``lists``).

    Raises:
        UsageError: FAISS refuses the factory string.
    """

    def __init__(self, factory: str, dim: int, metric: str, threads: int) -> None:
        self.factory, self.dim, self.metric, self.threads = factory, dim, metric, threads
        self.index = _with_ids(make_index(factory, dim, metric))
        self.placement = {"train": "cpu", "add": "cpu"}
        self.left_out = self.loaded_rows = 0
        self._fill: Fill | None = None  # of the trained index, once a row was added

    @property
    def needs_training(self) -> bool:
        """Whether :meth:`train` must come before :meth:`add`."""
        return not self.index.is_trained

    @property
    def rows(self) -> int:
        """Rows given so far, those left out included."""
        return int(self.index.ntotal) + self.left_out

    def train(self, sample: Float32Array, warm: WarmStart | None = None) -> None:
        """Train on rows (n, dim) float32, repeatably for one thread count; lists may begin as those of an old index.

        Raises:
            UsageError: the sample is too small for the index.
        """
        _accept_small_samples(self.index)
        try:
            with faiss_threads(self.threads):
                self._train(sample, warm)
        except RuntimeError as error:
            raise UsageError(
                f"index {self.factory!r} cannot be trained on {len(sample)} rows: {condensed(error)}"
            ) from error
        if warm is not None:
            self.placement["lists"] = warm.outcome or "lists were trained from scratch, by FAISS"

    def _train(self, sample: Float32Array, warm: WarmStart | None) -> None:
        train_index(self.index, sample, self.threads, warm)

    def add(self, rows: Float32Array, ids: Ids) -> None:
        """Add rows (n, dim) float32 under their ids (n,) int64; the GIL is released.

        For the cosine metric rows are normalised already, and one that is zero has no direction: it would beat every
        row of negative similarity. It is left out and counted in ``left_out``.

        Raises:
            UsageError: FAISS cannot add to such an index.
            ResourceError: not enough memory.
        """
        if self.metric == "cosine" and not (directed := rows.any(axis=1)).all():
            self.left_out += len(rows) - int(directed.sum())
            rows, ids = rows[directed], ids[directed]
        if len(rows):
            self._add(rows, ids)

    def _add(self, rows: Float32Array, ids: Ids) -> None:
        with faiss_threads(self.threads), faiss_errors(f"index {self.factory!r} cannot be filled", UsageError):
            self._fill = self._fill or filler_of(self.index, self.threads) or self._fill_by_faiss
            self._fill(rows, ids, self.threads)

    def _fill_by_faiss(self, rows: Float32Array, ids: Ids | None, threads: int) -> None:
        self.index.add_with_ids(rows, ids)

    @property
    def takes_device_rows(self) -> bool:
        """Whether :meth:`add_device_rows` takes any: the rows go to the device as they are."""
        return False

    def add_device_rows(self, rows: Any, ids: Ids) -> int:
        """Add rows (n, dim) float32 that lie on the device the index is filled on, under their ids (n,) int64.

        Nothing is copied to the CPU, and the rows have been read when this returns.

        Args:
            rows: an array with ``__dlpack__`` or ``__cuda_array_interface__`` that can be sliced.
            ids: of the rows.

        Returns:
            How many, from the first on, were added. The others, which the device has no room for or the CPU has to do
            something to, are to be passed to :meth:`add`.

        Raises:
            ArrayError: rows have the wrong dtype, layout or shape, or are on another device.
        """
        return 0

    def search(self, queries: Float32Array, k: int) -> tuple[Float32Array, Ids]:
        """Return (distances, ids), each (m, k); id -1 where there are fewer than k rows.

        Raises:
            UsageError: FAISS cannot search such an index.
            ResourceError: not enough memory.
        """
        is_little = len(queries) * self.index.ntotal * self.dim < _LITTLE_WORK
        with (
            faiss_threads(1 if is_little else self.threads),
            faiss_errors(f"index {self.factory!r} cannot be searched", UsageError),
        ):
            distances, ids = self.index.search(queries, k)
        return distances, ids

    @property
    def nprobe(self) -> int | None:
        """Inverted lists visited by a search; None if the index has none. Saved with the index."""
        ivf = ivf_of(self.index)
        return int(ivf.nprobe) if ivf is not None else None

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        ivf_of(self.index).nprobe = value  # type: ignore[union-attr]

    @property
    def nlist(self) -> int:
        """Inverted lists; 0 if the index has none."""
        ivf = ivf_of(self.index)
        return int(ivf.nlist) if ivf is not None else 0

    def save(self, path: Path) -> DigestedFile:
        """Write the index durably and read it back against its digest.

        Raises:
            ResourceError: disk full, I/O error, or the disk returns other bytes than were written.
        """
        return save_index_file(self.index, path)

    def publish(self, folder: Path) -> dict[str, DigestedFile]:
        """Write what a published folder has of the index; return its files by name, the one it is opened by first.

        Raises:
            ResourceError: as of :meth:`save`.
        """
        return {INDEX_NAME: self.save(folder / INDEX_NAME)}

    def load_trained(self, path: Path, sha256: str, left_out: int = 0) -> None:
        """Take over an index of the same factory that :meth:`save` wrote, with the rows it has; see ``left_out``.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        self.index, self._fill = load_index_file(path, sha256), None
        self.left_out = left_out
        self.loaded_rows = int(self.index.ntotal) + left_out
        self.placement["train"] = "an earlier run"

    def close(self) -> None:
        """Give back a device's memory, if any is held; no row may be added afterwards."""


def save_index_file(index: Any, path: str | Path) -> DigestedFile:
    """Write a FAISS index durably and read it back against its digest.

    Raises:
        ResourceError: disk full, I/O error, or the disk returns other bytes than were written.
    """
    module = faiss()
    with DurableWriter(path) as file:
        # Not write_index(path): it can return normally on a full disk.
        module.write_index(index, module.PyCallbackIOWriter(file.write))
        written = file.commit()
    if sha256_of_file(path) != written.sha256:
        raise ResourceError(f"{path}: the disk returned other bytes than were written")
    return written


def load_index_file(path: str | Path, sha256: str | None = None) -> Any:
    """Return the FAISS index in a file.

    With ``sha256`` the file is checked first: FAISS itself accepts most damaged files. Without, it must be trusted.

    Raises:
        ArtifactError: the file is missing, damaged or no index.
    """
    module = faiss()
    if sha256 is not None:
        check_index_file(path, sha256)
    try:
        with ReadFile(path) as file:
            return module.read_index(module.PyCallbackIOReader(_Sequential(file).read))
    except GalleryError as error:
        raise ArtifactError(str(error)) from error
    except RuntimeError as error:
        raise ArtifactError(f"{path}: cannot be read by this FAISS: {condensed(error)}") from error


def check_index_file(path: str | Path, sha256: str) -> None:
    """Raise an ArtifactError if a file is missing, or not the one of this digest."""
    try:
        found = sha256_of_file(path)
    except GalleryError as error:
        raise ArtifactError(str(error)) from error
    if found != sha256:
        raise ArtifactError(f"{path}: is damaged: its SHA-256 is {found}, wanted {sha256}")


class _Sequential:
    """A file read from front to back, as FAISS asks for it; shorter answers mean its end."""

    def __init__(self, file: ReadFile) -> None:
        self._file, self._size, self._offset = file, file.size, 0

    def read(self, count: int) -> bytes:
        data = self._file.read(min(count, self._size - self._offset), self._offset)
        self._offset += len(data)
        return data


def _with_ids(index: Any) -> Any:
    """Return the index itself if ``add_with_ids`` works on it, else wrapped so that it does."""
    module = faiss()
    chain = inner_indexes(index)
    # Pre-transforms hand ids on to what they wrap; refining indexes do not.
    first = next(each for each in chain if not isinstance(each, module.IndexPreTransform))
    if isinstance(first, module.IndexIDMap | module.IndexIDMap2 | module.IndexIVF):
        return index
    wrapped = module.IndexIDMap(index)
    index.this.disown()
    wrapped.own_fields = True
    return wrapped


def _accept_small_samples(index: Any) -> None:
    """Keep FAISS from writing to stderr at each clustering of few rows: measured recall says what came of them."""
    module = faiss()
    parts = inner_indexes(index)
    quantizers = [part.pq for part in parts if hasattr(part, "pq")]
    for part in [*(part for part in parts if isinstance(part, module.IndexIVF)), *quantizers]:
        part.cp.min_points_per_centroid = 1
