"""A file read through this room by libraries that want a Python file: their reads fail, and are tested, as ours do."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from fct_infer.storage.filesystem import ReadFile


class SeekableFile(io.RawIOBase):
    """A regular file with a position.

    Raises:
        GalleryError, ResourceError: as :class:`ReadFile`.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self._file, self._at = ReadFile(path), 0

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._file.size

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset`` from the beginning, the position or the end; return the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes, less at the end of the file."""
        left = max(0, self._file.size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        data = self._file.read(count, self._at)
        self._at += count
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``, at the end of the file less of it; return the bytes read."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._file.size - self._at))
        self._file.read_into(view[:count], self._at)
        self._at += count
        return count

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()
        super().close()
