"""Where a command may put its result: one rule for all of them, asked before any work.

Only what this project published is replaced, and only if asked; never what the result is made from, a folder that holds
that, or a folder inside it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from fct_infer.errors import InputError, OutputError, UsageError
from fct_infer.storage.filesystem import ReadFile
from fct_infer.storage.strict_json import is_sealed
from fct_infer.storage.urls import RemotePath, location, looks_like_url

MANIFEST = "manifest.json"  # of everything that is published
_MAX_MANIFEST_BYTES = 1 << 28
WORK_SUFFIX = ".partial"
VERSIONS_SUFFIX = ".versions"
REPLACED_SUFFIX = WORK_SUFFIX + ".replaced"
_LONGEST_INSIDE = 64  # bytes of the longest name below, temporary ones included


def work_folder(dest: Path) -> Path:
    """Return the folder in which ``dest`` is made."""
    return dest.with_name(dest.name + WORK_SUFFIX)


def versions_folder(dest: Path) -> Path:
    """Return the folder in which versions of ``dest`` are kept."""
    return dest.with_name(dest.name + VERSIONS_SUFFIX)


def check_place(dest: str | Path, inputs: Mapping[str, str | Path]) -> Path:
    """Return ``dest`` as an absolute path, if a folder can be made there without harm to what it is made from.

    Args:
        dest: folder to make.
        inputs: what it is made from, by what each is called in a message.

    Raises:
        UsageError: no folder can have this name or lie there, an input would be lost or written into, ``dest`` is a
            mount point, or lies inside something that was published.
    """
    target = _absolute(dest)
    _check_length(target)
    if os.path.ismount(target):
        raise UsageError(f"{dest}: is a mount point, which no rename can replace; choose a folder inside it")
    for what, path in inputs.items():
        if not isinstance(place := location(path), RemotePath):
            _keep_apart(target, what, place)
    for parent in Path(os.path.realpath(target)).parents:
        if _is_published(parent):
            raise UsageError(f"{target}: lies inside {parent}, which was published as it is; choose another output")
    return target


def check_replaceable(dest: Path, foreign: Callable[[Path], str | None], *, force: bool) -> None:
    """Refuse what is at ``dest`` unless it is an empty folder, or was published by this project and is to be replaced.

    Args:
        dest: as :func:`check_place` returned it.
        foreign: says what makes a folder something else than what the command publishes; None if nothing does.
        force: replace what is there.

    Raises:
        OutputError: it is refused.
    """
    if not os.path.lexists(dest):
        return
    if dest.is_symlink():
        raise OutputError(f"{dest}: is a link, so it is not replaced")
    try:
        is_empty = not any(dest.iterdir())
    except OSError as error:
        raise OutputError(f"{dest}: exists and cannot be read as a folder: {error.strerror}") from error
    if is_empty:
        return
    if not force:
        raise OutputError(f"{dest}: exists already; --force (force=True) replaces it once the new one is complete")
    if reason := foreign(dest):
        raise OutputError(f"{dest}: {reason}, so it is not replaced")


def _is_published(folder: Path) -> bool:
    """Whether a folder holds a manifest that was sealed here, whatever it is of."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    try:
        with ReadFile(manifest) as file:
            return file.size <= _MAX_MANIFEST_BYTES and is_sealed(file.read(file.size))
    except InputError:
        return False


def check_text(path: str | Path) -> None:
    """Refuse a path that cannot be written down in JSON.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{os.fsencode(path)!r}: is not UTF-8; rename it") from error


def _absolute(dest: str | Path) -> Path:
    check_text(dest)
    if not os.fspath(dest) or "\0" in os.fspath(dest):
        raise UsageError(f"the output is {os.fspath(dest)!r}, wanted the name of a folder to make")
    if not Path(dest).name or Path(dest).name == "..":
        raise UsageError(f"{dest}: is not the name of a folder to make; choose a folder inside it")
    if looks_like_url(location(dest)):
        raise UsageError(f"{dest}: is a URL; what is published is a folder of this machine, to be copied from there")
    absolute = Path(dest).absolute()
    target = Path(absolute.anchor)
    for name in absolute.parts[1:]:  # nothing is made only to be left by ``..``; of what is there the system knows best
        target = target.parent if name == ".." and not os.path.lexists(target) else target / name
    return target


def _folder_above(target: Path) -> Path:
    """Return the nearest folder there is, in which those between it and ``target`` can be made."""
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    try:
        if stat.S_ISDIR(folder.stat().st_mode):
            return folder
        found = "is not a folder"
    except OSError as error:
        found = f"is a link that leads to no folder ({error.strerror})"
    raise UsageError(f"{target}: cannot be made, as {folder} {found}; choose another output")


def _check_length(target: Path) -> None:
    folder = _folder_above(target)
    longest, longest_path = os.pathconf(folder, "PC_NAME_MAX"), os.pathconf(folder, "PC_PATH_MAX")
    for name in target.relative_to(folder).parts:
        extra = len(REPLACED_SUFFIX) if name == target.name else 0
        if len(name.encode()) + extra > longest:
            raise UsageError(
                f"{target}: the name {name[:20]}... is {len(name.encode())} bytes long, "
                f"at most {longest - extra} are possible"
            )
    if len(os.fsencode(target)) + len(REPLACED_SUFFIX) + _LONGEST_INSIDE > longest_path:
        raise UsageError(f"{target}: is too long; a path has at most {longest_path} bytes, with what comes inside")


def _keep_apart(target: Path, what: str, path: Path) -> None:
    """Compare files, not names: links and bind mounts give one folder several."""
    ours, theirs = _identities(target), _identities(path)
    if not theirs:
        return  # it does not exist, which its reader will say
    places = [(target, ours[0] if target.exists() else None)]
    places += [(place, _identity(place)) for place in (work_folder(target), versions_folder(target))]
    for place, identity in places:
        if identity is not None and identity in theirs:
            relation = "is" if identity == theirs[0] else "holds"
            raise UsageError(f"{place}: {relation} the {what} {path}, which would be replaced; choose another output")
    if path.is_dir() and theirs[0] in ours:
        raise UsageError(f"{target}: lies inside the {what} {path}; choose another output")


def _identities(path: Path) -> list[tuple[int, int]]:
    """Return which file each of a path and its parents is, the path first; those that do not exist are left out."""
    real = Path(os.path.realpath(path))
    found = [_identity(each) for each in (real, *real.parents)]
    return [each for each in found if each is not None] if found[0] or not path.exists() else []


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
