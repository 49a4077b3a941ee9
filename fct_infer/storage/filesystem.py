"""The system calls the project uses on files, gathered in one replaceable object."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fct_infer.errors import FctError, GalleryError, ResourceError
from fct_infer.storage.remote_file import RemoteFile
from fct_infer.storage.urls import RemotePath, location

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def bytes_view(data: Any) -> memoryview:
    """Return the bytes of a C-contiguous buffer; unlike ``memoryview.cast``, of an empty one too."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


class FileSystem:
    """System calls on files. Tests subclass it to fail, tear or delay any of them."""

    def open(self, path: str | Path, flags: int, mode: int = 0o644) -> int:
        """``os.open``, closed on exec."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def open_below(self, folder: Path, parts: Sequence[str], flags: int) -> int:
        """Open a file below ``folder``, name by name; a link among them is an error, also one made meanwhile."""
        fd = os.open(folder, _FOLDER)
        for place, name in enumerate(parts, 1):
            how = flags if place == len(parts) else _FOLDER
            try:
                inner = os.open(name, how | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
        return fd

    def close(self, fd: int) -> None:
        """``os.close``."""
        os.close(fd)

    def write(self, fd: int, data: memoryview) -> int:
        """``os.write``: may write less than asked, returns the byte count."""
        return os.write(fd, data)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """``os.preadv`` into one buffer: may read less than asked, returns the byte count."""
        return os.preadv(fd, [buffer], offset)

    def fsync(self, fd: int) -> None:
        """``os.fsync``."""
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """``os.rename``: atomic within one file system; replaces a file, or an empty directory."""
        os.rename(source, target)

    def exchange(self, first: Path, second: Path) -> None:
        """Let two paths of one file system change places in one atomic step (Linux ``renameat2``)."""
        code = _libc().renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
        if code != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(second))

    def unlink(self, path: Path) -> None:
        """``os.unlink``."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Create a directory and its missing parents, durably; one that exists already is fine."""
        if not path.is_dir():
            self.mkdir(path.parent)
            path.mkdir(exist_ok=True)
            self.fsync_directory(path.parent)

    def fsync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, _FOLDER)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)


_current = FileSystem()


def current_filesystem() -> FileSystem:
    """Return the file system in use."""
    return _current


@contextmanager
def use_filesystem(filesystem: FileSystem) -> Iterator[None]:
    """Put another file system in place for the duration of a ``with`` block (process-wide, for tests)."""
    global _current  # noqa: PLW0603 - the one seam
    previous, _current = _current, filesystem
    try:
        yield
    finally:
        _current = previous


# What a file holds has nothing to do with these: the same read may succeed later.
_OF_THE_MACHINE = frozenset(
    {
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ECONNRESET,
        errno.ENOTCONN,
        errno.EREMOTEIO,
        errno.ENODEV,
        errno.ENXIO,
    }
)


def read_error(message: str, error: Exception) -> FctError:
    """Return the error of a read that failed: the machine's fault, or what was read is malformed.

    Args:
        message: of the result.
        error: of the system, or of a library that opens files by itself; some pass on the errno, some only its text.
    """
    is_of_the_machine = getattr(error, "errno", None) in _OF_THE_MACHINE or any(
        os.strerror(number) in str(error) for number in _OF_THE_MACHINE
    )
    return ResourceError(message) if is_of_the_machine else GalleryError(message)


class ReadFile:
    """A file opened for reading at any offset, from any thread; or an object behind a URL.

    Args:
        path: the file.
        below: a folder above it, from which no link is followed on the way; ``path`` is relative to it.

    Raises:
        GalleryError: the file cannot be opened, is not a regular file, or ends before the bytes asked for.
        ResourceError: the machine failed: an I/O error, too many open files, a server that is gone.
    """

    def __init__(self, path: str | Path, below: Path | None = None) -> None:
        self.path = location(path) if below is None else below / path
        self._file: _LocalFile | RemoteFile
        if isinstance(self.path, RemotePath):
            self._file = RemoteFile(self.path)
        else:
            self._file = _LocalFile(self.path, Path(path).parts, below)

    def identity(self) -> dict[str, Any]:
        """Return what changes with the content, without reading it: ``size``, ``mtime_ns``, an object's ``etag``."""
        return self._file.identity()

    @property
    def size(self) -> int:
        """Size in bytes now; of an object, when it was opened."""
        return self._file.size

    def read_into(self, buffer: Any, offset: int) -> None:
        """Fill the whole C-contiguous ``buffer`` from ``offset``; releases the GIL while reading."""
        view = bytes_view(buffer)
        done = 0
        while done < len(view):
            try:
                count = self._file.pread_into(view[done:], offset + done)
            except OSError as error:
                raise read_error(
                    f"{self.path}: read failed at byte {offset + done}: {error.strerror}", error
                ) from error
            if count == 0:
                raise GalleryError(
                    f"{self.path}: ends at byte {offset + done}, {len(view) - done} bytes short; was it truncated?"
                )
            done += count

    def read(self, size: int, offset: int = 0) -> bytes:
        """Return exactly ``size`` bytes from ``offset``."""
        data = bytearray(size)
        self.read_into(data, offset)
        return bytes(data)

    def read_all(self, ranges: Sequence[tuple[int, int]]) -> Iterable[bytes]:
        """Return the bytes of several (offset, size); of an object they are asked for at once."""
        if isinstance(self._file, RemoteFile):
            return self._file.read_all(ranges)
        return (self.read(size, offset) for offset, size in ranges)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> ReadFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LocalFile:
    """An open descriptor."""

    def __init__(self, path: Path, parts: Sequence[str], below: Path | None) -> None:
        self._fs = current_filesystem()
        flags = os.O_RDONLY | os.O_NONBLOCK  # opening a named pipe must not wait for a writer
        try:
            self._fd = self._fs.open(path, flags) if below is None else self._fs.open_below(below, parts, flags)
        except OSError as error:
            if below is not None and error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise GalleryError(f"{path}: lies behind a link, which is not followed") from error
            raise read_error(f"{path}: cannot be read: {error.strerror}", error) from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self.close()
            raise GalleryError(f"{path}: is not a regular file")

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def identity(self) -> dict[str, Any]:
        status = os.fstat(self._fd)
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        return self._fs.pread_into(self._fd, buffer, offset)

    def close(self) -> None:
        if self._fd >= 0:
            self._fs.close(self._fd)
            self._fd = -1
