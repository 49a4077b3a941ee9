"""Whether a file is still the one an unfinished upgrade read: cheap, however large the file."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fct_infer.gallery.lazy_mapping import LazyMapping
from fct_infer.storage import ReadFile

PIECE_BYTES = 1 << 16
PIECES = 18  # first, last, and 16 evenly spaced between them
_PACKED = struct.Struct("<qq32s")
_USUAL = ("size", "mtime_ns", "sha256")
_HEX = re.compile("[0-9a-f]{64}")


def packed_fingerprints(found: Iterable[tuple[str, dict[str, Any]]]) -> Mapping[str, dict[str, Any]]:
    """Return the :func:`fingerprint` of each of many files by name; a file takes some two hundred bytes of memory.

    Args:
        found: names and fingerprints; other facts beside them are kept as they are.
    """
    return LazyMapping({name: _pack(facts) for name, facts in found}, _unpack)


def _pack(facts: dict[str, Any]) -> bytes | dict[str, Any]:
    if tuple(facts) != _USUAL or not _HEX.fullmatch(facts["sha256"]):
        return facts
    try:
        return _PACKED.pack(facts["size"], facts["mtime_ns"], bytes.fromhex(facts["sha256"]))
    except struct.error:  # file systems hold times after 2262, whose nanoseconds 64 bits do not
        return facts


def _unpack(_: str, packed: bytes | dict[str, Any]) -> dict[str, Any]:
    if not isinstance(packed, bytes):
        return packed
    size, mtime_ns, digest = _PACKED.unpack(packed)
    return dict(zip(_USUAL, (size, mtime_ns, digest.hex()), strict=True))


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
