"""The versions of a published gallery: which are kept, and going back to one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from fct_infer.errors import ArtifactError, InputError, OutputError, UsageError
from fct_infer.gallery.manifest import MANIFEST_NAME, foreign_to_manifest, read_manifest
from fct_infer.gallery.url_place import UrlPlace
from fct_infer.storage import ReadFile, RemotePath, Staging, location, versions_folder
from fct_infer.storage.versions import drop_versions, kept_versions, restore_version, version_id

INFOS_NAME = "upgrade_infos.json"
_MAX_INFOS_BYTES = 1 << 24
_LEAST_DIGITS = 4  # of an id that a user may shorten


@dataclass(frozen=True)
class GalleryVersion:
    """One version of a published gallery.

    Attributes:
        version: its id, the first 12 digits of the SHA-256 of its ``manifest.json``.
        path: where it lies now; a kept one is read there as any other gallery.
        is_current: whether it is what readers of the gallery see.
        published: when it was finished, as ISO 8601 in UTC.
        rows, dim, dtype, metric: of its embeddings; zeros and empty texts if it is damaged.
        transformation: digest of what made them.
        bytes: of all files its manifest lists.
        damage: what is wrong with its manifest, or the first file that is missing or of another size; None if nothing.
    """

    version: str
    path: Path
    is_current: bool
    published: str
    rows: int = 0
    dim: int = 0
    dtype: str = ""
    metric: str = ""
    transformation: str = ""
    bytes: int = 0
    damage: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class RollbackReport:
    """Result of :func:`rollback`.

    Attributes:
        dest: the gallery.
        version: what it is now.
        replaced: what it was before, kept now; None if there was no gallery, or it was that version already.
    """

    dest: Path
    version: GalleryVersion
    replaced: GalleryVersion | None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON."""
        replaced = self.replaced.as_dict() if self.replaced else None
        return {"dest": str(self.dest), "version": self.version.as_dict(), "replaced": replaced}


class FolderPlace:
    """The versions of a folder, which lie beside it."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest

    def current(self) -> tuple[str, Path] | None:
        """Return id and folder of what the gallery is."""
        current = version_id(self.dest)
        return None if current is None else (current, self.dest)

    def kept(self) -> dict[str, Path]:
        """Return the folders of kept versions by their ids."""
        return kept_versions(self.dest)

    def order(self, path: Path) -> tuple[Any, ...]:
        """Return what sorts versions that were finished within one second: when their manifests were written."""
        try:
            return _published(path), (path / MANIFEST_NAME).stat().st_mtime_ns
        except OSError:
            return _published(path), 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep upgrades and rollbacks of others out meanwhile."""
        with Staging(self.dest, "gallery", keeps_versions=True):
            yield

    def refuse_foreign(self) -> None:
        """Raise an OutputError if what lies there was not published."""
        _refuse_foreign(self.dest)

    def restore(self, path: Path) -> Path | None:
        """Let a kept version be the gallery again; return where what that was is kept."""
        return restore_version(self.dest, path)

    def drop(self, paths: Iterable[Path], foreign: Callable[[Path], str | None]) -> list[Path]:
        """Remove kept versions; return those that stay, as they hold what is not ours."""
        return drop_versions(self.dest, paths, foreign) if versions_folder(self.dest).is_dir() else []


Place: TypeAlias = FolderPlace | UrlPlace


def _place(dest: str | Path) -> Place:
    found = location(dest)
    return UrlPlace(found) if isinstance(found, RemotePath) else FolderPlace(found.absolute())


def list_versions(dest: str | Path) -> list[GalleryVersion]:
    """Return the versions of a gallery, the one published last first; sizes are looked at, contents are not.

    Takes no lock: what an upgrade or a rollback changes meanwhile may be missing.

    Raises:
        ArtifactError: there is neither a published gallery nor a kept version.
    """
    place = _place(dest)
    found = [_describe(name, path, is_current=False) for name, path in place.kept().items()]
    if (current := place.current()) is not None:
        found.append(_describe(*current, is_current=True))
    if not found:
        raise ArtifactError(f"{place.dest}: is not a published gallery, and no version of it is kept")
    return sorted(found, key=lambda version: place.order(version.path), reverse=True)


