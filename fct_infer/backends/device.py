"""Names of devices, the same for every backend."""

from __future__ import annotations

import re

from fct_infer.errors import UsageError


def cuda_index(device: str) -> int | None:
    """Return N of ``cuda:N``, 0 of ``cuda``, None of ``cpu``.

    Raises:
        UsageError: anything else.
    """
    if device == "cpu":
        return None
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if not found:
        raise UsageError(f"device {device!r} does not exist; there is auto, cpu, cuda, cuda:0, cuda:1 ...")
    return int(found[1] or 0)
