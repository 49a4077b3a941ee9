"""What this process has open."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def open_below(folder: Path) -> list[Path]:
    """Return the files below a folder that are open."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing
            found.append(each.readlink())
    return sorted(path for path in found if path.is_relative_to(folder))
