"""Objects behind URLs, written: whole or not there, as a store promises of each one alone; large ones in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from fct_infer.errors import ResourceError, UsageError
from fct_infer.storage.remote_errors import bare, fault_of, told
from fct_infer.storage.urls import RemotePath

T = TypeVar("T")

WRITABLE = ("s3", "gs", "gcs", "memory")
PIECE_BYTES = 32 << 20  # sent at once, and held in memory; S3 takes 10,000 of them: 320 GB an object
MOST_SMALL_BYTES = 256 << 20  # of what is read at once
_AT_ONCE = 16  # requests of one question about many objects


def check_writable(path: RemotePath) -> None:
    """Raise a UsageError if nothing can be written to such a URL piece by piece."""
    if path.scheme not in WRITABLE:
        kinds = ", ".join(f"{each}://" for each in WRITABLE)
        raise UsageError(f"{path}: {path.scheme}:// is only read here; choose a folder, or {kinds}")


class ObjectWriter:
    """One object, sent as it is written; it appears, or takes another's place, when it is committed.

    What fits into one piece is one request.

    Raises:
        ResourceError: the server cannot be reached or refuses it.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path, self._waiting = path, bytearray()
        self._file: Any = None

    def write(self, view: memoryview) -> None:
        """Append bytes."""
        done = 0
        while done < len(view):
            count = min(len(view) - done, PIECE_BYTES - len(self._waiting))
            self._waiting += view[done : done + count]
            done += count
            if len(self._waiting) == PIECE_BYTES:
                self._send()

    def commit(self) -> None:
        """Let it appear."""
        if self._file is None:
            put_object(self._path, bytes(self._waiting))
        else:
            if self._waiting:
                self._send()
            file, self._file = self._file, None
            try:
                self._tell(file.close)
                self._tell(file.commit)
            except BaseException:
                self._file = file
                raise
        self._waiting = bytearray()

    def abort(self) -> None:
        """Drop what was sent; never raises."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):
                file.discard()
            file.closed = True  # else it is sent after all when it is collected
        self._waiting = bytearray()

    def _send(self) -> None:
        if self._file is None:
            path = self._path
            self._file = path.ask(
                lambda fs: fs.open(path.url, "wb", block_size=PIECE_BYTES, autocommit=False), "written"
            )
        data, self._waiting = bytes(self._waiting), bytearray()
        self._tell(lambda: self._file.write(data))

    def _tell(self, call: Callable[[], Any]) -> None:
        """Call what cannot be repeated: clients repeat the requests within by themselves."""
        try:
            call()
        except Exception as error:
            fault = fault_of(error)
            raise told(error, "passing" if fault == "missing" else fault, str(self._path), "written") from bare(error)


def put_object(path: RemotePath, data: bytes) -> None:
    """Write an object in one request; it may replace another."""
    _put(path, lambda fs: fs.pipe_file(path.url, data))


def put_new_object(path: RemotePath, data: bytes) -> bool:
    """Write an object where there is none, in one step; False if there is one, which stays.

    Args:
        path: of the object.
        data: what nobody else writes there, so that an answer that got lost is recognised.
    """
    try:
        _put(path, lambda fs: fs.pipe_file(path.url, data, mode="create"))
    except FileExistsError:
        return read_object(path) == data
    return True


def _put(path: RemotePath, put: Callable[[Any], Any]) -> None:
    try:
        path.ask(put, "written")
    except FileNotFoundError as error:
        raise ResourceError(f"{path}: cannot be written: is there such a bucket?") from error


def read_object(path: RemotePath) -> bytes | None:
    """Return a small object; None if there is none."""
    try:
        data: bytes = path.ask(lambda fs: fs.cat_file(path.url, start=0, end=MOST_SMALL_BYTES))
    except FileNotFoundError:
        return None
    return data


def remove_objects(paths: Sequence[RemotePath]) -> None:
    """Remove objects; missing ones are fine."""
    for path in paths:
        with suppress(FileNotFoundError):
            path.ask(lambda fs, path=path: fs.rm_file(path.url), "written")  # type: ignore[misc]


def remove_below(folder: RemotePath) -> None:
    """Remove all objects whose names begin with a folder's, and what was sent of unfinished ones."""
    drop_unfinished(folder)
    together(lambda path: remove_objects([path]), folder.rglob("*"))


def drop_unfinished(folder: RemotePath) -> None:
    """Drop the pieces of objects that were never committed, which S3 keeps, and charges for, until that is done."""
    if folder.scheme != "s3":
        return

    def drop(fs: Any) -> None:
        bucket, prefix, _ = fs.split_path(folder.url)
        found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
        for upload in found.get("Uploads") or []:
            with suppress(FileNotFoundError):
                fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    with suppress(FileNotFoundError, ResourceError):  # not allowed to: nothing depends on it
        folder.ask(drop, "written")


def together(question: Callable[[Any], T], things: Iterable[Any]) -> list[T]:
    """Return the answers to one question about many things, some asked at the same time, in their order."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(question, things))