def rollback(dest: str | Path, to: str | None = None) -> RollbackReport:
    """Let a kept version become the gallery again, in one step; what the gallery was is kept in its place.

    Readers see the one or the other, whole, and what they have open stays open. Killed at any moment, the same call
    can be repeated.

    Args:
        dest: the published gallery; it may be missing.
        to: id of a version, or how it begins, which may be the current one already; by default the one published
            last before the current one.

    Raises:
        UsageError: no such version is kept.
        ArtifactError: that version's manifest was altered, or a file is missing or has another size.
        OutputError: an upgrade or another rollback is at work, or what is at ``dest`` was not published.
        ResourceError: an I/O error.
    """
    place = _place(dest)
    if place.current() is None and not place.kept():
        raise ArtifactError(f"{place.dest}: is not a published gallery, and no version of it is kept")
    with place.held():
        place.refuse_foreign()
        versions = list_versions(place.dest)
        chosen = _chosen(place, versions, to)
        if chosen.damage is not None:
            raise ArtifactError(f"{chosen.path}: is damaged: {chosen.damage}")
        kept = None if chosen.is_current else place.restore(chosen.path)
        name, now = place.current() or (chosen.version, place.dest)
    before = next((each for each in versions if each.is_current), None)
    replaced = None if kept is None or before is None else replace(before, path=kept, is_current=False)
    return RollbackReport(place.dest, _describe(name, now, is_current=True), replaced)


def drop_old_versions(dest: str | Path, keep: int, predecessor: Path | None = None) -> list[GalleryVersion]:
    """Remove kept versions but the last ``keep``; the caller holds the lock of ``dest``.

    Args:
        dest: the published gallery.
        keep: how many stay.
        predecessor: what was replaced just now, which stays before all others.

    Returns:
        What was removed; versions that hold files which were not published stay.
    """
    place = _place(dest)
    kept = [_describe(name, path, is_current=False) for name, path in place.kept().items()]
    kept.sort(key=lambda version: (version.path == predecessor, place.order(version.path)), reverse=True)
    old = kept[keep:]
    stay = place.drop([version.path for version in old], foreign_to_manifest)
    return [version for version in old if version.path not in stay]


def keep_versions(dest: str | Path, keep: int) -> list[GalleryVersion]:
    """Remove kept versions but the last ``keep`` and return them; see :func:`drop_old_versions`.

    Raises:
        OutputError: an upgrade or a rollback is at work.
        UsageError: ``keep`` is negative.
    """
    place = _place(dest)
    if keep < 0:
        raise UsageError(f"keep is {keep}, wanted 0 or more")
    list_versions(place.dest)
    with place.held():
        return drop_old_versions(place.dest, keep)


def versions_bytes(dest: str | Path) -> int:
    """Return the bytes that kept versions take."""
    kept = _place(dest).kept()
    return sum(_describe(name, path, is_current=False).bytes for name, path in kept.items())


def _refuse_foreign(dest: Path) -> None:
    if dest.is_symlink():
        raise OutputError(f"{dest}: is a link, so it is not replaced")
    if dest.exists() and version_id(dest) is None and (not dest.is_dir() or any(dest.iterdir())):
        raise OutputError(f"{dest}: is not a gallery that fct-upgrade-gallery published, so it is not replaced")


def _chosen(place: Place, versions: Sequence[GalleryVersion], to: str | None) -> GalleryVersion:
    dest, kept = place.dest, [version for version in versions if not version.is_current]
    names = f"kept are {', '.join(version.version for version in kept)}" if kept else "none is kept"
    if to is not None:
        found = [version for version in versions if len(to) >= _LEAST_DIGITS and version.version.startswith(to)]
        if len(found) != 1:
            raise UsageError(
                f"{dest}: {'several versions begin' if found else 'no version begins'} with {to!r}; {names}"
            )
        return found[0]
    current = next((version for version in versions if version.is_current), None)
    if current is not None and current.damage is None:
        kept = [version for version in kept if place.order(version.path) < place.order(current.path)]
    if not kept:
        says = f"none older than {current.version} is kept; " if current is not None and versions[1:] else ""
        hint = "; name one with --to (to=)" if says else ""
        raise UsageError(f"{dest}: there is no version to go back to: {says}{names}{hint}")
    return kept[0]


def _describe(name: str, path: Path, *, is_current: bool) -> GalleryVersion:
    published = _published(path)
    try:
        manifest = read_manifest(path)
    except InputError as error:
        return GalleryVersion(name, path, is_current, published, damage=str(error))
    damage = next((f"{file} {what}" for file, what in manifest.damaged_sizes(path).items()), None)
    return GalleryVersion(
        version=name,
        path=path,
        is_current=is_current,
        published=published,
        rows=manifest.rows,
        dim=manifest.dim,
        dtype=manifest.dtype,
        metric=manifest.metric,
        transformation=manifest.transformation,
        bytes=sum(file.size for file in manifest.files.values()),
        damage=damage,
    )


def _published(path: Path) -> str:
    """Return when a version was finished, as its infos say; else when its manifest was written."""
    try:
        with ReadFile(path / INFOS_NAME) as file:
            infos = json.loads(file.read(min(file.size, _MAX_INFOS_BYTES)))
        finished = datetime.fromisoformat(infos["finished"]).astimezone(UTC)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        try:
            finished = datetime.fromtimestamp((path / MANIFEST_NAME).stat().st_mtime, UTC)
        except OSError:
            return ""
    return finished.isoformat(timespec="seconds")
