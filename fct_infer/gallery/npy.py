"""The ``.npy`` format, strictly and without NumPy's loader: no pickles, no maps, nothing unbounded."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any

import numpy as np

from fct_infer.errors import GalleryError
from fct_infer.storage import ReadFile

MAGIC = b"\x93NUMPY"
MAX_HEADER = 64 << 10
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}


@dataclass(frozen=True)
class NpyHeader:
    """Shape and dtype of an array in a file, and the byte at which its data begins."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data_offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes from one row (first axis) to the next."""
        return prod(self.shape[1:]) * self.dtype.itemsize


def read_npy_header(file: ReadFile) -> NpyHeader:
    """Read and check the header of a ``.npy`` file (format 1.0, 2.0, 3.0).

    Raises:
        GalleryError: not a .npy file, Fortran order, object or structured or big-endian dtype, a shape that is
            impossible, or a file size that does not match it.
    """
    path, size = file.path, file.size
    start = file.read(min(size, 12))
    if start[:6] != MAGIC:
        raise GalleryError(f"{path}: is not a .npy file")
    length_bytes = _LENGTH_BYTES.get((start[6], start[7])) if len(start) >= 8 else None
    if length_bytes is None:
        raise GalleryError(f"{path}: .npy version {'.'.join(str(b) for b in start[6:8])} is not 1.0, 2.0 or 3.0")
    length, offset = int.from_bytes(start[8 : 8 + length_bytes], "little"), 8 + length_bytes
    if length > MAX_HEADER or offset + length > size:
        raise GalleryError(f"{path}: its header claims {length} bytes; the file is truncated or damaged")
    header = _parse(path, file.read(length, offset), offset + length)
    expected = header.data_offset + prod(header.shape) * header.dtype.itemsize
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise GalleryError(f"{path}: is {state}: {size} bytes, wanted {expected} for {header.dtype} {header.shape}")
    return header


def _parse(path: object, text: bytes, data_offset: int) -> NpyHeader:
    try:
        fields = ast.literal_eval(text.decode("utf-8"))
        order, shape, descr = fields["fortran_order"], fields["shape"], fields["descr"]
    except (ValueError, SyntaxError, KeyError, TypeError, UnicodeDecodeError, MemoryError, RecursionError) as error:
        raise GalleryError(f"{path}: damaged .npy header") from error
    if not isinstance(descr, str):
        raise GalleryError(f"{path}: holds structured data, wanted a plain array")
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError) as error:
        raise GalleryError(f"{path}: unknown dtype {descr!r}") from error
    if dtype.hasobject:
        raise GalleryError(f"{path}: holds Python objects, wanted numbers; such files are never loaded")
    if dtype.byteorder == ">":
        raise GalleryError(f"{path}: is big-endian ({descr}), wanted little-endian")
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise GalleryError(f"{path}: impossible shape {shape!r}")
    if order is not False and len(shape) > 1:
        raise GalleryError(f"{path}: is in Fortran order; save np.ascontiguousarray(array)")
    return NpyHeader(shape, dtype, data_offset)


def npy_header_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return the header NumPy itself would write for a C-ordered array."""
    stream = BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()
