"""Whether a published gallery is still, byte for byte, what was published."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fct_infer.errors import ArtifactError, FctError, InputError, MissingExtraError
from fct_infer.gallery import Gallery, GalleryManifest, Part
from fct_infer.gallery.jobs import Workers
from fct_infer.gallery.manifest import MANIFEST_NAME, manifest_bytes, parse_manifest, read_published
from fct_infer.index.gallery_index import index_name, open_faiss
from fct_infer.storage import location, sha256_of_file

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GalleryCheck:
    """What :func:`verify_gallery` found.

    Attributes:
        dest: the folder.
        rows, dim, files, bytes: what the manifest says there is.
        is_sealed: whether the manifest carries its own digest; the first release wrote none.
        damaged: what is wrong, by the file's name inside the folder; empty if all is as it was published.
        surplus: files that the manifest does not list. Under ``embeddings/`` and ``ids/`` they are damage as well.
        index_opened: whether there is an index and it was opened; False where FAISS is not installed.
    """

    dest: Path
    rows: int
    dim: int
    files: int
    bytes: int
    is_sealed: bool
    damaged: dict[str, str]
    surplus: tuple[str, ...]
    index_opened: bool

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON."""
        return asdict(self) | {"dest": str(self.dest), "is_whole": not self.damaged}


def verify_gallery(dest: str | Path, progress: Progress | None = None, workers: Workers | None = None) -> GalleryCheck:
    """Read every byte of a published gallery and compare it with its manifest.

    Checks the manifest's seal; of each file that it is there, its size and SHA-256; that no other shard is there; that
    shards hold the rows, dims and dtype the manifest names; and that the index opens and holds its rows.

    Args:
        dest: the folder.
        progress: called as ``progress("verify", bytes_done, bytes)``.
        workers: who take the digests, each of one file at a time; by default this process. What they find is the same;
            they see the folder under the same name.

    Raises:
        ArtifactError: it is not a published gallery, or its manifest is malformed or was altered; or a worker does not
            see it.
        OutputError: it is replaced again and again while it is read.
        ResourceError: there are no workers, or none that could read.
    """
    dest = location(dest)
    return read_published(dest, lambda folder, data: _verify_once(folder, data, progress, workers))


def _verify_once(dest: Path, data: bytes, progress: Progress | None, workers: Workers | None) -> GalleryCheck:
    manifest = parse_manifest(dest, data)
    damaged = manifest.damaged_sizes(dest)
    whole = sum(file.size for file in manifest.files.values())
    damaged |= _damaged_digests(dest, data, manifest, damaged, progress, workers)
    surplus = _surplus(dest, manifest)
    damaged |= {name: "is not in manifest.json" for name in surplus if name.startswith(("embeddings/", "ids/"))}
    index_opened = False
    if not damaged:
        damaged |= _shard_damage(dest, manifest)
        index_opened = _opened_index(dest, manifest, damaged)
    return GalleryCheck(
        dest=dest,
        rows=manifest.rows,
        dim=manifest.dim,
        files=len(manifest.files),
        bytes=whole,
        is_sealed=manifest.is_sealed,
        damaged=damaged,
        surplus=surplus,
        index_opened=index_opened,
    )


def _damaged_digests(
    dest: Path,
    data: bytes,
    manifest: GalleryManifest,
    known: Mapping[str, str],
    progress: Progress | None,
    workers: Workers | None,
) -> dict[str, str]:
    """Return what is wrong with files, in the order of the manifest, that are not known to be damaged."""
    files = {name: file for name, file in manifest.files.items() if name not in known}
    whole = sum(file.size for file in manifest.files.values())
    done = whole - sum(file.size for file in files.values())
    found: dict[str, str] = {}

    def record(part: Part, damage: str | None) -> None:
        nonlocal done
        done += files[part.name].size
        if damage is not None:
            found[part.name] = damage
        if progress:
            progress("verify", done, whole)

    job = DigestJob(dest, data, {name: file.sha256 for name, file in files.items()})
    parts = [Part(name, max(1, file.size), 0) for name, file in files.items()]
    if workers is None:
        for part in parts:
            record(part, job.damage(part))
    else:
        largest_first = sorted(parts, key=lambda part: part.rows, reverse=True)  # or all would wait for the index
        workers.each(job, largest_first, record)
    return {name: found[name] for name in files if name in found}


@dataclass(frozen=True)
class DigestJob:
    """Takes digests of a gallery's files; see :class:`~fct_infer.gallery.jobs.Job`. A part is a file, its rows bytes.

    Attributes:
        dest: the gallery.
        manifest: what ``manifest.json`` holds there.
        digests: SHA-256 wanted of each file, by its name.
    """

    dest: Path
    manifest: bytes
    digests: Mapping[str, str]

    def open(self) -> AbstractContextManager[Callable[[Part], str | None]]:
        """Have :meth:`damage`, once it is seen that this machine has the same gallery.

        Raises:
            ArtifactError: it does not.
        """
        try:
            is_same = manifest_bytes(self.dest) == self.manifest
        except FctError:
            is_same = False
        if not is_same:
            raise ArtifactError(f"{self.dest}: is not there, or another gallery, on {socket.gethostname()}")
        return nullcontext(self.damage)

    def damage(self, part: Part) -> str | None:
        """Return what is wrong with a file; None if nothing is."""
        return _digest_damage(self.dest / part.name, self.digests[part.name])


def _digest_damage(path: Path, sha256: str) -> str | None:
    try:
        found = sha256_of_file(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    return None if found == sha256 else "its SHA-256 is not the one in manifest.json"


def _surplus(dest: Path, manifest: GalleryManifest) -> tuple[str, ...]:
    """Return the files that are not listed; hidden ones, which no reader of galleries looks at, aside."""
    found = (path.relative_to(dest) for path in dest.rglob("*") if not path.is_dir() or path.is_symlink())
    names = (path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    return tuple(sorted(name for name in names if name not in manifest.files and name != MANIFEST_NAME))


def _shard_damage(dest: Path, manifest: GalleryManifest) -> dict[str, str]:
    """Return how the files, each as it was published, contradict what the manifest says of the gallery.

    Parquet is taken by its digests: what reads it is no part of this room.
    """
    if any(name.startswith("embeddings/") and name.endswith(".parquet") for name in manifest.files):
        return {}
    try:
        gallery = Gallery.open(dest)
    except InputError as error:
        return {"embeddings": str(error).removeprefix(f"{dest}/embeddings/")}
    found = (gallery.rows, gallery.old_dim, gallery.embedding_dtype.name)
    wanted = (manifest.rows, manifest.dim, manifest.dtype)
    if found == wanted:
        return {}
    says = "{} rows of {} {}"
    return {"embeddings": f"holds {says.format(*found)}, manifest.json says {says.format(*wanted)}"}


def _opened_index(dest: Path, manifest: GalleryManifest, damaged: dict[str, str]) -> bool:
    """Open the index, if there is one and FAISS is installed; what is wrong with it goes into ``damaged``."""
    name = index_name(manifest)
    if name is None:
        return False
    try:
        open_faiss(dest, manifest, was_digested=True)
    except MissingExtraError:
        return False
    except ArtifactError as error:
        damaged[name] = str(error).removeprefix(f"{dest / name}: ")
        return False
    return True
