"""A published gallery in an object store: whole galleries side by side, and one small object that says which one it is.

GALLERY/published.json      which version is the gallery, and which are kept; sealed, put last, the only one replaced
GALLERY/versions/TOKEN/     a gallery with its own manifest.json, as a folder has it; never changed once published
GALLERY/.partial/           unfinished work, and whose it is

A store promises nothing about several objects at once, so nothing is asked of it but that one object is replaced as a
whole. A reader who has read ``published.json`` stays in that version. What lies there is never listed to find it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fct_infer.errors import ArtifactError, OutputError, ResourceError
from fct_infer.storage import RemotePath
from fct_infer.storage.lease import Lease
from fct_infer.storage.objects import put_object, read_object, remove_below
from fct_infer.storage.remote_errors import is_refusal
from fct_infer.storage.strict_json import Fields, check_seal, parse_strict, sealed_bytes

POINTER_NAME = "published.json"
VERSIONS, WORK = "versions", ".partial"
SCHEMA = 1
_TOKEN = re.compile(r"[0-9a-f]{12}")
_VERSION = re.compile(r"[0-9a-f]{12}")
_MOST_VERSIONS = 100_000


@dataclass(frozen=True)
class Entry:
    """A version as ``published.json`` names it.

    Attributes:
        version: the first 12 digits of the SHA-256 of its ``manifest.json``.
        folder: its name under ``versions/``.
        number: counts the versions in the order in which they were published first.
    """

    version: str
    folder: str
    number: int


@dataclass(frozen=True)
class Pointer:
    """Contents of ``published.json``: what the gallery is, and what is kept of what it was."""

    current: Entry
    kept: tuple[Entry, ...] = ()

    def to_bytes(self) -> bytes:
        """Return it under a seal."""
        kept = [vars(each) for each in self.kept]
        return sealed_bytes({"schema": SCHEMA, "kind": "published", "current": vars(self.current), "kept": kept})

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All versions."""
        return (self.current, *self.kept)


def read_pointer(place: RemotePath) -> Pointer | None:
    """Return what a place says of itself; None where nothing was published in this way.

    Raises:
        ArtifactError: it is malformed or was altered.
        ResourceError: the server cannot be reached or refuses access.
    """
    path = place / POINTER_NAME
    data = read_object(path)
    if data is None:
        return None
    try:
        document = parse_strict(data)
        fields = Fields(document, "published")
        if (schema := fields.take("schema", int)) != SCHEMA:
            raise ArtifactError(f"has schema {schema}; this version reads {SCHEMA}")
        check_seal(data, fields.sha256("sha256"))
        fields.one_of("kind", ("published",))
        pointer = Pointer(_entry(fields.take("current", dict)), tuple(map(_entry, fields.take("kept", list))))
        fields.done()
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {str(error)[:500]}") from error
    return pointer


def _entry(value: Any) -> Entry:
    fields = Fields(value, "version")
    entry = Entry(fields.take("version", str), fields.take("folder", str), fields.positive("number", 1 << 40))
    fields.done()
    if not _VERSION.fullmatch(entry.version) or not _TOKEN.fullmatch(entry.folder):
        raise ArtifactError(f"version {entry.version[:20]!r} in {entry.folder[:20]!r} is none")
    return entry


def published_folder(place: Path) -> Path:
    """Return where the files of a gallery lie: the version that is the gallery now; any other place as it is."""
    if not isinstance(place, RemotePath) or place.scheme in ("http", "https"):
        return place
    try:
        pointer = read_pointer(place)
    except ResourceError as error:
        if not is_refusal(error):
            raise
        return place  # who may read one object only is told so of all others; if of this one, its reader says it
    return place if pointer is None else place / VERSIONS / pointer.current.folder


