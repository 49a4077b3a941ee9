"""How calls are timed on a device, and on the CPU for a rehearsal: in turn, over inputs that no cache still holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

Call = Callable[[], object]

REHEARSAL_CACHE_BYTES = 1 << 20
MOST_SETS = 64


@dataclass(frozen=True)
class RowSet:
    """Float32 rows on the device: two inputs and room for the result."""

    old: Tensor
    side: Tensor
    out: Tensor


class DeviceClock:
    """Times on one device; enqueued work is waited for. Makes a device PyTorch's current one, with a stream of its own.

    Args:
        device: ``cuda:N`` or ``cpu``.
    """

    def __init__(self, device: str) -> None:
        self.device, self.on_device = torch.device(device), device != "cpu"
        if self.on_device:
            torch.cuda.set_device(self.device)
            # Not the default stream: ONNX Runtime takes that for none and computes on another one, which no event sees.
            torch.cuda.set_stream(torch.cuda.Stream(self.device))

    @property
    def cache_bytes(self) -> int:
        """Size of the device's last cache."""
        if not self.on_device:
            return REHEARSAL_CACHE_BYTES
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    def synchronize(self) -> None:
        """Wait for all work of the device."""
        if self.on_device:
            torch.cuda.synchronize(self.device)

    def seconds(self, calls: Sequence[Call], repeats: int) -> float:
        """Return the seconds of one call, over ``repeats`` of them, taken from ``calls`` in turn."""
        self.synchronize()
        if not self.on_device:
            start = time.perf_counter()
            for number in range(repeats):
                calls[number % len(calls)]()
            return (time.perf_counter() - start) / repeats
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for number in range(repeats):
            calls[number % len(calls)]()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / repeats

    def alternate(
        self, contestants: Mapping[str, Sequence[Call]], rounds: int, min_seconds: float
    ) -> dict[str, list[float]]:
        """Time all contestants once a round, in turn; return the seconds of one call by round."""
        repeats = {name: self._repeats(calls, min_seconds) for name, calls in contestants.items()}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, calls in contestants.items():
                seconds[name].append(self.seconds(calls, repeats[name]))
        return seconds

    def _repeats(self, calls: Sequence[Call], min_seconds: float) -> int:
        self.seconds(calls, len(calls))  # warm-up: every input once
        return max(1, math.ceil(min_seconds / max(self.seconds(calls, 2), 1e-9)))

    def row_sets(self, rows: int, old_dim: int, side_dim: int, new_dim: int) -> list[RowSet]:
        """Return random inputs, so many that after all of them the cache holds nothing of the first."""
        generator = torch.Generator(self.device).manual_seed(rows)
        bytes_per_set = 4 * rows * (old_dim + side_dim)
        count = min(MOST_SETS, 1 + math.ceil(2 * self.cache_bytes / bytes_per_set))

        def random(width: int) -> Tensor:
            return torch.randn(rows, width, generator=generator, device=self.device)

        return [
            RowSet(random(old_dim), random(side_dim), torch.empty(rows, new_dim, device=self.device))
            for _ in range(count)
        ]


def timing(seconds: list[float], rows: int) -> dict[str, float]:
    """Return median, spread (range over median) and speed, as results files hold them."""
    middle = median(seconds)
    return {
        "seconds": middle,
        "spread": (max(seconds) - min(seconds)) / middle,
        "rows_per_second": rows / middle,
    }
