"""Lists and codes of rows on a device: against the product of rows and centroids alone, and FAISS's own GPU index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.device_ceilings import allowing_tf32
from benchmarks.device_clock import Call, DeviceClock, timing
from benchmarks.device_summary import OURS, PRODUCT
from benchmarks.opponents import NotMeasuredError
from fct_infer import _core
from fct_infer.device_arrays import FinishedRows
from fct_infer.index.faiss_module import faiss
from fct_infer.index.gpu_faiss import GpuFaiss, why_no_gpu

FROM_HOST, FAISS_ADD = "fct_infer, rows on the host", "FAISS, add"
LATENT_DIM, NOISE = 24, 0.1  # rows lie near a surface of few dimensions, as embeddings do
PARITY_ROWS, LEAST_EQUAL = 4096, 0.999


@dataclass(frozen=True)
class Sizes:
    """An inverted file with product codes, and how many rows are added at once."""

    rows: int
    dim: int
    lists: int
    parts: int


class Assignment:
    """Data of one size, and the contestants on it."""

    def __init__(self, clock: DeviceClock, sizes: Sizes) -> None:
        self.clock, self.sizes = clock, sizes
        rng = np.random.default_rng(1)
        surface = rng.standard_normal((LATENT_DIM, sizes.dim), np.float32)
        self.rows = rng.standard_normal((sizes.rows, LATENT_DIM), np.float32) @ surface
        self.rows += np.float32(NOISE) * rng.standard_normal(self.rows.shape, np.float32)
        self.centroids = self.rows[rng.choice(sizes.rows, sizes.lists)].copy()
        width = sizes.dim // sizes.parts
        # Of a codebook each entry is a part of some row: sizes are right, and time does not depend on more.
        entries = self.rows[rng.choice(sizes.rows, 256)] - self.rows[rng.choice(sizes.rows, 256)]
        self.codebooks = np.ascontiguousarray(entries.reshape(256, sizes.parts, width).transpose(1, 0, 2))
        self.there = torch.from_numpy(self.rows).to(clock.device)
        parts = self.centroids, self.codebooks
        self.assigner = (
            _core.device_assigner(*parts, device=str(clock.device)) if clock.on_device else _core.Assigner(*parts)
        )

    def contestants(self, not_measured: dict[str, None]) -> dict[str, list[Call]]:
        """Return the calls by name; what cannot be measured is named with its reason."""
        centroids = torch.from_numpy(self.centroids).to(self.clock.device).t()
        scores = torch.empty(self.sizes.rows, self.sizes.lists, device=self.clock.device)
        calls: dict[str, list[Call]] = {
            PRODUCT: [lambda: torch.mm(self.there, centroids, out=scores)],
            FROM_HOST: [lambda: self.assigner.assign(self.rows, torch.get_num_threads())],
        }
        if self.clock.on_device:
            calls[OURS] = [lambda: self.assigner.assign_on_device(self.there.data_ptr(), self.sizes.rows)]
        try:
            calls[FAISS_ADD] = [self._faiss_add()]
        except NotMeasuredError as reason:
            not_measured[f"{FAISS_ADD}: {reason}"] = None
        return calls

    def check(self) -> None:
        """Raise NotMeasuredError unless lists and codes are those of the CPU."""
        some = self.rows[:PARITY_ROWS]
        wanted = _core.Assigner(self.centroids, self.codebooks).assign(some, torch.get_num_threads())
        for name, ours, theirs in zip(("lists", "codes"), self.assigner.assign(some, 1), wanted, strict=True):
            share = _equal_share(ours, theirs)
            if not share >= LEAST_EQUAL:
                raise NotMeasuredError(f"{name} are the CPU's for {share:.4f} of the rows, wanted {LEAST_EQUAL}")

    def _faiss_add(self) -> Call:
        if not self.clock.on_device or (missing := why_no_gpu(str(self.clock.device))):
            raise NotMeasuredError(missing if self.clock.on_device else "a rehearsal")
        module, sizes = faiss(), self.sizes
        quantizer = module.IndexFlatL2(sizes.dim)
        quantizer.add(self.centroids)
        index = module.IndexIVFPQ(quantizer, sizes.dim, sizes.lists, sizes.parts, 8)
        module.copy_array_to_vector(self.codebooks.reshape(-1), index.pq.centroids)
        index.is_trained = True
        gpu = GpuFaiss(self.clock.device.index)
        on_device, ids = gpu.to_device(index), np.arange(sizes.rows, dtype=np.int64)
        rows = FinishedRows(self.there.data_ptr(), sizes.rows, sizes.dim)

        def add() -> None:
            gpu.reset(on_device)
            gpu.add(on_device, rows, ids)

        return add


def measure_assignment(
    clock: DeviceClock, all_sizes: Sequence[Sizes], rounds: int, min_seconds: float, not_measured: dict[str, None]
) -> list[dict[str, Any]]:
    """Time lists and codes of each size; tf32 is allowed in the product alone, as the device uses it itself."""
    cases = []
    for sizes in all_sizes:
        assignment = Assignment(clock, sizes)
        assignment.check()
        with allowing_tf32(True):
            seconds = clock.alternate(assignment.contestants(not_measured), rounds, min_seconds)
        cases.append(
            {
                **vars(sizes),
                "runs": assignment.assigner.description or "on the CPU",
                "runtimes": {name: timing(values, sizes.rows) for name, values in seconds.items()},
            }
        )
    return cases


def _equal_share(ours: NDArray[Any] | None, theirs: NDArray[Any] | None) -> float:
    assert ours is not None and theirs is not None
    return float((ours == theirs).mean())
