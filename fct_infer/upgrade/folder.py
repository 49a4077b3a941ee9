"""A folder as destination, replaced by one rename."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.connectors import open_sink
from fct_infer.errors import ResourceError
from fct_infer.gallery import Source
from fct_infer.gallery.destination import Atomicity, Job, Progress
from fct_infer.gallery.manifest import foreign_to_manifest
from fct_infer.gallery.versions import versions_bytes
from fct_infer.machine import size_text
from fct_infer.storage import can_exchange, check_place, check_replaceable, work_folder
from fct_infer.upgrade.journal import first_record, journal_file
from fct_infer.upgrade.work import FolderWork


class FolderDestination:
    """See :class:`~fct_infer.gallery.destination.Destination`.

    Args:
        dest: folder to create.
        format: of what is written, see :data:`fct_infer.connectors.SINKS`.
        inputs: what the upgrade is made from, by what each is called in a message.
        keep: versions of what is replaced that are kept for a rollback.

    Raises:
        UsageError: no folder can have this name, or an input would be lost or written into.
    """

    atomicity: Atomicity = "rename"
    holds_index = True

    def __init__(self, dest: str | Path, format: str, inputs: dict[str, str | Path], keep: int = 1) -> None:
        self.name = check_place(dest, inputs)
        self.format, self.keep = format, keep

    @property
    def is_replaced_in_one_step(self) -> bool:
        """Whether what is there now never is missing; some file systems cannot."""
        return not self.name.is_dir() or can_exchange(self.name.parent)

    def adopt(self, source: Source) -> Source:
        """A folder is no place to upgrade in."""
        return source

    def check(self, source: Source, dim: int, dtype: np.dtype[Any]) -> None:
        """Refuse what the format cannot carry."""
        open_sink(self.format, self.name, source, dim, dtype).close()

    def check_replaceable(self, *, force: bool) -> None:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        check_replaceable(self.name, foreign_to_manifest, force=force)

    def check_room(self, wanted: int) -> None:
        """Raise a ResourceError if the disk is too full; what is written already is counted as free."""
        parent, partial = next(folder for folder in self.name.parents if folder.exists()), work_folder(self.name)
        free = shutil.disk_usage(parent).free + _bytes_in(partial)
        if free < wanted:
            kept = versions_bytes(self.name)
            way_out = f"; fct-gallery versions --keep 0 drops kept versions of {size_text(kept)}" if kept else ""
            raise ResourceError(f"{parent}: {size_text(free)} free, about {size_text(wanted)} needed{way_out}")

    def begun_with(self) -> dict[str, Any]:
        """What the journal begins with."""
        identity: dict[str, Any] = (first_record(journal_file(self.name)) or {}).get("identity", {})
        return identity

    def promises(self, job: Job) -> dict[str, str]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        said = {}
        if predecessor := _bytes_in(self.name):
            said["kept"] = self._kept_text(predecessor)
        if not self.is_replaced_in_one_step:
            said["note"] = (
                "this file system cannot exchange two folders: while it is replaced, DEST is missing for an instant"
            )
        return said

    def _kept_text(self, predecessor: int) -> str:
        others = versions_bytes(self.name)
        also = f"; older versions take {size_text(others)}" if others else ""
        if not self.keep:
            return f"nothing (--keep 0): what DEST is now, {size_text(predecessor)}, is dropped then{also}"
        return f"what DEST is now, {size_text(predecessor)}, stays beside it for rollback until --keep 0{also}"

    def check_shared(self) -> None:
        """Whoever sees the folder can write into it."""

    def open_work(self, job: Job, *, restart: bool, force: bool, progress: Progress | None) -> FolderWork:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        return FolderWork(job, self, restart=restart, force=force, progress=progress)


def _bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder; 0 if there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
