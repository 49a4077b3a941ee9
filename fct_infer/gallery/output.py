"""Where a gallery is made: ``GALLERY.partial``, which becomes GALLERY by one rename, or nothing at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fct_infer.errors import OutputError, UsageError
from fct_infer.storage import FileLock, publish_directory, remove_tree

_GALLERY_FOLDERS = {"embeddings", "side_information", "ids"}


@contextmanager
def new_gallery(dest: str | Path, inputs: Iterable[str | Path], *, force: bool = False) -> Iterator[Path]:
    """Yield a folder to fill; publish it as ``dest`` when the block ends, or remove it if the block raises.

    GALLERY.partial/lock      held meanwhile
    GALLERY.partial/gallery/  becomes GALLERY by one rename

    What a killed run left there is replaced; unfinished work of an upgrade is not.

    Args:
        dest: the gallery to make.
        inputs: what it is made from, which must not be replaced by it.
        force: let ``dest`` replace a gallery that is there, in one step.

    Raises:
        OutputError: ``dest`` exists and is not to be replaced or is more than a gallery; another process makes it.
        UsageError: an input lies in the gallery that would be replaced.
        ResourceError: disk full or another I/O error.
    """
    target = Path(dest).absolute()
    _refuse_existing(target, force)
    if inside := next((path for path in inputs if _is_inside(Path(path), target)), None):
        raise UsageError(f"{inside}: lies in {dest}, which would be replaced; choose another output")
    partial = target.with_name(target.name + ".partial")
    if partial.exists() and not _names(partial) <= {"lock", "gallery"}:
        raise OutputError(
            f"{partial}: exists and is not what a killed run leaves behind; remove it, or choose another output"
        )
    lock = FileLock(partial / "lock", str(target))
    work = partial / "gallery"
    try:
        remove_tree(work)
        yield work
        publish_directory(work, target, replace=force)
    finally:
        try:
            remove_tree(work)
        finally:
            lock.release()
            with suppress(OSError):  # the next process is at work in it already
                partial.rmdir()


def _refuse_existing(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink():
        raise OutputError(f"{target}: is a link, so it is not replaced")
    found = _names(target)
    if found and not force:
        raise OutputError(f"{target}: exists already; --force (force=True) replaces it once the new one is complete")
    if foreign := sorted(found - _GALLERY_FOLDERS):
        raise OutputError(f"{target}: holds more than a gallery ({foreign[0]}), so it is not replaced")


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise OutputError(f"{folder}: exists and cannot be read as a folder: {error.strerror}") from error


def _is_inside(path: Path, folder: Path) -> bool:
    real = Path(os.path.realpath(folder))
    return real in (resolved := Path(os.path.realpath(path)), *resolved.parents)
