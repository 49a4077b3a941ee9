"""Places that are URLs, named, listed and told apart like any other path; fsspec knows how to reach them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Generator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PosixPath
from typing import Any, TypeVar

from fct_infer.errors import UsageError, import_error
from fct_infer.storage.remote_errors import retried

T = TypeVar("T")

# scheme -> the extra that brings what reads it
SCHEMES = {
    "s3": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "hf": "hf",
    "http": "fsspec",
    "https": "fsspec",
    "memory": "fsspec",
}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_ETAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "blob_id", "oid")
_TIMES = ("LastModified", "updated", "Last-Modified", "last_modified", "mtime", "created")


def location(place: str | Path) -> Path:
    """Return what a user named as a path: a :class:`RemotePath` if it is a URL.

    Raises:
        UsageError: the scheme is not known, the URL holds a password, or a name in it is empty, ``.`` or ``..``.
    """
    if isinstance(place, Path) or not (match := _URL.fullmatch(os.fspath(place))):
        return place if isinstance(place, Path) else Path(place)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return Path("/" + rest.lstrip("/"))
    if scheme not in SCHEMES:
        raise UsageError(f"{scheme}://...: of no kind that is known; wanted a path, or {', '.join(SCHEMES)}://...")
    query = ""
    if scheme in ("http", "https"):  # elsewhere a question mark is a part of the name
        rest, mark, query = rest.partition("?")
        query = mark + query
    if "@" in rest.partition("/")[0] and scheme != "hf":
        raise UsageError(
            f"{scheme}://...: a URL must not hold a user or a password; {scheme} takes them from its own settings"
        )
    names = rest.strip("/").split("/")
    if any(name in ("", ".", "..") or "\0" in name for name in names) or "::" in rest:
        raise UsageError(f"{scheme}://{rest}: a name in it is empty, . or .., or it is a chain of URLs")
    path = RemotePath(f"{scheme}:", *names)
    path.query = query
    return path


def looks_like_url(path: Path) -> bool:
    """Whether a path is, or was made of, a URL: ``s3:/bucket/x``, as pathlib writes it."""
    first = path.parts[0] if path.parts else ""
    return isinstance(path, RemotePath) or bool(_SCHEME.fullmatch(first) and not os.path.lexists(first))


class RemotePath(PosixPath):
    """A URL, without what must not be shown of it. Only what this project asks of a path that is read is answered.

    Every question goes to the server anew, so that a change is seen.

    Raises:
        FileNotFoundError: nothing is there (:meth:`stat`, :meth:`iterdir`).
        ResourceError: the server cannot be reached or refuses access.
        MissingExtraError: what reads this kind of URL is not installed.
    """

    query = ""  # of a signed URL: a password for some hours

    def __str__(self) -> str:
        parts = self.parts
        return f"{parts[0]}//{'/'.join(parts[1:])}" if parts and parts[0][-1:] == ":" else super().__str__()

    @property
    def scheme(self) -> str:
        """``s3``, ``https``, ..."""
        return self.parts[0].removesuffix(":")

    @property
    def url(self) -> str:
        """What the server is asked for; never shown."""
        return str(self) + self.query

    @cached_property
    def filesystem(self) -> Any:
        """Of fsspec."""
        extra = SCHEMES[self.scheme]
        try:
            import fsspec

            return fsspec.filesystem(self.scheme, use_listings_cache=False, **_options(self.scheme))
        except ImportError as error:
            package = {"s3": "s3fs", "gcs": "gcsfs", "hf": "huggingface_hub"}.get(extra, "fsspec with aiohttp")
            raise import_error(package, extra, ModuleNotFoundError(str(error))) from error

    def ask(self, question: Callable[[Any], T], doing: str = "read") -> T:
        """Return the answer of the file system; tried again if the network failed."""
        return retried(lambda: question(self.filesystem), str(self), doing)

    def info(self) -> dict[str, Any]:
        """Return ``size``, ``etag`` and ``modified`` of an object, as far as the server tells them; ``is_dir``."""

        def look(fs: Any) -> dict[str, Any]:
            fs.invalidate_cache()
            found: dict[str, Any] = fs.info(self.url)
            return found

        found = self.ask(look)
        known = {name: next((str(found[key]) for key in keys if found.get(key)), None) for name, keys in _KNOWN}
        return {"size": found.get("size"), **known, "is_dir": found.get("type") == "directory"}

    def exists(self, *_: Any, **__: Any) -> bool:
        """Whether something is there."""
        try:
            self.info()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self, *_: Any, **__: Any) -> bool:
        """Whether it can be listed; over HTTP nothing can."""
        if self.scheme in ("http", "https"):
            return False
        try:
            return bool(self.info()["is_dir"])
        except FileNotFoundError:
            return False

    def is_file(self, *_: Any, **__: Any) -> bool:
        """Whether it is an object."""
        return self.exists() and not self.is_dir()

    def is_symlink(self) -> bool:
        """It is none."""
        return False

    def stat(self, *_: Any, **__: Any) -> os.stat_result:
        """Return type and size; the rest is zero."""
        found = self.info()
        mode = stat.S_IFDIR if found["is_dir"] else stat.S_IFREG
        return os.stat_result((mode, 0, 0, 0, 0, 0, found["size"] or 0, 0, 0, 0))

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """Yield what lies in the folder."""
        return self._below(lambda fs, url: fs.ls(url, detail=False))

    def glob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        """Yield what lies in the folder and has a name like ``pattern``."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        """Yield the objects at any depth that have a name like ``pattern``."""
        found = self._below(lambda fs, url: fs.find(url))
        return (path for path in found if fnmatchcase(path.name, pattern))

    def absolute(self) -> RemotePath:
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return the path itself."""
        return self

    def _below(self, listed: Callable[[Any, str], list[str]]) -> Generator[RemotePath, None, None]:
        def names(fs: Any) -> list[str]:
            fs.invalidate_cache()
            root = fs._strip_protocol(self.url)
            return [name.removeprefix(root).strip("/") for name in listed(fs, self.url)]

        return (self.joinpath(*name.split("/")) for name in sorted(set(self.ask(names))) if name)


def _options(scheme: str) -> dict[str, Any]:
    """Return what a file system is to be told beyond its own settings: over HTTP, not to wait five minutes."""
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=20, sock_read=60)}}


_KNOWN = (("etag", _ETAGS), ("modified", _TIMES))
