"""The flat files of nearest-neighbour benchmarks: the fbin kind (one header) and the fvecs kind (a width per row)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fct_infer.connectors.options import SourceOptions, check_shape
from fct_infer.connectors.raw_rows import RawRows, RawSource
from fct_infer.errors import GalleryError
from fct_infer.storage import ReadFile

BIN_DTYPES = {".fbin": "<f4", ".f16bin": "<f2", ".u8bin": "u1", ".i8bin": "i1", ".ibin": "<i4"}
VECS_DTYPES = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4"}


def open_bin(path: Path, options: SourceOptions) -> RawSource:
    """Open a file of rows behind one header: rows and dim as two uint32, or as two uint64; the file's size tells which.

    Raises:
        GalleryError: neither fits the size.
    """
    dtype = np.dtype(BIN_DTYPES[path.suffix.lower()])
    claims = []
    with ReadFile(path) as file:
        size = file.size
        for width in (4, 8):
            if size >= 2 * width:
                header = file.read(2 * width)
                rows, dim = (int.from_bytes(header[at : at + width], "little") for at in (0, width))
                if size == 2 * width + rows * dim * dtype.itemsize:
                    check_shape(rows, dim, str(path))
                    return RawSource(RawRows(path, 2 * width, rows, dim, dtype), allow_cast=options.allow_cast)
                wanted = 2 * width + rows * dim * dtype.itemsize
                claims.append(f"{rows:,} x {dim:,} by a header of {2 * width} bytes would take {wanted:,}")
    raise GalleryError(f"{path}: has {size:,} bytes, {'; '.join(claims) or 'less than a header'}; was it truncated?")


def open_vecs(path: Path, options: SourceOptions) -> RawSource:
    """Open a file whose rows each begin with their width as int32; every row must have that of the first.

    Raises:
        GalleryError: the first width is impossible, or the file does not end with a row.
    """
    dtype = np.dtype(VECS_DTYPES[path.suffix.lower()])
    with ReadFile(path) as file:
        size = file.size
        if size < 4:
            raise GalleryError(f"{path}: is empty or ends within its first row; it has {size} bytes")
        dim = int.from_bytes(file.read(4), "little", signed=True)
    if dim < 1:
        raise GalleryError(f"{path}, row 0: is said to be {dim} wide")
    stride = 4 + dim * dtype.itemsize
    check_shape(1, dim, str(path))
    rows, rest = divmod(size, stride)
    if rest:
        raise GalleryError(f"{path}, row {rows}: has {rest} bytes of {stride}; was it truncated, or do widths differ?")
    return RawSource(RawRows(path, 0, rows, dim, dtype, prefixed=True), allow_cast=options.allow_cast)
