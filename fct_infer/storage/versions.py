"""Published folders that were replaced: kept in ``DEST.versions``, each under an id that its own manifest gives it.

DEST.versions/3f2a9c01b7d4/   what DEST was: its name begins the SHA-256 of its ``manifest.json``

A version comes there, and back, by changing places with DEST, which is one step; only then it gets its name. Whoever
holds the lock of DEST finishes what a killed process left (:func:`settle`), so that names are never trusted, only
manifests. Open files stay open: a reader keeps what it has opened, wherever its folder moves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from fct_infer.errors import InputError, OutputError
from fct_infer.storage.destination import MANIFEST, versions_folder, work_folder
from fct_infer.storage.durable import machine_errors, remove_tree, sha256_of_file
from fct_infer.storage.exchange import publish_directory, set_aside, swap_directory
from fct_infer.storage.filesystem import current_filesystem

ID_DIGITS = 12
PUBLISHING, _DROPPED = "publishing-", ".dropped-"  # followed by an id
_ID = re.compile(r"([0-9a-f]{12})(-[0-9]+)?")


def version_id(folder: Path) -> str | None:
    """Return what a published folder is called; None if it has no manifest.

    Raises:
        ResourceError: the machine failed; what cannot be read now is not taken for something else.
    """
    try:
        return sha256_of_file(folder / MANIFEST)[:ID_DIGITS]
    except InputError:
        return None


def kept_versions(dest: Path) -> dict[str, Path]:
    """Return where each kept version of ``dest`` lies, by its id; takes no lock and changes nothing."""
    folder = versions_folder(dest)
    found: dict[str, Path] = {}
    for path in [*_folders(folder), *_predecessors(dest), set_aside(dest)]:
        name = version_id(path)
        if name is not None and not path.name.startswith("."):
            found.setdefault(name, path)
    return found


def publish_version(source: Path, dest: Path, *, replace: bool) -> Path | None:
    """Let ``source`` become ``dest`` in one step, keeping what that was.

    Killed at any moment, ``dest`` is the one or the other, and :func:`settle` does the rest.

    Args:
        source: a finished folder with a manifest, in the work folder of ``dest``.
        dest: the published folder.
        replace: whether it may exist.

    Returns:
        Where the version is that was replaced; None if there was none.

    Raises:
        OutputError: ``dest`` exists and ``replace`` is not set; or its versions' place is taken by something else.
        ResourceError: an I/O error.
    """
    fs, name = current_filesystem(), version_id(source)
    if not dest.exists():
        publish_directory(source, dest)
        return None
    _make_place(dest)
    incoming = source.with_name(f"{PUBLISHING}{name}")
    with machine_errors(dest):
        fs.rename(source, incoming)
        fs.fsync_directory(incoming.parent)
    swap_directory(incoming, dest, replace=replace)
    return _keep(dest, incoming) if incoming.exists() else None


def restore_version(dest: Path, kept: Path) -> Path | None:
    """Let a kept version and ``dest`` change places in one step; return where what ``dest`` was is kept now."""
    swap_directory(kept, dest, replace=True)
    return _keep(dest, kept) if kept.exists() else None


def settle(dest: Path, name: str) -> None:
    """Finish what a killed process left; the caller holds the lock of ``dest``.

    Args:
        dest: the published folder.
        name: of the folder in its work folder that was to become ``dest``: it goes by that name again, if it did not.
    """
    aside, fs = set_aside(dest), current_filesystem()
    with machine_errors(dest):
        if aside.is_dir() and not dest.exists():
            fs.rename(aside, dest)
            fs.fsync_directory(dest.parent)
    if aside.is_dir():
        _keep(dest, aside)
    for path in _folders(work_folder(dest)):
        if path.name.startswith(PUBLISHING):
            if path in _predecessors(dest):
                _keep(dest, path)
            else:
                with machine_errors(path):
                    fs.rename(path, path.with_name(name))
    for path in _folders(versions_folder(dest)):
        if path.name.startswith(_DROPPED):
            remove_tree(path)
        elif (named := _ID.fullmatch(path.name)) and version_id(path) not in (None, named[1]):
            _keep(dest, path)


def drop_versions(dest: Path, versions: Iterable[Path], foreign: Callable[[Path], str | None]) -> list[Path]:
    """Remove kept versions; the caller holds the lock. Returns those that stay, as they hold what is not ours."""
    fs, stay = current_filesystem(), []
    for path in versions:
        if foreign(path) is not None:
            stay.append(path)
            continue
        dropped = path.with_name(f"{_DROPPED}{path.name}")
        with machine_errors(path):
            fs.rename(path, dropped)  # half a version is none
        remove_tree(dropped)
    with suppress(OSError):  # others are kept
        versions_folder(dest).rmdir()
    return stay


def _keep(dest: Path, folder: Path) -> Path | None:
    """Give what was replaced its place among the versions; an empty folder, or one without a manifest, has none."""
    fs, name = current_filesystem(), version_id(folder)
    with machine_errors(folder):
        if not any(folder.iterdir()):
            remove_tree(folder)
            return None
        place = _make_place(dest)
        kept = _free(place, name or "damaged")
        fs.rename(folder, kept)
        fs.fsync_directory(place)
        if folder.parent != place:
            fs.fsync_directory(folder.parent)
    return kept


def _make_place(dest: Path) -> Path:
    place = versions_folder(dest)
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise OutputError(f"{place}: is no folder, and the versions of {dest} are kept there; move it away")
    with machine_errors(place):
        current_filesystem().mkdir(place)
    return place


def _free(place: Path, name: str) -> Path:
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 1 << 30))
    return next(place / each for each in names if not (place / each).exists())


def _predecessors(dest: Path) -> list[Path]:
    """Return what was replaced by a publishing that was killed before it was done: no longer what its name says."""
    waiting = (path for path in _folders(work_folder(dest)) if path.name.startswith(PUBLISHING))
    return [path for path in waiting if version_id(path) != path.name.removeprefix(PUBLISHING)]


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return []
