"""Files that are whole or not there: temporary name, checksum, fsync, rename, fsync of the directory."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fct_infer.errors import OutputError, ResourceError
from fct_infer.storage.claims import Claim
from fct_infer.storage.filesystem import FileSystem, ReadFile, bytes_view, current_filesystem
from fct_infer.storage.objects import ObjectWriter, remove_below, remove_objects
from fct_infer.storage.strict_json import PIECE_BYTES, json_pieces
from fct_infer.storage.urls import RemotePath, location

_CHUNK = 1 << 22


@dataclass(frozen=True)
class DigestedFile:
    """What was written: size in bytes and SHA-256 as hex."""

    size: int
    sha256: str


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the machine into a ResourceError that names the file."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise ResourceError(f"{path}: cannot be written: {reason}") from error


def _write_all(fs: FileSystem, fd: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = fs.write(fd, view[done:])
        if count == 0:
            raise OSError(errno.EIO, "the system wrote nothing")
        done += count


_temporary_suffix = ".tmp"


def write_under(name: str | None) -> None:
    """Write files under ``<path>.<name>.tmp`` from now on, in this process; None: under ``<path>.tmp``.

    Of two processes that may write the same file at the same time each needs a name of its own.
    """
    global _temporary_suffix  # noqa: PLW0603 - a process is one writer
    _temporary_suffix = ".tmp" if name is None else f".{name}.tmp"


class _LocalOutput:
    """A file under a temporary name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + _temporary_suffix)
        self._fs = current_filesystem()
        with machine_errors(path):
            self._fs.mkdir(path.parent)
            self._fd = self._fs.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(self, view: memoryview) -> None:
        with machine_errors(self._path):
            _write_all(self._fs, self._fd, view)

    def commit(self) -> None:
        with machine_errors(self._path):
            self._fs.fsync(self._fd)
            self._close()
            self._fs.rename(self._temporary, self._path)
            self._fs.fsync_directory(self._path.parent)

    def abort(self) -> None:
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._fs.unlink(self._temporary)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1  # first: a close that fails must not be repeated on a reused number
        if fd >= 0:
            self._fs.close(fd)


