"""Inverted lists that fill on a device, and move to the CPU's index when the device is full and at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fct_infer.errors import ResourceError
from fct_infer.index.builder import Ids
from fct_infer.index.faiss_module import faiss, inner_indexes
from fct_infer.index.gpu_faiss import DeviceFullError, DeviceRefusesError, GpuFaiss

_ID_BYTES = 8
_GROWTH = 2  # a list is reallocated at up to twice its size
_LEAST_ALLOCATION = 512  # of a list's codes, and of its ids
_CALL_ROWS, _CALL_BYTES = 1 << 16, 64 << 20  # at most in one call: FAISS cuts larger ones into pages, and loses count
# Rows wait on the device under their id plus this: memory there starts as zeros, so id 0 marks a place never written.
_SHIFT = 1


class DeviceLists:
    """The lists of an inverted-file index, filled on a device and then merged into the index itself.

    Note [Torn lists]: when FAISS runs out of memory while lists grow, those that grew before have places at their
    ends that hold no row, and the next addition would abort the process. So all lists are moved to the CPU at once,
    and the places that hold no row are known by their id.

    Args:
        gpu: the device.
        index: trained CPU index for which :func:`gpu_part` has an answer; has no rows yet.

    Attributes:
        rows: on the device now.

    Raises:
        DeviceRefusesError: FAISS has no GPU form of it.
        DeviceFullError: it does not fit, even without rows.
    """

    def __init__(self, gpu: GpuFaiss, index: Any) -> None:
        self._gpu, self._host = gpu, gpu_part(index)
        self._around = inner_indexes(index)[:-1]
        self._capacity = self._rows_that_fit()
        with _flat_coarse_quantizer(self._host):
            self._on_device = gpu.to_device(self._host)
        self.rows = 0

    def add(self, rows: Any, ids: Ids) -> int:
        """Add rows (n, dim) float32 under ids (n,); NumPy's, or an array on the device, that can be sliced.

        Returns:
            How many, from the first on, were added: fewer than n when not even the emptied device takes the next ones.
            Then the device holds none, and all are in the index.
        """
        step = max(1, min(_CALL_ROWS, _CALL_BYTES // (4 * self._host.d), self._capacity or _CALL_ROWS))
        for start in range(0, len(ids), step):
            part = rows if len(ids) <= step else rows[start : start + step]
            if not self._add(part, ids[start : start + step]):
                return start
        return len(ids)

    def move_to_host(self, torn: bool = False) -> None:
        """Append the rows to the index's lists, in the order they came, and empty the device.

        Raises:
            ResourceError: other rows came back than were added.
        """
        if self.rows == 0 and not torn:
            return
        module = faiss()
        copy = self._gpu.to_host(self._on_device)  # owns what downcasting only points to
        part = module.downcast_index(copy)
        if torn:  # see Note [Torn lists]
            part.ntotal = part.invlists.compute_ntotal()
            part.remove_ids(module.IDSelectorRange(0, _SHIFT))
        found = part.invlists.compute_ntotal()
        if found != self.rows:
            raise ResourceError(f"{self._gpu.name}: the index there holds {found:,} rows, {self.rows:,} were added")
        self._host.merge_from(part, -_SHIFT)
        for outer in self._around:
            outer.ntotal = self._host.ntotal
        self.rows = 0
        self._gpu.reset(self._on_device)

    def _add(self, rows: Any, ids: Ids) -> bool:
        if self._capacity is not None and self.rows + len(ids) > self._capacity:
            self.move_to_host()
        for _ in range(2):
            try:
                self._gpu.add(self._on_device, rows, ids + _SHIFT)
            except DeviceFullError:
                self.move_to_host(torn=True)
            else:
                self.rows += len(ids)
                return True
        return False

    def _rows_that_fit(self) -> int | None:
        """Return how many rows the device surely has room for; None if that is not known."""
        room = self._gpu.room()
        if room is None:
            return None
        fixed = self._host.nlist * (2 * _LEAST_ALLOCATION + 2 * 4 * self._host.d)  # centroids, once more as they come
        rows = (room - fixed) // (_GROWTH * (int(self._host.code_size) + _ID_BYTES))
        if rows < 1:
            raise DeviceFullError(f"{self._gpu.name} has {room:,} bytes for an index that takes {fixed:,} without rows")
        return int(rows)


def gpu_part(index: Any) -> Any:
    """Return the inverted-file index inside a CPU index whose lists may be filled elsewhere and merged in.

    Only vector transforms may be around it: what else wraps an index (id maps, refinement) keeps data of each row.

    Raises:
        DeviceRefusesError: there is none; says why.
    """
    module = faiss()
    *outer, inner = inner_indexes(index)
    wrappers = [type(each).__name__ for each in outer if not isinstance(each, module.IndexPreTransform)]
    if not isinstance(inner, module.IndexIVF):
        raise DeviceRefusesError(f"{type(inner).__name__} has no inverted lists")
    if wrappers:
        raise DeviceRefusesError(f"{wrappers[0]} keeps data of each row beside the inverted lists")
    # These and no other: what derives from them stores more than they do.
    if type(inner) not in (module.IndexIVFFlat, module.IndexIVFPQ, module.IndexIVFScalarQuantizer):
        raise DeviceRefusesError(f"{type(inner).__name__} has no GPU form")
    if _flat_centroids(inner) is None:
        raise DeviceRefusesError(f"{type(module.downcast_index(inner.quantizer)).__name__} has no GPU form")
    return inner


def _flat_centroids(ivf: Any) -> Any | None:
    """Return the coarse centroids as a flat index, out of a graph over them if need be; None if they are neither."""
    module = faiss()
    coarse = module.downcast_index(ivf.quantizer)
    if isinstance(coarse, module.IndexHNSWFlat):
        coarse = module.downcast_index(coarse.storage)
    return coarse if isinstance(coarse, module.IndexFlat) else None


@contextmanager
def _flat_coarse_quantizer(ivf: Any) -> Iterator[None]:
    """Let an inverted-file index have its centroids as a flat index inside the block."""
    own = ivf.quantizer
    ivf.quantizer = _flat_centroids(ivf)
    try:
        yield
    finally:
        ivf.quantizer = own
