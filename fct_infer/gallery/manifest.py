"""``manifest.json`` of a published gallery: what it is, and the size and digest of every file, under one seal."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from fct_infer.errors import ArtifactError, FctError, GalleryError, OutputError
from fct_infer.gallery.lazy_mapping import LazyMapping
from fct_infer.gallery.url_place import published_folder
from fct_infer.identity import ModelId
from fct_infer.storage import DigestedFile, ReadFile, RemotePath, location
from fct_infer.storage.objects import together
from fct_infer.storage.strict_json import Fields, check_seal, parse_strict, sealed_pieces

IdUse: TypeAlias = Literal["rows", "labels", "mapped", "text", "binary"]
MANIFEST_NAME = "manifest.json"
SCHEMA = 2
UNSEALED_SCHEMA = 1  # of the first release: no seal, ids and indexed_rows are not said
MAX_MANIFEST_BYTES = 128 << 20  # 100,000 shards with ids take 40 MB
MAX_TRIES = 10
_BEGINNING = 4096  # of a manifest, in which its kind stands
MAX_ROWS, MAX_DIM, MAX_FILE_BYTES = 1 << 48, 1 << 24, 1 << 60

T = TypeVar("T")
_METRICS = ("l2", "ip", "cosine")
_DTYPES = ("float32", "float16")
_FOLDERS = ("embeddings", "ids", "side_information", "index")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class GalleryManifest:
    """Contents of ``manifest.json``.

    Attributes:
        rows, dim: of the embeddings.
        dtype: ``float32`` or ``float16``.
        metric: of the index: ``l2``, ``ip`` or ``cosine``.
        transformation: digest of what made the rows.
        ids: what the index holds, and how ids come from it. ``rows``: there are no ids, and rows are found by number.
            ``labels``: the ids themselves, integers from 0 to 2^63 - 1. Else it holds row numbers, and the ids are
            ``mapped`` integers, ``text``, or ``binary``: fixed-width bytes with all their NULs. None: not said.
        indexed_rows: rows in the index, which for cosine leaves out those that are zero; None without an index.
        files: size and SHA-256 by name, such as ``embeddings/000000.npy``.
        is_sealed: whether the manifest carries its own digest.
        model: whose vectors the rows are, and what is searched with; None where that is not known.
        old_model: whose vectors they were made of.
    """

    rows: int
    dim: int
    dtype: str
    metric: str
    transformation: str
    ids: IdUse | None
    indexed_rows: int | None
    files: Mapping[str, DigestedFile]
    is_sealed: bool = True
    model: ModelId | None = None
    old_model: ModelId | None = None

    def to_bytes(self) -> bytes:
        """Return ``manifest.json``; its last field is a SHA-256 over all bytes before that digest."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """Yield ``manifest.json``, however many files it lists, without ever holding all of it."""
        document = {"schema": SCHEMA, "kind": "gallery", **vars(self)}
        del document["is_sealed"]
        for key in ("model", "old_model"):
            found = document.pop(key)
            document |= {} if found is None else {key: found.as_dict()}
        document["files"] = LazyMapping(self.files, lambda _, file: vars(file))
        return sealed_pieces(document)

    def damaged_sizes(self, folder: Path) -> dict[str, str]:
        """Return what is wrong, by name, with files that are missing, no files, or of another size."""
        names = list(self.files)
        damage: list[str | None]
        if isinstance(folder, RemotePath):
            damage = together(lambda name: _size_damage(folder / name, self.files[name].size), names)
        else:
            damage = [_size_damage(folder / name, self.files[name].size) for name in names]
        return {name: found for name, found in zip(names, damage, strict=True) if found is not None}


def _size_damage(path: Path, size: int) -> str | None:
    try:
        status = path.stat()
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return None if status.st_size == size else f"has {status.st_size:,} bytes, manifest.json says {size:,}"


def read_manifest(folder: str | Path) -> GalleryManifest:
    """Read and check ``manifest.json`` of a published gallery, but none of the files it lists.

    Raises:
        ArtifactError: it is missing, malformed, altered, or of a schema this version does not know.
    """
    folder = location(folder)
    return parse_manifest(folder, manifest_bytes(folder))


def manifest_bytes(folder: Path) -> bytes:
    """Return ``manifest.json`` as it is.

    Raises:
        ArtifactError: it is missing or larger than :data:`MAX_MANIFEST_BYTES`.
    """
    path = folder / MANIFEST_NAME
    try:
        with ReadFile(path) as file:
            if file.size > MAX_MANIFEST_BYTES:
                raise ArtifactError(f"{path}: is {file.size} bytes long, at most {MAX_MANIFEST_BYTES} are accepted")
            return file.read(file.size)
    except GalleryError as error:
        raise ArtifactError(f"{folder}: is not a published gallery: {error}") from error


def own_manifest(folder: str | Path) -> GalleryManifest | None:
    """Return the manifest of a gallery that was published; None for one without, or beside a foreign ``manifest.json``.

    Raises:
        ArtifactError: as :func:`read_manifest`.
    """
    folder = location(folder)
    if not (folder / MANIFEST_NAME).exists():
        return None
    data = manifest_bytes(folder)
    return parse_manifest(folder, data) if b'"gallery"' in data[:_BEGINNING] else None


def read_published(dest: Path, read: Callable[[Path, bytes], T]) -> T:
    """Return what ``read`` makes of a published gallery and its ``manifest.json``, all of it from one gallery.

    Args:
        dest: the gallery.
        read: given the folder in which its files lie, which behind a URL is that of a version.

    Raises:
        ArtifactError: there is no manifest.
        OutputError: the folder is replaced again and again.
    """

    def read_once() -> T:
        folder = published_folder(dest)
        return read(folder, manifest_bytes(folder))

    return _unmixed(dest, read_once)


def read_gallery(folder: Path, read: Callable[[GalleryManifest | None], T]) -> T:
    """Like :func:`read_published`, of any gallery: ``read`` is given its :func:`own_manifest`, if there is one."""
    return _unmixed(folder, lambda: read(own_manifest(published_folder(folder))))


def _unmixed(folder: Path, read: Callable[[], T]) -> T:
    """Call ``read`` until the folder was not replaced meanwhile: else what it made, or raised, counts for nothing."""
    for _ in range(MAX_TRIES):
        before = folder_identity(folder)
        try:
            found = read()
        except FctError:
            if folder_identity(folder) == before:
                raise
        else:
            if folder_identity(folder) == before:
                return found
    raise OutputError(f"{folder}: was replaced {MAX_TRIES} times while it was read")


def folder_identity(folder: Path) -> tuple[object, ...]:
    """Return what differs between a folder and another that took its place."""
    if isinstance(folder, RemotePath):
        return (published_folder(folder),)
    found: tuple[object, ...] = ()
    for path in (folder, folder / MANIFEST_NAME):
        try:
            status = path.stat()
        except OSError:
            continue
        found += (status.st_dev, status.st_ino, status.st_mtime_ns if path is not folder else 0)
    return found


def foreign_to_manifest(folder: Path) -> str | None:
    """Say what makes a folder something else than a gallery that an upgrade published; None if it is one."""
    try:
        known = {MANIFEST_NAME, *read_manifest(folder).files}
    except FctError:
        return "it is not a gallery that fct-upgrade-gallery published"
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in known:
            return f"it holds {name}, which fct-upgrade-gallery did not publish"
    return None


def parse_manifest(folder: Path, data: bytes) -> GalleryManifest:
    """Check and return what :func:`manifest_bytes` read."""
    try:
        document = parse_strict(data)
        if not isinstance(document, dict) or document.get("kind") != "gallery":
            raise ArtifactError("does not describe a published gallery")
        return _parse(Fields(document, "manifest"), data)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / MANIFEST_NAME}: {str(error)[:500]}") from error


def _parse(fields: Fields, data: bytes) -> GalleryManifest:
    schema = fields.take("schema", int)
    if schema not in (UNSEALED_SCHEMA, SCHEMA):
        raise ArtifactError(f"has schema {schema}; this version reads {UNSEALED_SCHEMA} and {SCHEMA}")
    if is_sealed := schema == SCHEMA:
        check_seal(data, fields.sha256("sha256"))
    fields.take("kind", str)
    manifest = GalleryManifest(
        rows=fields.positive("rows", MAX_ROWS),
        dim=fields.positive("dim", MAX_DIM),
        dtype=fields.one_of("dtype", _DTYPES),
        metric=fields.one_of("metric", _METRICS),
        transformation=fields.take("transformation", str),
        ids=fields.one_of("ids", get_args(IdUse)) if is_sealed else None,
        indexed_rows=_indexed_rows(fields) if is_sealed else None,
        files={name: _file(name, value) for name, value in fields.take("files", dict).items()},
        is_sealed=is_sealed,
        model=_model(fields, "model"),
        old_model=_model(fields, "old_model"),
    )
    fields.done()
    if manifest.indexed_rows is not None and manifest.indexed_rows > manifest.rows:
        raise ArtifactError(f"manifest.indexed_rows is {manifest.indexed_rows}, the gallery has {manifest.rows} rows")
    return manifest


def _model(fields: Fields, key: str) -> ModelId | None:
    value = fields.take_if_there(key, dict)
    return None if value is None else ModelId.parse(value, f"manifest.{key}")


def _indexed_rows(fields: Fields) -> int | None:
    value = fields.take_optional("indexed_rows", int)
    if value is not None and value < 0:
        raise ArtifactError(f"manifest.indexed_rows is {value}")
    return value


def _file(name: str, value: Any) -> DigestedFile:
    folder, slash, plain = name.rpartition("/")
    inside = folder in _FOLDERS and plain not in ("", ".", "..") and "\0" not in plain if slash else False
    if not inside and not (_PLAIN_NAME.fullmatch(name) and name != MANIFEST_NAME):
        raise ArtifactError(f"file name {name[:80]!r} is not a name inside the gallery")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise ArtifactError(f"file name {name[:80]!a} is none") from error
    fields = Fields(value, f"files.{name[:80]}")
    file = DigestedFile(fields.positive("size", MAX_FILE_BYTES), fields.sha256("sha256"))
    fields.done()
    return file
