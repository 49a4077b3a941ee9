"""What must be known of all ids of a gallery before work begins: how an index can hold them, and which are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.gallery.manifest import IdUse
from fct_infer.gallery.source import Source, SourceReader

MAX_COMPARED = 1 << 24  # ids compared with each other at once
_BLOCK_ROWS = 1 << 18
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing
_SPACE = 32  # below are control characters, which no text has


@dataclass(frozen=True)
class IdFacts:
    """Facts about all ids.

    Attributes:
        use: how an index holds them; see :class:`~fct_infer.gallery.manifest.GalleryManifest`.
        duplicates: rows whose id an earlier row has; of more than 16 million rows estimated, from the ids whose hash is
            a multiple of some number.
        uneven: whether ids of bytes have several lengths, in a source that does not store them all as wide.
        nothing: file, row, and what it has (id -1, or an empty id), if a row has what stands for nothing found.
    """

    use: IdUse
    duplicates: int = 0
    uneven: bool = False
    nothing: str | None = None


def examine_ids(source: Source) -> IdFacts:
    """Read all ids of a source once, in bounded memory.

    Raises:
        GalleryError: a file cannot be read.
    """
    id_dtype = source.schema.id_dtype
    if id_dtype is None:
        return IdFacts("rows")
    is_text = id_dtype.kind in "SU"
    use: IdUse = "text" if is_text else "labels"
    share = -(-source.schema.rows // MAX_COMPARED)
    missing_id = nothing_found(id_dtype)
    hashes, lengths, nothing = [], set[int](), None
    for first, ids in id_blocks(source):
        if ids.dtype.kind == "S" and _has_control_characters(ids):
            use = "binary"
        elif not is_text and not 0 <= int(ids.min()) <= int(ids.max()) <= np.iinfo(np.int64).max:
            use = "mapped"
        is_nothing = ids == missing_id if is_text else ids.astype(id_dtype) == missing_id
        if nothing is None and is_nothing.any():
            what = "an empty id" if is_text else f"id {missing_id}"
            nothing = f"{source.where(first + int(np.argmax(is_nothing)), 'id')} has {what}"
        if id_dtype == "S":
            lengths |= set(np.unique(np.char.str_len(ids)).tolist())
        hashed = _hashes(ids)
        hashes.append(hashed[hashed % np.uint64(share) == 0])
    if use == "binary":  # one of NULs only is told from nothing found by its length
        nothing = None
    return IdFacts(use, _repeated(np.concatenate(hashes)) * share, len(lengths) > 1, nothing)


def nothing_found(dtype: np.dtype[Any]) -> Any:
    """Return what stands for "nothing found" among ids: an empty text, or -1 (for uint64 the largest)."""
    return dtype.type() if dtype.kind in "SU" else np.array(-1).astype(dtype)[()]


def id_blocks(source: Source) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield ids, some at a time, with the number of the first one's row."""
    with SourceReader(source) as reader:
        for part in source.parts():
            for start in range(0, part.rows, _BLOCK_ROWS):
                ids = reader.at(part).read_ids(start, min(start + _BLOCK_ROWS, part.rows))
                yield part.first_row + start, ids


def _has_control_characters(ids: NDArray[Any]) -> bool:
    """Whether any id holds a byte below 32, the NULs that fill it up aside."""
    width = ids.dtype.itemsize
    low = (ids.view(np.uint8).reshape(-1, width) < _SPACE).sum(axis=1)
    return bool((low > width - np.char.str_len(ids)).any())


def _hashes(ids: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a number for each id that is the same for the same id, whatever the width it is stored with."""
    if ids.dtype.kind in "iu":
        return _mixed(ids.astype(np.int64 if ids.dtype.kind == "i" else np.uint64).view(np.uint64))
    units = ids.view(np.uint32 if ids.dtype.kind == "U" else np.uint8).reshape(len(ids), -1)
    total = np.zeros(len(ids), np.uint64)
    for place in range(units.shape[1]):  # what fills an id up is 0 and adds nothing
        factor = np.uint64((2 * place + 1) * _FACTOR % (1 << 64))
        total += _mixed(units[:, place].astype(np.uint64) * factor)
    return _mixed(total)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread each value over all bits, one to one; 0 stays 0."""
    for shift in (32, 29):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(_FACTOR)
    return values ^ (values >> np.uint64(32))


def _repeated(values: NDArray[np.uint64]) -> int:
    values.sort()
    return int((values[1:] == values[:-1]).sum())
