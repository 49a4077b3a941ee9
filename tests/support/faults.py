"""File systems that fail on purpose; put one in place with ``fct_infer.storage.use_filesystem``."""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from pathlib import Path
from threading import Lock

from fct_infer.storage import FileSystem

# Calls that change what is on the disk, or make a change durable.
CHANGES = ("write", "fsync", "rename", "exchange", "unlink", "mkdir")


class FaultyFileSystem(FileSystem):
    """Counts every call by name; subclasses decide what goes wrong before it (``before``) and after it (``after``)."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def before(self, call: str, path: str | Path | None) -> None:
        """Raise here to fail the call. ``path`` is what it acts on, where it takes a path."""

    def after(self, call: str, path: str | Path | None) -> None:
        """The call has been done."""

    def _do(self, call: str, path: str | Path | None, *arguments):
        self.before(call, path)
        result = getattr(super(), call)(*arguments)
        self.calls[call] += 1
        self.after(call, path)
        return result

    def open(self, path, flags, mode=0o644):
        return self._do("open", path, path, flags, mode)

    def close(self, fd):
        return self._do("close", None, fd)

    def write(self, fd, data):
        return self._do("write", None, fd, data)

    def pread_into(self, fd, buffer, offset):
        return self._do("pread_into", None, fd, buffer, offset)

    def fsync(self, fd):
        return self._do("fsync", None, fd)

    def rename(self, source, target):
        return self._do("rename", target, source, target)

    def exchange(self, first, second):
        return self._do("exchange", second, first, second)

    def unlink(self, path):
        return self._do("unlink", path, path)

    def mkdir(self, path):
        return self._do("mkdir", path, path)


class FullDisk(FaultyFileSystem):
    """A disk with room for ``after_bytes`` more: the write that crosses the limit is short, the next one fails."""

    def __init__(self, after_bytes: int) -> None:
        super().__init__()
        self.room, self._lock = after_bytes, Lock()

    def write(self, fd, data):
        with self._lock:
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = super().write(fd, data[: self.room])
            self.room -= written
            return written


class FailNth(FaultyFileSystem):
    """The ``n``-th call (from 0) of one kind fails with ``number``; those before and after work."""

    def __init__(self, call: str, n: int = 0, number: int = errno.EIO) -> None:
        super().__init__()
        self.call, self.left, self.number = call, n, number

    def before(self, call, path):
        if call == self.call:
            self.left -= 1
            if self.left == -1:
                raise OSError(self.number, os.strerror(self.number))


class ShortTransfers(FaultyFileSystem):
    """Every read and write moves at most ``limit`` bytes, as the kernel is free to do."""

    def __init__(self, limit: int = 7) -> None:
        super().__init__()
        self.limit = limit

    def write(self, fd, data):
        return super().write(fd, data[: self.limit])

    def pread_into(self, fd, buffer, offset):
        return super().pread_into(fd, buffer[: self.limit], offset)


class ShrinkingFile(FaultyFileSystem):
    """Reads work ``n`` times, then find the end of the file: it was truncated under our feet."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def pread_into(self, fd, buffer, offset):
        self.left -= 1
        return 0 if self.left < 0 else super().pread_into(fd, buffer, offset)


class KillAt(FaultyFileSystem):
    """The process dies by SIGKILL at the ``n``-th moment (from 0) around calls that change the disk.

    Each call has two moments: before it is done, and after.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def before(self, call, path):
        self._moment(call)

    def after(self, call, path):
        self._moment(call)

    def _moment(self, call):
        if call in CHANGES:
            self.left -= 1
            if self.left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
