"""A folder takes its final name, or another's place, in one rename."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from fct_infer.errors import OutputError
from fct_infer.storage.destination import REPLACED_SUFFIX
from fct_infer.storage.durable import machine_errors, remove_tree
from fct_infer.storage.filesystem import FileSystem, current_filesystem

_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # NFS, some FUSE file systems, old kernels


def publish_directory(source: str | Path, target: str | Path, *, replace: bool = False) -> None:
    """Give a finished directory its final name by one rename, durably.

    With ``replace``, an existing ``target`` changes places with ``source`` in one step, so that a reader sees the
    old directory or the new one, whole; what was the old one is then removed. On a file system that cannot exchange
    two directories (see :func:`can_exchange`) a reader may see none for an instant, and :func:`restore_replaced` puts
    the old one back if that instant was the last.

    Raises:
        OutputError: ``target`` exists, is not an empty directory, and ``replace`` is not set.
        ResourceError: any other I/O error.
    """
    source, target = Path(source), Path(target)
    swap_directory(source, target, replace=replace)
    remove_tree(source)


def swap_directory(source: Path, target: Path, *, replace: bool) -> None:
    """Like :func:`publish_directory`, but what ``target`` was is left at ``source``."""
    fs = current_filesystem()
    with machine_errors(target):
        fs.fsync_directory(source)
        try:
            if replace and target.exists():
                _change_places(fs, source, target)
            else:
                fs.rename(source, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise OutputError(f"{target}: exists already") from error
            raise
        fs.fsync_directory(target.parent)
        if source.parent != target.parent:
            fs.fsync_directory(source.parent)


def _change_places(fs: FileSystem, source: Path, target: Path) -> None:
    try:
        fs.exchange(source, target)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        aside = set_aside(target)
        fs.rename(target, aside)
        fs.rename(source, target)
        fs.fsync_directory(target.parent)
        fs.rename(aside, source)


def restore_replaced(target: str | Path) -> None:
    """Undo a replacement that was killed when ``target`` had no directory; the caller holds its lock."""
    target, fs = Path(target), current_filesystem()
    aside = set_aside(target)
    if not aside.is_dir():
        return
    with machine_errors(target):
        if target.exists():
            remove_tree(aside)
        else:
            fs.rename(aside, target)
        fs.fsync_directory(target.parent)


def set_aside(target: Path) -> Path:
    """Return where a directory is for an instant that cannot be exchanged."""
    return target.with_name(target.name + REPLACED_SUFFIX)


def can_exchange(folder: str | Path) -> bool:
    """Say whether two directories in ``folder`` can change places in one step; tries it with two of its own."""
    fs = current_filesystem()
    with machine_errors(Path(folder)), tempfile.TemporaryDirectory(dir=folder, prefix=".fct-probe-") as probe:
        first, second = Path(probe) / "first", Path(probe) / "second"
        first.mkdir()
        second.mkdir()
        try:
            fs.exchange(first, second)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            return False
    return True
