"""What this process may use of the machine: CPUs and memory, as far as limits and control groups let it."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Of a limit on addresses: what libraries still to be loaded map, stacks and buffers of their threads. FAISS and its
# OpenBLAS crash where they get none (measured: 330 MiB on two cores).
_ADDRESSES, _ADDRESSES_OF_A_THREAD = 256 << 20, 96 << 20
_MEMINFO, _STATM = Path("/proc/meminfo"), Path("/proc/self/statm")


def counted(number: int, name: str) -> str:
    """Return ``1 shard``, ``2,000 shards``."""
    return f"{number:,} {name}" + ("" if number == 1 else "s")


def usable_cpus() -> int:
    """Return how many CPUs threads of this process can keep busy, at least 1; a part of a CPU counts as one.

    A container that may use two of 64 cores sees all 64, but is stopped for most of each period if it uses them.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """Yield the CPUs that each control group around this process allows it."""
    for folder in own_groups("cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        both = _read(folder / "cpu.max") or [*quota, *period]
        if len(both) == 2 and all(each.isdigit() for each in both) and int(both[1]):
            yield int(both[0]) / int(both[1])


def usable_memory() -> int:
    """Return the bytes this process could still get: of the machine, of its control groups, by its ``ulimit -v``."""
    free = [int(line.split()[1]) * 1024 for line in _lines(_MEMINFO) if line.startswith("MemAvailable:")]
    return max(0, min([*free, *_addresses_left(), *_memory_left()], default=0))


def can_load_libraries() -> bool:
    """Whether ``ulimit -v`` leaves what large libraries map while they are loaded."""
    return all(left > 0 for left in _addresses_left())


def _addresses_left() -> Iterator[int]:
    """Yield what a limit on addresses leaves once all libraries are loaded; nothing if there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        taken = int(_read(_STATM)[0]) * resource.getpagesize()
        yield limit - taken - _ADDRESSES - usable_cpus() * _ADDRESSES_OF_A_THREAD


def _memory_left() -> Iterator[int]:
    """Yield what each control group around this process has left; cached files that it would drop count as free."""
    for folder in own_groups("memory"):
        limits = [*_read(folder / "memory.max"), *_read(folder / "memory.high")]
        limits += _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        statistics = dict(line.split() for line in _lines(folder / "memory.stat"))
        droppable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
        for limit in limits:
            if limit.isdigit() and used:
                yield int(limit) - (int(used[0]) - droppable)


def own_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups this process is in, the innermost first, of version 2 or of version 1.

    In a container its own group may be shown as the root, so a folder that is not there is left out.
    """
    for line in _lines(_OWN_GROUPS):
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            root = _CGROUPS if number == "0" else _CGROUPS / controller
            group = root / path.strip("/")
            for folder in (group, *group.parents):
                if folder.is_dir():
                    yield folder
                if folder == root:
                    break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _read(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def size_text(count: float) -> str:
    """Return a byte count for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
