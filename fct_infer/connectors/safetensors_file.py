"""safetensors: a two-dimensional tensor of vectors, and beside it perhaps side-information and ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.connectors.options import SourceOptions, check_shape, find_columns
from fct_infer.connectors.raw_rows import RawRows, RawSource
from fct_infer.errors import GalleryError
from fct_infer.storage import ReadFile

MAX_HEADER_BYTES = 16 << 20
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
}


def open_safetensors(path: Path, options: SourceOptions) -> RawSource:
    """Open the tensors of a file; read by offset, so that memory does not grow with it.

    Raises:
        GalleryError: the header is malformed or does not fit the file, or tensors differ in rows.
    """
    tensors = _read_header(path)
    vectors = [name for name, tensor in tensors.items() if tensor.dim and tensor.dtype.kind in "fiu"]
    scalars = [
        name for name, tensor in tensors.items() if not tensor.dim and tensor.dtype.kind in "iu" and not tensor.bfloat16
    ]
    unfit = {name: tensor.dtype for name, tensor in tensors.items() if name not in vectors + scalars}
    columns = find_columns(path, vectors, scalars, options, unfit)
    old = tensors[columns.embedding]
    side = None if columns.side is None else tensors[columns.side]
    ids = None if columns.id is None else tensors[columns.id]
    for name in columns.roles.values():
        if tensors[name].rows != old.rows:
            raise GalleryError(f"{path}: {name!r} has {tensors[name].rows} rows, {columns.embedding!r} has {old.rows}")
    if ids is not None:
        ids = RawRows(ids.path, ids.offset, ids.rows, 1, ids.dtype)
    for rows in (old, side):
        if rows is not None:
            check_shape(rows.rows, rows.dim, str(path))
    allow = options.allow_cast
    return RawSource(old, side, ids, allow_cast=allow, columns=columns.roles, other=columns.other)


def _read_header(path: Path) -> dict[str, RawRows]:
    """Return the tensors of one or two dimensions; one of one dimension has ``dim`` 0."""
    with ReadFile(path) as file:
        size = file.size
        length = int.from_bytes(file.read(8), "little") if size >= 8 else size
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise GalleryError(f"{path}: says its header is {length:,} bytes, in a file of {size:,}")
        text = file.read(length, 8)
    try:
        header = json.loads(text)
        found = {name: _tensor(path, 8 + length, size, entry) for name, entry in header.items() if name[:2] != "__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, GalleryError):
            raise
        raise GalleryError(f"{path}: not a valid safetensors header ({error})") from error
    return {name: rows for name, rows in found.items() if rows is not None}


def _tensor(path: Path, data: int, size: int, entry: dict[str, Any]) -> RawRows | None:
    shape, (begin, end), name = entry["shape"], entry["data_offsets"], entry["dtype"]
    if name not in _DTYPES or len(shape) not in (1, 2):
        return None
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError("a shape or offset is no whole number")
    dtype = np.dtype(_DTYPES[name])
    dim = shape[1] if len(shape) == 2 else 1
    if end - begin != shape[0] * dim * dtype.itemsize or data + end > size:
        raise ValueError(f"{name} {shape} does not lie from byte {begin:,} to {end:,}; was the file truncated?")
    return RawRows(path, data + begin, shape[0], dim if len(shape) == 2 else 0, dtype, bfloat16=name == "BF16")
