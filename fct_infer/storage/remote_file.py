"""An object behind a URL, read by ranges: ahead of a reader that goes forward, little for one that jumps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

from fct_infer.errors import FctError, GalleryError
from fct_infer.storage.remote_errors import retried
from fct_infer.storage.urls import RemotePath

FIRST_BYTES = 64 << 10  # fetched for a read that does not go on about where the last one ended
SKIPPED_BYTES = 32 << 10  # between two reads that a reader who goes forward may leave out
MOST_BYTES = 8 << 20  # fetched at once, after some reads that do
AHEAD = 2  # pieces of that size on their way while one is read
KEPT_BYTES = 32 << 20  # of pieces already here, for readers that go back: of each open file
_AT_ONCE = 16  # requests of this process


_slots = BoundedSemaphore(_AT_ONCE)


def _begun(call: Callable[[], bytes]) -> Future[bytes]:
    """Begin a request; no thread of an executor, which a process that is to end would wait for."""
    future: Future[bytes] = Future()

    def run() -> None:
        with _slots:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # raised where the result is taken
                    future.set_exception(error)

    Thread(target=run, name="fct-remote", daemon=True).start()
    return future


class RemoteFile:
    """One open object; used from any thread.

    Raises:
        GalleryError: it does not exist, cannot be read by ranges, ends early, or was changed since it was opened.
        ResourceError: the server cannot be reached or refuses access.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path, self._lock = path, Lock()
        try:
            self._info = path.info()
        except FileNotFoundError as error:
            raise GalleryError(f"{path}: cannot be read: {error.strerror}") from error
        if self._info["is_dir"]:
            raise GalleryError(f"{path}: is not a regular file")
        if not isinstance(self._info["size"], int):
            raise GalleryError(f"{path}: the server does not say how long it is; download it first")
        self.size: int = self._info["size"]
        if path.scheme in ("http", "https"):
            self._check_ranges()
        self._pieces: OrderedDict[int, tuple[int, Future[bytes]]] = OrderedDict()  # by first byte: length, content
        self._end, self._next_bytes = -FIRST_BYTES - 1, FIRST_BYTES  # where the furthest piece of a forward run ends

    def identity(self) -> dict[str, Any]:
        """Return size, etag and time of change, those that the server tells."""
        return {name: self._info[name] for name in ("size", "etag", "modified") if self._info[name] is not None}

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Read some bytes, up to the end of a piece; 0 behind the end."""
        if offset >= self.size:
            return 0
        with self._lock:
            first, piece = self._piece(offset, min(len(buffer), self.size - offset))
        try:
            data = piece.result()
        except FctError:
            with self._lock:
                self._pieces.pop(first, None)  # the next reader may be luckier
            raise
        part = data[offset - first : offset - first + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def read_all(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, size) at once."""
        begun = [_begun(partial(self._fetch, *each)) for each in ranges]
        return [each.result() for each in begun]

    def close(self) -> None:
        """Forget what was read; what is on its way is not waited for."""
        with self._lock:
            for _, piece in self._pieces.values():
                piece.cancel()
            self._pieces.clear()

    def _piece(self, offset: int, wanted: int) -> tuple[int, Future[bytes]]:
        """Return the first byte and the content of the piece that holds a byte; see to the next pieces."""
        first = next((at for at, (size, _) in self._pieces.items() if at <= offset < at + size), None)
        if first is None:
            goes_on = 0 <= offset - self._end <= SKIPPED_BYTES
            self._next_bytes = min(MOST_BYTES, 4 * self._next_bytes) if goes_on else FIRST_BYTES
            first = offset
            self._begin(offset, max(self._next_bytes, min(wanted, MOST_BYTES)))
        size, piece = self._pieces[first]
        self._pieces.move_to_end(first)
        while self._next_bytes == MOST_BYTES and first < self._end < min(self.size, first + size + AHEAD * MOST_BYTES):
            self._begin(self._end, MOST_BYTES)
        self._forget(first, first + size + (AHEAD + 1) * MOST_BYTES)
        return first, piece

    def _begin(self, offset: int, size: int) -> None:
        size = min(size, self.size - offset)
        self._pieces[offset] = (size, _begun(partial(self._fetch, offset, size)))
        self._end = offset + size

    def _forget(self, first: int, last: int) -> None:
        """Drop the pieces that were used longest ago, but none from ``first`` to ``last``: they are read next."""
        total = sum(size for size, _ in self._pieces.values())
        for at, (size, _) in list(self._pieces.items()):
            if total > KEPT_BYTES and not first <= at <= last:
                del self._pieces[at]
                total -= size

    def _fetch(self, offset: int, size: int) -> bytes:
        path = self._path
        try:
            data = path.ask(lambda fs: fs.cat_file(path.url, start=offset, end=offset + size))
        except (FileNotFoundError, GalleryError) as error:
            self._check_unchanged()
            raise GalleryError(f"{path}: cannot be read at byte {offset}: {error}") from error
        if len(data) != size:
            self._check_unchanged()
            raise GalleryError(
                f"{path}: of {size} bytes from byte {offset} on the server sent {len(data)}; was it truncated?"
            )
        return bytes(data)

    def _check_unchanged(self) -> None:
        try:
            now = self._path.info()
        except FileNotFoundError as error:
            raise GalleryError(f"{self._path}: has vanished while it was read") from error
        if now != self._info:
            raise GalleryError(f"{self._path}: was changed while it was read")

    def _check_ranges(self) -> None:
        """Refuse a server that answers with the whole object whatever it is asked for."""

        def read_one(fs: Any) -> None:
            with fs.open(self._path.url, "rb", size=self.size, cache_type="none") as file:
                file.seek(self.size - 1)
                file.read(1)

        if self.size > FIRST_BYTES:
            try:
                retried(lambda: read_one(self._path.filesystem), str(self._path))
            except (GalleryError, FileNotFoundError) as error:
                raise GalleryError(f"{self._path}: the server does not send parts of it; download it first") from error
