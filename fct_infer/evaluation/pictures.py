"""Rows of retrieved images for a report: read one by one from a ``.npy`` file, shown as small PNGs inside the page."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GalleryError
from fct_infer.evaluation.retrieved import RetrievedRow
from fct_infer.storage import ReadFile, read_npy_header

_LARGEST_SIDE = 96  # pixels; larger images are thinned out to no more than that


class ImageFile:
    """An ``.npy`` file of images, (n, h, w, 3) uint8, of which single images are read.

    Raises:
        GalleryError: missing, malformed, truncated, of another dtype or shape, or not of ``rows`` images; names it.
    """

    def __init__(self, path: str | Path, rows: int) -> None:
        self._path = Path(path)
        with ReadFile(self._path) as file:
            header = read_npy_header(file)
        if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[3] != 3 or 0 in header.shape:
            raise GalleryError(f"{path}: is {header.dtype} {header.shape}, wanted uint8 images (n, h, w, 3)")
        if header.shape[0] != rows:
            raise GalleryError(f"{path}: holds {header.shape[0]} images for {rows} embeddings")
        self._shape, self._offset = header.shape[1:], header.data_offset

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """Return one image, (h, w, 3) uint8."""
        pixels = np.empty(self._shape, np.uint8)
        with ReadFile(self._path) as file:
            file.read_into(pixels, self._offset + row * pixels.nbytes)
        return pixels


def retrieved_html(rows: Iterable[RetrievedRow], images: ImageFile, query_images: ImageFile | None = None) -> str:
    """Return the rows as HTML: the query, then what each search found, framed by whether it is relevant."""
    return "".join(_row_html(row, images, query_images) for row in rows)


def _row_html(row: RetrievedRow, images: ImageFile, query_images: ImageFile | None) -> str:
    picture = "" if query_images is None else _image(query_images[row.query], "", "query")
    caption = escape(f"query {row.query}, label {row.label}" + (f", {row.note}" if row.note else ""))
    parts = [f'<div class="query"><figure>{picture}<figcaption>{caption}</figcaption></figure><div>']
    for search, found in row.found.items():
        is_relevant = row.is_relevant[search]
        shown = "".join(
            _image(images[item], "right" if right else "wrong", f"row {item}, {'same' if right else 'other'} label")
            for item, right in zip(found, is_relevant, strict=True)
        )
        heading = escape(f"{search}: {sum(is_relevant)} of {len(found)}")
        parts.append(f'<p class="search">{heading}</p><div class="found">{shown}</div>')
    return "".join(parts) + "</div></div>"


def _image(pixels: NDArray[np.uint8], css_class: str, text: str) -> str:
    step = -(-max(pixels.shape[:2]) // _LARGEST_SIDE)
    data = base64.b64encode(png_bytes(pixels[::step, ::step])).decode()
    return f'<img class="{css_class}" alt="{escape(text)}" title="{escape(text)}" src="data:image/png;base64,{data}">'


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Return (h, w, 3) uint8 as a PNG file: plain scan lines, so that no imaging library is needed."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each line begins with its filter, 0: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
