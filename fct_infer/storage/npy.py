"""The .npy header, read with suspicion: the only part of the format that has to be parsed.

``numpy.load`` is never used on files from outside: it maps, unpickles and allocates what the header claims. Here a
header is accepted only if it describes a plain C-ordered array that is exactly as long as the file.
"""

from __future__ import annotations

import ast
import io
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fct_infer.errors import GalleryError
from fct_infer.storage.filesystem import ReadFile

MAX_HEADER_BYTES = 1 << 16
_MAGIC = b"\x93NUMPY"
_FIRST_READ = 1024  # one system call for almost every file
# version -> bytes of the header's length field, encoding of the header
_VERSIONS = {(1, 0): (2, "latin1"), (2, 0): (4, "latin1"), (3, 0): (4, "utf-8")}
_DESCR = re.compile(r"[<>=|]?[biufcmMOSUV?][0-9]{0,8}(\[[a-zA-Z0-9/]{1,16}\])?")  # what numpy's dtype.str can be

_literal = lru_cache(maxsize=16)(ast.literal_eval)  # the shards of a gallery mostly share one header


@dataclass(frozen=True)
class NpyHeader:
    """What a .npy file holds: a C-ordered array of ``shape`` and native ``dtype``, from byte ``data_offset`` on."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data_offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_npy_header(file: ReadFile) -> NpyHeader:
    """Read and check the header of an open .npy file (versions 1.0, 2.0 and 3.0); time and memory are bounded.

    Raises:
        GalleryError: not a .npy file; Fortran order; an object, structured or big-endian dtype; a shape that is not the
            file's length. The message names the file.
    """
    size = file.size
    text, data_offset = _header_text(file, size)
    descr, shape = _parse(file, text)
    dtype = _parse_dtype(file, descr)
    wanted = data_offset + math.prod(shape) * dtype.itemsize
    if size != wanted:
        fault = "truncated" if size < wanted else "longer than its header says"
        raise GalleryError(f"{file.path}: is {fault}: {dtype} {shape} takes {wanted} bytes, the file has {size}")
    return NpyHeader(shape, dtype, data_offset)


def npy_header_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return the version 1.0 header of a C-ordered array, byte for byte as ``numpy.save`` writes it."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _header_text(file: ReadFile, size: int) -> tuple[str, int]:
    """Return the header's text and the offset of the data after it."""
    prefix = file.read(min(size, _FIRST_READ))
    if prefix[:6] != _MAGIC:
        raise GalleryError(f"{file.path}: is not a .npy file (it begins with {prefix[:6]!r})")
    version = tuple(prefix[6:8])
    if version not in _VERSIONS:
        raise GalleryError(f"{file.path}: .npy version {'.'.join(map(str, version)) or '?'}, wanted 1.0, 2.0 or 3.0")
    width, encoding = _VERSIONS[version]
    length = int.from_bytes(prefix[8 : 8 + width], "little")
    end = 8 + width + length
    if len(prefix) < 8 + width or end > size:
        raise GalleryError(f"{file.path}: is truncated inside its header")
    if length > MAX_HEADER_BYTES:
        raise GalleryError(f"{file.path}: header of {length} bytes, at most {MAX_HEADER_BYTES} are accepted")
    raw = prefix if end <= len(prefix) else file.read(end)
    try:
        return raw[8 + width : end].decode(encoding), end
    except UnicodeDecodeError as error:
        raise _malformed(file, str(error)) from error


def _parse(file: ReadFile, text: str) -> tuple[Any, tuple[int, ...]]:
    """Return ``descr`` and ``shape`` of a C-ordered array."""
    try:
        header = _literal(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise _malformed(file, f"not a dictionary literal ({type(error).__name__})") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise _malformed(file, "wanted exactly the keys descr, fortran_order and shape")
    descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
    if type(fortran_order) is not bool:
        raise _malformed(file, "fortran_order is neither True nor False")
    if not isinstance(shape, tuple) or any(type(length) is not int for length in shape):
        raise _malformed(file, "shape is not a tuple of integers")
    if any(not 0 <= length < 1 << 48 for length in shape) or len(shape) > 32:
        raise _malformed(file, "shape has a negative or absurd length")
    if fortran_order and sum(length != 1 for length in shape) > 1:  # else both orders are the same bytes
        raise GalleryError(f"{file.path}: is in Fortran order; save numpy.ascontiguousarray(array) instead")
    return descr, shape


def _parse_dtype(file: ReadFile, descr: Any) -> np.dtype[Any]:
    if isinstance(descr, list | tuple):
        raise GalleryError(f"{file.path}: holds a structured array, wanted a plain one")
    if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
        raise _malformed(file, "descr is not a dtype")
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError, OverflowError) as error:
        raise _malformed(file, f"{descr!r} is not a dtype") from error
    if dtype.hasobject:
        raise GalleryError(f"{file.path}: holds Python objects; save numbers or fixed-width strings instead")
    if not dtype.isnative:
        raise GalleryError(f"{file.path}: is big-endian ({descr}); save it in little-endian order")
    if dtype.itemsize == 0:
        raise GalleryError(f"{file.path}: holds entries of zero bytes ({descr})")
    return dtype


def _malformed(file: ReadFile, reason: str) -> GalleryError:
    return GalleryError(f"{file.path}: has a malformed .npy header: {reason}")
