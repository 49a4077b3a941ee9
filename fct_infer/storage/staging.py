"""Lock, stage, publish: a folder is made in ``DEST.partial`` by one process, and becomes DEST by one rename."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fct_infer.errors import OutputError, ResourceError
from fct_infer.storage.destination import work_folder
from fct_infer.storage.durable import FileLock, remove_tree
from fct_infer.storage.exchange import publish_directory, restore_replaced
from fct_infer.storage.versions import PUBLISHING, publish_version, settle

_LOCK = "lock"
_TRIES = 10


class Staging:
    """Owner of ``DEST.partial``; holds its lock until closed. A context manager.

    DEST.partial/lock    of two processes one holds it, the other says so
    DEST.partial/NAME/   becomes DEST

    Args:
        dest: as :func:`~fct_infer.storage.check_place` returned it.
        name: of the folder that becomes it.
        others: what else the command keeps there.
        foreign: what to say if anything else lies there; None leaves it there.
        keeps_versions: of DEST; see :mod:`fct_infer.storage.versions`.

    Attributes:
        folder: to be filled; what a killed process left is still in it.

    Raises:
        OutputError: another process makes the same, or ``DEST.partial`` is something else.
        ResourceError: an I/O error.
    """

    def __init__(
        self,
        dest: Path,
        name: str,
        *,
        others: Collection[str] = (),
        foreign: str | None = None,
        keeps_versions: bool = False,
    ) -> None:
        self.dest, self.root = dest, work_folder(dest)
        self.folder = self.root / name
        known, prefixes = {name, *others}, (PUBLISHING,) if keeps_versions else ()
        if foreign is not None and any(
            path.name not in known and not path.name.startswith(prefixes) for path in self._others()
        ):
            raise OutputError(f"{self.root}: {foreign}")
        try:
            self._lock: FileLock | None = None
            self._lock = self._locked()
            if keeps_versions:
                settle(dest, name)
            else:
                restore_replaced(dest)
        except BaseException:
            self.close()
            raise

    def clear(self) -> None:
        """Drop all that lies in ``DEST.partial``, the lock aside."""
        for path in self._others():
            remove_tree(path)

    def publish(self, *, replace: bool, keep: bool = False) -> Path | None:
        """Let the folder become DEST; return where what DEST was is kept, if it was something and is to be kept.

        Raises:
            OutputError: DEST exists and ``replace`` is not set.
            ResourceError: an I/O error.
        """
        if keep:
            return publish_version(self.folder, self.dest, replace=replace)
        publish_directory(self.folder, self.dest, replace=replace)
        return None

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

    def _locked(self) -> FileLock:
        """Take the lock; whoever had it may just be removing the folder that we want to make it in."""
        for _ in range(_TRIES):
            try:
                return FileLock(self.root / _LOCK, str(self.dest))
            except ResourceError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        raise OutputError(f"{self.dest} is in use by another process")

    def _others(self) -> list[Path]:
        """Return what lies in ``DEST.partial`` beside the lock."""
        if not self.root.exists():
            return []
        if not self.root.is_dir():
            raise OutputError(f"{self.root}: exists and is not a folder")
        try:
            paths = list(self.root.iterdir())
        except FileNotFoundError:  # it was there a moment ago
            return []
        return [path for path in paths if path.name != _LOCK and not path.name.startswith(_LOCK + ".")]
