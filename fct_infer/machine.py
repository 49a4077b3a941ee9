"""What this process may use of the machine: its CPUs, by affinity and by the quotas of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


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