class DurableWriter:
    """Write a file under ``<path>.tmp`` and give it its name only when it is whole and on the disk.

    An object behind a URL is sent in pieces and appears when it is whole. Use as a context manager: an exception inside
    the block removes the temporary file.

    Raises:
        ResourceError: disk full, a server that is gone, or any other I/O error, naming the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = location(path)
        self._hash = hashlib.sha256()
        self._size = 0
        self.result: DigestedFile | None = None
        self._output: _LocalOutput | ObjectWriter
        self._output = ObjectWriter(self.path) if isinstance(self.path, RemotePath) else _LocalOutput(self.path)
        self._unfinished = True

    def write(self, data: Any) -> int:
        """Append a C-contiguous buffer whole; the GIL is released while hashing and writing."""
        view = bytes_view(data)
        self._hash.update(view)
        self._output.write(view)
        self._size += len(view)
        return len(view)

    def commit(self) -> DigestedFile:
        """Make the file durable under its name and return its digest."""
        self._output.commit()
        self._unfinished = False
        self.result = DigestedFile(self._size, self._hash.hexdigest())
        return self.result

    def abort(self) -> None:
        """Drop what was written; after a commit this does nothing.

        Never raises: it runs while another error is on its way.
        """
        if self._unfinished:
            self._unfinished = False
            self._output.abort()

    def __enter__(self) -> DurableWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.result is None:
            self.commit()
        else:
            self.abort()


def write_bytes(path: str | Path, data: Any) -> DigestedFile:
    """Write ``data`` (any C-contiguous buffer) as one whole, durable file."""
    return write_pieces(path, [data])


def write_pieces(path: str | Path, pieces: Iterable[Any]) -> DigestedFile:
    """Write buffers one after the other as one whole, durable file; small ones at once."""
    writer = DurableWriter(path)
    with writer:
        for piece in _gathered(pieces):
            writer.write(piece)
        return writer.commit()


def _gathered(pieces: Iterable[Any]) -> Iterator[Any]:
    waiting = b""
    for piece in pieces:
        if not waiting and len(piece) >= PIECE_BYTES:
            yield piece
            continue
        waiting += bytes(piece)
        if len(waiting) >= PIECE_BYTES:
            yield waiting
            waiting = b""
    if waiting:
        yield waiting


def write_json(path: str | Path, value: Any) -> DigestedFile:
    """Write strict JSON (no NaN), indented, keys in the order given, as one whole, durable file.

    See :func:`~fct_infer.storage.strict_json.json_pieces`: mappings that are no dicts are never held whole.
    """
    return write_pieces(path, chain(json_pieces(value, ensure_ascii=False), [b"\n"]))


def append_line(path: str | Path, line: str | Iterable[bytes]) -> int:
    """Append one line to a journal and make it durable before returning; on an error no part of it stays behind.

    Args:
        path: of the journal, made if it is not there.
        line: its text, or the pieces of it; without the end of the line.

    Returns:
        The offset at which the line begins.
    """
    target, fs = Path(path), current_filesystem()
    with machine_errors(target):
        is_new = not target.exists()
        fd = fs.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            size = os.fstat(fd).st_size
            try:
                for piece in _gathered(chain([line.encode()] if isinstance(line, str) else line, [b"\n"])):
                    _write_all(fs, fd, memoryview(piece))
                fs.fsync(fd)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(fd, size)
                raise
        finally:
            fs.close(fd)
        if is_new:
            fs.fsync_directory(target.parent)
    return size


def truncate_file(path: str | Path, size: int) -> None:
    """Cut a file to ``size`` bytes, durably."""
    target, fs = Path(path), current_filesystem()
    with machine_errors(target):
        fd = fs.open(target, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
            fs.fsync(fd)
        finally:
            fs.close(fd)


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file as hex, reading it in pieces."""
    digest = hashlib.sha256()
    with ReadFile(path) as file:
        size, offset = file.size, 0
        buffer = bytearray(min(size, _CHUNK))
        while offset < size:
            piece = memoryview(buffer)[: min(_CHUNK, size - offset)]
            file.read_into(piece, offset)
            digest.update(piece)
            offset += len(piece)
    return digest.hexdigest()


def copy_file(source: str | Path, target: str | Path) -> DigestedFile:
    """Copy a file durably, returning the digest of what was read and written."""
    writer = DurableWriter(target)
    with writer, ReadFile(source) as file:
        size, offset = file.size, 0
        while offset < size:
            piece = file.read(min(_CHUNK, size - offset), offset)
            writer.write(piece)
            offset += len(piece)
        return writer.commit()


def remove_tree(path: str | Path) -> None:
    """Remove a file, or a directory and all in it; a missing one is fine."""
    target = location(path)
    if isinstance(target, RemotePath):
        remove_objects([target])
        remove_below(target)
        return
    with machine_errors(target):
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target, onerror=_ignore_missing)
        else:
            with suppress(FileNotFoundError):
                current_filesystem().unlink(target)


def _ignore_missing(_function: object, _path: str, info: Any) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


class FileLock:
    """An advisory lock that the kernel drops when the process dies, so a crash never leaves it behind.

    Where the file system has no locks (``flock`` on some NFS and FUSE mounts) a :class:`Claim` takes its place.

    Raises:
        OutputError: another process, or this one, holds it.
        ResourceError: the file cannot be created or locked.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.path, fs = Path(path), current_filesystem()
        self._claim: Claim | None = None
        with machine_errors(self.path):
            fs.mkdir(self.path.parent)
            self._fd = fs.open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our open and our lock: then we hold nothing.
            if not os.path.samestat(os.fstat(self._fd), self.path.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError) as error:
            os.close(self._fd)
            raise OutputError(f"{what} is in use by another process") from error
        except OSError as error:
            os.close(self._fd)
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise ResourceError(f"{self.path}: cannot be locked: {error.strerror}") from error
            self._fd = -1
            self._claim = Claim(self.path, what)

    def release(self) -> None:
        """Unlock and remove the lock file, if it is still ours; a second call does nothing."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None
        if self._fd >= 0:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), self.path.stat()):
                    current_filesystem().unlink(self.path)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