class UrlPlace:
    """The versions of a gallery in a store; what changes them wants the lease held."""

    def __init__(self, dest: RemotePath) -> None:
        self.dest = dest

    def current(self) -> tuple[str, Path] | None:
        """Return id and folder of what the gallery is."""
        pointer = read_pointer(self.dest)
        return None if pointer is None else (pointer.current.version, self.folder(pointer.current.folder))

    def kept(self) -> dict[str, Path]:
        """Return the folders of kept versions by their ids."""
        pointer = read_pointer(self.dest)
        return {} if pointer is None else {each.version: self.folder(each.folder) for each in pointer.kept}

    def order(self, path: Path) -> tuple[Any, ...]:
        """Return what sorts versions as they were published."""
        pointer = read_pointer(self.dest)
        numbers = {each.folder: each.number for each in pointer.entries} if pointer else {}
        return (numbers.get(path.name, 0),)

    def below(self, name: str) -> RemotePath:
        """Return a place in it."""
        path: RemotePath = self.dest / name
        return path

    def folder(self, token: str) -> RemotePath:
        """Return where a version lies."""
        return self.below(f"{VERSIONS}/{token}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep upgrades and rollbacks of others out meanwhile."""
        lease = Lease(self.below(WORK), str(self.dest))
        try:
            yield
        finally:
            lease.release()

    def refuse_foreign(self) -> None:
        """Raise an OutputError if what lies there was not published."""
        if reason := foreign_to_pointer(self.dest):
            raise OutputError(f"{self.dest}: {reason}, so it is not replaced")

    def publish(self, folder: str, version: str, keep: int) -> None:
        """Let a folder be the gallery, by one put, then drop what is not kept of what it was."""
        before = read_pointer(self.dest)
        if before is not None and before.current.folder == folder:  # by a process that was killed then
            self._drop_all_but(before)
            return
        entries = before.entries if before else ()
        number = 1 + max((each.number for each in entries), default=0)
        pointer = Pointer(Entry(version, folder, number), entries[: min(keep, _MOST_VERSIONS)])
        self._put(pointer)
        self._drop_all_but(pointer)

    def restore(self, path: Path) -> Path | None:
        """Let a kept version be the gallery again; return where what that was is kept."""
        before = read_pointer(self.dest)
        if before is None or path.name == before.current.folder:
            return None
        chosen = next(each for each in before.kept if each.folder == path.name)
        self._put(Pointer(chosen, (before.current, *(each for each in before.kept if each != chosen))))
        return self.folder(before.current.folder)

    def drop(self, paths: Iterable[Path], foreign: Callable[[Path], str | None]) -> list[Path]:
        """Remove kept versions; nothing lies in them but what was published."""
        before = read_pointer(self.dest)
        names = {path.name for path in paths}
        if before is not None and names:
            pointer = replace(before, kept=tuple(each for each in before.kept if each.folder not in names))
            self._put(pointer)
            for name in names:
                remove_below(self.folder(name))
        return []

    def _put(self, pointer: Pointer) -> None:
        """Put ``published.json`` and read it back: then it is seen by all."""
        data = pointer.to_bytes()
        path = self.below(POINTER_NAME)
        put_object(path, data)
        if read_object(path) != data:
            raise ResourceError(f"{path}: the store gives back something else than was put there; try it again")

    def _drop_all_but(self, pointer: Pointer) -> None:
        """Remove versions that are not named any more; one that a listing leaves out goes the next time."""
        named = {each.folder for each in pointer.entries}
        try:
            found = {path.name for path in (self.dest / VERSIONS).iterdir()}
        except FileNotFoundError:
            return
        for name in found - named:
            if _TOKEN.fullmatch(name):
                remove_below(self.folder(name))


def foreign_to_pointer(dest: RemotePath) -> str | None:
    """Say what makes a place something else than what an upgrade published there; None if it is that, or empty."""
    try:
        if read_pointer(dest) is not None:
            return None
    except ArtifactError as error:
        return f"its {POINTER_NAME} is damaged ({error})"
    try:
        others = sorted({path.name for path in dest.iterdir()} - {WORK, VERSIONS, POINTER_NAME})
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return "it is an object"
    return f"it holds {others[0]}, which fct-upgrade-gallery did not publish" if others else None
