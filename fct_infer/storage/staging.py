"""Lock, stage, publish: a folder is made in ``DEST.partial`` by one process, and becomes DEST by one rename."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fct_infer.errors import OutputError
from fct_infer.storage.destination import REPLACED_SUFFIX, work_folder
from fct_infer.storage.durable import FileLock, machine_errors, remove_tree
from fct_infer.storage.filesystem import FileSystem, current_filesystem

_LOCK = "lock"
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # NFS, some FUSE file systems, old kernels


class Staging:
    """Owner of ``DEST.partial``; holds its lock until closed. A context manager.

    DEST.partial/lock    of two processes one holds it, the other says so
    DEST.partial/NAME/   becomes DEST

    Args:
        dest: as :func:`~fct_infer.storage.check_place` returned it.
        name: of the folder that becomes it.
        others: what else the command keeps there.
        foreign: what to say if anything else lies there; None drops it.

    Attributes:
        folder: to be filled; what a killed process left is still in it.

    Raises:
        OutputError: another process makes the same, or ``DEST.partial`` is something else.
        ResourceError: an I/O error.
    """

    def __init__(self, dest: Path, name: str, *, others: Collection[str] = (), foreign: str | None = None) -> None:
        self.dest, self.root = dest, work_folder(dest)
        self.folder = self.root / name
        strange = self._strange({name, *others})
        if strange is not None and foreign is not None:
            raise OutputError(f"{self.root}: {foreign}")
        try:
            self._lock: FileLock | None = None
            self._lock = FileLock(self.root / _LOCK, str(dest))
            for path in strange or ():
                remove_tree(path)
            restore_replaced(dest)
        except BaseException:
            self.close()
            raise

    def publish(self, *, replace: bool) -> None:
        """Let the folder become DEST; see :func:`publish_directory`."""
        publish_directory(self.folder, self.dest, replace=replace)

    def close(self) -> None:
        """Let go of the lock, and of ``DEST.partial`` if nothing else is in it."""
        if self._lock is not None:
            self._lock.release()
        with suppress(OSError):  # something is, or the next process is at work in it already
            self.root.rmdir()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _strange(self, known: Collection[str]) -> list[Path] | None:
        """Return what lies in ``DEST.partial`` and has no business there; None if nothing."""
        if not self.root.exists():
            return None
        if not self.root.is_dir():
            raise OutputError(f"{self.root}: exists and is not a folder")
        with machine_errors(self.root):
            paths = sorted(self.root.iterdir())
        is_lock = (path.name == _LOCK or path.name.startswith(_LOCK + ".") for path in paths)
        return [path for path, lock in zip(paths, is_lock, strict=True) if not lock and path.name not in known] or None


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
