"""Building one FAISS index: train, add, save checked, load checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArtifactError, ResourceError, UsageError
from fct_infer.index.factory import make_index
from fct_infer.index.faiss_module import condensed, faiss, ivf_of
from fct_infer.storage import DigestedFile, DurableWriter, sha256_of_file
from fct_infer.transformation import Float32Array

Ids = NDArray[np.int64]


class IndexBuilder:
    """An index that keeps the ids it is given: the index's own where it can, else wrapped in an IDMap.

    The same rows added in the same order give the same file. FAISS's thread count belongs to the calling thread, so
    every call sets it.

    Raises:
        UsageError: FAISS refuses the factory string.
    """

    def __init__(self, factory: str, dim: int, metric: str, threads: int) -> None:
        self.factory, self.dim, self.metric, self.threads = factory, dim, metric, threads
        self.index = _with_ids(make_index(factory, dim, metric))

    @property
    def needs_training(self) -> bool:
        """Whether :meth:`train` must come before :meth:`add`."""
        return not self.index.is_trained

    @property
    def rows(self) -> int:
        """Rows added so far."""
        return int(self.index.ntotal)

    def train(self, sample: Float32Array) -> None:
        """Train on rows (n, dim), repeatably for one thread count.

        Raises:
            UsageError: the sample is too small for the index.
        """
        faiss().omp_set_num_threads(self.threads)
        try:
            self.index.train(sample)
        except RuntimeError as error:
            raise UsageError(
                f"index {self.factory!r} cannot be trained on {len(sample)} rows: {condensed(error)}"
            ) from error

    def add(self, rows: Float32Array, ids: Ids) -> None:
        """Add rows (n, dim) under their ids (n,)."""
        faiss().omp_set_num_threads(self.threads)
        self.index.add_with_ids(rows, ids)

    def search(self, queries: Float32Array, k: int) -> tuple[Float32Array, Ids]:
        """Return (distances, ids), each (m, k); id -1 where there are fewer than k rows."""
        faiss().omp_set_num_threads(self.threads)
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
        module, failures = faiss(), list[BaseException]()
        with DurableWriter(path) as file:

            def write(data: bytes) -> int:
                try:
                    return file.write(data)
                except BaseException as error:
                    failures.append(error)
                    raise

            try:
                # Not write_index(path): it can return normally on a full disk.
                module.write_index(self.index, module.PyCallbackIOWriter(write))
            except Exception:
                if failures:
                    raise failures[0] from None
                raise
            written = file.commit()
        if sha256_of_file(path) != written.sha256:
            raise ResourceError(f"{path}: the disk returned other bytes than were written")
        return written

    def load_trained(self, path: Path, sha256: str) -> None:
        """Take over an index that :meth:`save` wrote.

        Raises:
            ArtifactError: the file is damaged.
        """
        self.index = load_index_file(path, sha256)


def load_index_file(path: Path, sha256: str) -> Any:
    """Return the FAISS index in a file whose digest is known: FAISS itself accepts most damaged files.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: is missing")
    found = sha256_of_file(path)
    if found != sha256:
        raise ArtifactError(f"{path}: is damaged: SHA-256 {found[:12]}..., wanted {sha256[:12]}...")
    try:
        return faiss().read_index(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{path}: cannot be read by this FAISS: {condensed(error)}") from error


def _with_ids(index: Any) -> Any:
    module = faiss()
    keeps_ids = isinstance(module.downcast_index(index), module.IndexIDMap | module.IndexIDMap2)
    if keeps_ids or ivf_of(index) is not None:
        return index
    wrapped = module.IndexIDMap(index)
    index.this.disown()
    wrapped.own_fields = True
    return wrapped
