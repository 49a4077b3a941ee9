"""Whether a file is still the one an unfinished upgrade read: cheap, however large the file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fct_infer.storage import ReadFile

PIECE_BYTES = 1 << 16
PIECES = 18  # first, last, and 16 evenly spaced between them


def fingerprint(path: str | Path) -> dict[str, Any]:
    """Return ``size``, ``mtime_ns`` and ``sha256`` over at most 18 evenly spaced pieces of 64 KiB, ends included.

    Of an object behind a URL ``etag`` and ``modified``, as the server tells them, stand for the time.

    A file of up to 1.1 MiB is hashed whole. An edit that keeps size and modification time and misses every piece
    goes unnoticed: this tells runs apart, it does not prove integrity.

    Raises:
        GalleryError: the file cannot be read.
    """
    with ReadFile(path) as file:
        identity = file.identity()
        digest = hashlib.sha256()
        for piece in file.read_all(_pieces(identity["size"])):
            digest.update(piece)
    return identity | {"sha256": digest.hexdigest()}


def _pieces(size: int) -> list[tuple[int, int]]:
    """Return (offset, length) of the pieces that are hashed."""
    if size <= PIECES * PIECE_BYTES:
        return [(0, size)]
    last = size - PIECE_BYTES
    return [(last * piece // (PIECES - 1), PIECE_BYTES) for piece in range(PIECES)]
