"""Building an index with a device: k-means there, lists filled there, the finished index on the CPU as ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fct_infer.errors import ArrayError
from fct_infer.index.builder import Ids, IndexBuilder
from fct_infer.index.device_builder import DeviceIndexBuilder
from fct_infer.index.device_lists import DeviceLists, gpu_part
from fct_infer.index.factory import IndexPlan
from fct_infer.index.faiss_module import condensed, faiss, faiss_threads, inner_indexes, ivf_of, transforms_of
from fct_infer.index.gpu_faiss import (
    DeviceFullError,
    DeviceRefusesError,
    GpuFaiss,
    core_can_use,
    find_gpu,
    is_out_of_memory,
    why_no_gpu,
)
from fct_infer.index.training import train_transforms
from fct_infer.index.warm_start import WarmStart
from fct_infer.storage import DigestedFile
from fct_infer.transformation import Float32Array


def make_builder(
    plan: IndexPlan, threads: int, device: str = "cpu", device_memory: int = 0, *, required: bool = True
) -> IndexBuilder:
    """Return the builder of an index; its ``placement`` says where the work is done, and why not on a device.

    Args:
        plan: which index.
        threads: CPU threads.
        device: ``cpu``, ``cuda``, ``cuda:N`` (of several FAISS takes the first, the core all); ``auto``: a device if
            FAISS can use one. Where FAISS cannot, the core finds lists and codes on the device, if it can.
        device_memory: bytes of the device's memory to use at most; 0: half of what is free, or most of it for the core.
        required: whether a device that neither can use is an error, or the CPU takes its place.

    Raises:
        UnsupportedError: a device is required that neither FAISS nor the core can use.
        UsageError: FAISS refuses the factory string, or there is no such kind of device.
    """
    index = plan.factory, plan.dim, plan.metric, threads
    gpu = find_gpu(device, device_memory, required=required)
    if gpu is not None:
        return GpuIndexBuilder(*index, gpu)
    reason = why_no_gpu(device)
    if reason and core_can_use(device):
        return DeviceIndexBuilder(*index, device, device_memory, reason)
    builder = IndexBuilder(*index)
    if reason:
        builder.placement["reason"] = reason
    return builder


class GpuIndexBuilder(IndexBuilder):
    """An index built with a device, for search on the CPU; the same calls as its base.

    On the device runs what is most of the work: the k-means of coarse and product quantizers, and, for inverted files
    of whole, product-quantized or scalar-quantized rows, finding each row's list and code. Where a graph finds the
    lists, the device takes the nearest of all centroids instead. Vector transforms (OPQ, PCA) stay on the CPU. Any
    other index trains on the device what it can and adds on the CPU.

    From the same seed and sample the index has the recall of one built on the CPU, not its bytes: sums are rounded
    elsewhere. Rows keep the order they are added in, however often the device was emptied. A run resumed from the
    trained index on the same device ends with the same bytes as long as cuBLAS, which computes the distances, repeats
    its own. With several streams, as FAISS has them, cuBLAS promises that only (for one version, on one kind of device)
    where the environment variable CUBLAS_WORKSPACE_CONFIG is ``:4096:8``.

    Args:
        gpu: the device.
        factory, dim, metric, threads: as for the base.
    """

    def __init__(self, factory: str, dim: int, metric: str, threads: int, gpu: GpuFaiss) -> None:
        super().__init__(factory, dim, metric, threads)
        self._gpu: GpuFaiss | None = gpu
        self._lists: DeviceLists | None = None
        if self.needs_training:
            self.placement["train"] = gpu.name
        try:
            gpu_part(self.index)
            self.placement["add"] = gpu.name
        except DeviceRefusesError as reason:
            self.placement["reason"] = str(reason)

    @property
    def takes_device_rows(self) -> bool:  # noqa: D102
        return self.placement["add"] != "cpu" and not transforms_of(self.index)

    @property
    def rows(self) -> int:
        """Rows added so far."""
        return super().rows + (self._lists.rows if self._lists else 0)

    def _add(self, rows: Float32Array, ids: Ids) -> None:
        added = self._add_on_device(rows, ids)
        if added < len(ids):
            super()._add(rows[added:], ids[added:])

    def add_device_rows(self, rows: Any, ids: Ids) -> int:  # noqa: D102
        if not self.takes_device_rows:
            return 0
        name = self.placement["add"]
        added = self._add_on_device(rows, ids)
        if added:
            self.placement["rows"] = name
        return added

    def search(self, queries: Float32Array, k: int) -> tuple[Float32Array, Ids]:  # noqa: D102
        self._collect()
        return super().search(queries, k)

    def save(self, path: Path) -> DigestedFile:  # noqa: D102
        self._collect()
        return super().save(path)

    def load_trained(self, path: Path, sha256: str, left_out: int = 0) -> None:  # noqa: D102
        self._lists = None
        super().load_trained(path, sha256, left_out)

    def close(self) -> None:
        """Drop all that is on the device; rows there that were not saved or searched are lost."""
        self._lists = self._gpu = None

    def _train(self, sample: Float32Array, warm: WarmStart | None) -> None:  # a device needs none
        assert self._gpu is not None
        train_transforms(self.index, sample)
        try:
            with _clustering_on(self._gpu, self.index):
                self.index.train(sample)
                return
        except (DeviceFullError, DeviceRefusesError) as reason:
            self.placement |= {"train": "cpu", "reason": str(reason)}
        except RuntimeError as error:  # of FAISS's own training, which called the device
            if not is_out_of_memory(error):
                raise
            self.placement |= {"train": "cpu", "reason": f"{self._gpu.name} is full: {condensed(error)}"}
        self.index.train(sample)  # goes on where it stopped

    def _add_on_device(self, rows: Any, ids: Ids) -> int:
        """Return how many rows the device took."""
        if self.placement["add"] == "cpu":
            return 0
        try:
            return self._add_to_lists(rows, ids)
        except ArrayError:
            raise  # before anything was done
        except BaseException:
            self.close()
            raise

    def _add_to_lists(self, rows: Any, ids: Ids) -> int:
        assert self._gpu is not None
        try:
            self._lists = self._lists or DeviceLists(self._gpu, self.index)
        except (DeviceFullError, DeviceRefusesError) as reason:
            self._add_on_cpu(str(reason))
            return 0
        with faiss_threads(self.threads):
            for transform in transforms_of(self.index):
                rows = transform.apply(rows)
            added = self._lists.add(rows, ids)
        if added < len(ids):
            self._add_on_cpu(f"{self._gpu.name} is too full for {len(ids) - added:,} rows")
        return added

    def _add_on_cpu(self, reason: str) -> None:
        """From here on; what the device had is in the index by now."""
        self.placement |= {"add": "cpu", "reason": reason}
        self.close()

    def _collect(self) -> None:
        if self._lists:
            self._lists.move_to_host()


@contextmanager
def _clustering_on(gpu: GpuFaiss, index: Any) -> Iterator[None]:
    """Let every k-means of an index's training ask the device for the nearest centroids inside the block."""
    module, parts = faiss(), inner_indexes(index)
    users = [(each.pq, "assign_index", module.IndexFlatL2(each.pq.dsub)) for each in parts if hasattr(each, "pq")]
    ivf = ivf_of(index)
    if ivf is not None:
        # As FAISS chooses itself: a coarse quantizer that cannot serve k-means is replaced by a flat one for l2.
        metric = ivf.quantizer.metric_type if ord(ivf.quantizer_trains_alone) == 0 else module.METRIC_L2
        users.append((ivf, "clustering_index", module.IndexFlat(ivf.d, metric)))
    lent = [gpu.to_device(flat) for _, _, flat in users]
    for (user, place, _), on_device in zip(users, lent, strict=True):
        setattr(user, place, on_device)
    try:
        yield
    finally:
        for (user, place, _), on_device in zip(users, lent, strict=True):
            setattr(user, place, None)
            on_device.this.acquire()  # FAISS's setters make Python forget that it owns what they are given
