"""Names of devices for the runtimes that use one, the same for every backend."""

from __future__ import annotations

from fct_infer.cuda import device_numbers
from fct_infer.errors import UsageError


def cuda_index(device: str) -> int | None:
    """Return N of ``cuda:N``, 0 of ``cuda``, None of ``cpu``.

    Raises:
        UsageError: anything else.
    """
    devices = device_numbers(device)
    if len(devices) > 1:
        raise UsageError(f"device {device!r}: several devices at once are for the core only")
    return devices[0] if devices else None
