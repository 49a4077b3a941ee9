"""Building an index with a device where FAISS has no part for it: the core finds lists and codes there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fct_infer import _core
from fct_infer.cuda import device_name, device_numbers
from fct_infer.errors import DeviceMemoryError, ResourceError, UnsupportedError
from fct_infer.index.builder import Ids, IndexBuilder
from fct_infer.index.faiss_module import faiss_errors, faiss_threads, inner_indexes
from fct_infer.index.filling import filler_of, needs_codes_only
from fct_infer.index.warm_start import WarmStart
from fct_infer.transformation import Float32Array


class DeviceIndexBuilder(IndexBuilder):
    """An index whose lists and codes a device finds, by the core's own kernels; the same calls as its base.

    Only those come back from the device, and the index is FAISS's on the CPU throughout: the same as one filled there,
    up to lists that float32 cannot tell apart. It is trained on the CPU. What the core has no kernels for, or no room
    on the device, is filled on the CPU, and ``placement`` says why.

    Args:
        factory, dim, metric, threads: as for the base.
        device: ``cuda:0``; rows of several, ``cuda:0,cuda:1``, are shared out among them.
        device_memory: bytes of a device's memory to use at most; 0: most of what is free.
        why: FAISS does not use the device itself.
    """

    def __init__(
        self, factory: str, dim: int, metric: str, threads: int, device: str, device_memory: int, why: str
    ) -> None:
        super().__init__(factory, dim, metric, threads)
        self._device, self._device_memory, self._why = device_name(device), device_memory, why
        self.placement["reason"] = why
        if not self.needs_training:
            self._move()

    @property
    def takes_device_rows(self) -> bool:  # noqa: D102
        on_device, several = self.placement["add"] != "cpu", len(device_numbers(self._device)) > 1
        return on_device and not several and needs_codes_only(self.index)

    def add_device_rows(self, rows: Any, ids: Ids) -> int:  # noqa: D102
        if not self.takes_device_rows:
            return 0
        assert self._fill is not None
        with faiss_threads(self.threads), faiss_errors(f"index {self.factory!r} cannot be filled", ResourceError):
            self._fill(rows, ids, self.threads)
        self.placement["rows"] = self._device
        return len(ids)

    def train(self, sample: Float32Array, warm: WarmStart | None = None) -> None:  # noqa: D102
        super().train(sample, warm)
        self._move()

    def load_trained(self, path: Path, sha256: str, left_out: int = 0) -> None:  # noqa: D102
        super().load_trained(path, sha256, left_out)
        self._move()

    def close(self) -> None:
        """Give back the device's memory; no row may be added afterwards."""
        self._fill = None

    def _move(self) -> None:
        """Put the trained index's centroids and codebooks on the device, if the core can and there is room."""
        on_device = partial(_core.device_assigner, device=self._device, device_memory=self._device_memory)
        self.placement |= {"add": "cpu", "reason": self._why}
        self.placement.pop("kernels", None)
        try:
            self._fill = filler_of(self.index, on_device=on_device)
        except (UnsupportedError, DeviceMemoryError, ResourceError) as error:
            self.placement["reason"] = f"{self._why}; nor can the core: {error}"
            return
        if self._fill is None:
            kind = type(inner_indexes(self.index)[-1]).__name__
            self.placement["reason"] = f"{self._why}, and the core has no kernels for such an {kind}"
            return
        del self.placement["reason"]
        self.placement |= {"add": self._device, "kernels": f"the core's: {self._why}"}
