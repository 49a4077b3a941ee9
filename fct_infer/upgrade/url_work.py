"""An object store as destination, and the unfinished upgrade of it there.

DEST/.partial/lease-N, beat-TOKEN   held while an upgrade runs, see :mod:`fct_infer.storage.lease`
DEST/.partial/begin.json, TOKEN/    what is durable so far, see :mod:`fct_infer.upgrade.object_journal`
DEST/versions/TOKEN/                becomes the gallery when DEST/published.json names it
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.connectors import open_sink
from fct_infer.errors import ArtifactError, GalleryError, OutputError, ResourceError, UsageError
from fct_infer.gallery import MANIFEST_NAME, GalleryManifest, Part, Source
from fct_infer.gallery.destination import Atomicity, Job, Progress
from fct_infer.gallery.sink import Receipt
from fct_infer.gallery.url_place import WORK, Pointer, UrlPlace, foreign_to_pointer, read_pointer
from fct_infer.storage import RemotePath, location, remote_errors, sha256_of_file
from fct_infer.storage.lease import Lease
from fct_infer.storage.objects import check_writable, drop_unfinished, remove_below, remove_objects, together
from fct_infer.storage.versions import ID_DIGITS
from fct_infer.upgrade.object_journal import ObjectJournal, begin_record
from fct_infer.upgrade.work import FolderWork


class UrlDestination:
    """See :class:`~fct_infer.gallery.destination.Destination`.

    Args:
        dest: what all objects' names begin with.
        format: of what is written, see :data:`fct_infer.connectors.SINKS`.
        inputs: what the upgrade is made from, by what each is called in a message.
        keep: versions of what is replaced that are kept for a rollback.

    Raises:
        UsageError: nothing is written to such URLs, or an input lies there.
    """

    atomicity: Atomicity = "manifest-last"
    holds_index = True

    def __init__(self, dest: RemotePath, format: str, inputs: dict[str, str | Path], keep: int = 1) -> None:
        check_writable(dest)
        for what, place in inputs.items():
            path = location(place)
            if isinstance(path, RemotePath) and (path.is_relative_to(dest) or dest.is_relative_to(path)):
                raise UsageError(f"{dest}: and the {what} {path} lie in each other; choose another output")
        self.name, self.format, self.keep = dest, format, keep
        self.place = UrlPlace(dest)

    def adopt(self, source: Source) -> Source:
        """A store is no place to upgrade in."""
        return source

    def check(self, source: Source, dim: int, dtype: np.dtype[Any]) -> None:
        """Refuse what the format cannot carry."""
        open_sink(self.format, self.name, source, dim, dtype).close()

    def check_replaceable(self, *, force: bool) -> None:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        if reason := foreign_to_pointer(self.name):
            raise OutputError(f"{self.name}: {reason}, so it is not replaced")
        if not force and read_pointer(self.name) is not None:
            raise OutputError(
                f"{self.name}: exists already; --force (force=True) replaces it once the new one is complete"
            )

    def check_room(self, wanted: int) -> None:
        """A store does not say how much it still takes."""

    def begun_with(self) -> dict[str, Any]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        with suppress(OutputError):
            identity: dict[str, Any] = (begin_record(self.place.below(WORK)) or {}).get("identity", {})
            return identity
        return {}

    def promises(self, job: Job) -> dict[str, str]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        kept = self.place.kept()
        said = {
            "readers": "see the old gallery or the new one, whole, through published.json, which is put last; "
            "what lists DEST by itself sees unfinished versions, too",
            "writers": "of two upgrades one goes on, by an object created only where there is none; a store that "
            "cannot do that is refused at the start",
            "resumes": "from any machine that reads SOURCE and DEST: which parts are done is noted in DEST/.partial",
            "lasts": "as long as the store keeps what it has confirmed",
        }
        if self.name.scheme == "memory":
            said |= {"resumes": "in this process only", "lasts": "no longer than this process"}
        if self.place.current() is not None:
            what = "stays beside it for rollback until --keep 0" if self.keep else "is dropped then (--keep 0)"
            said["kept"] = f"what DEST is now {what}; {len(kept)} older versions are there"
        return said

    def check_shared(self) -> None:
        """Refuse what is a store of this process only."""
        if self.name.scheme == "memory":
            raise UsageError(f"{self.name}: other processes do not see it; --executor threads writes there")

    def open_work(self, job: Job, *, restart: bool, force: bool, progress: Progress | None) -> UrlWork:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        return UrlWork(job, self, restart=restart, force=force, progress=progress)


class UrlWork(FolderWork):
    """The same work as a folder's, with another lock, another journal and another last step."""

    destination: UrlDestination
    journal: ObjectJournal
    root: RemotePath
    gallery: RemotePath

    def _take(self) -> None:
        self._place = self.destination.place
        self.root = self._place.below(WORK)
        rows = self.plan.gallery.schema.rows

        def waiting() -> None:
            if self._progress:
                self._progress("wait whether another upgrade of it is alive", 0, rows)

        self._lease = Lease(self.root, str(self.dest), waiting)
        self._open_journal()

    def _open_journal(self) -> None:
        names = [part.name for part in self.plan.gallery.parts()]
        self.journal = ObjectJournal(self.root, names, self._lease.check)
        self.gallery = self._place.folder(self.journal.token)
        self.trained_index = self.root / self.journal.token / "trained.faiss"

    def record(self, part: Part, receipt: Receipt) -> None:
        """Note a part, all of whose objects are there and as long as they were written."""
        stored = {name: self._stored(name) for name in receipt}
        for name, file in receipt.items():
            if stored[name]["size"] != file.size:
                raise ResourceError(
                    f"{self.gallery / name}: {file.size} bytes were put, {stored[name]['size']} are there"
                )
        files = {name: vars(file) for name, file in receipt.items()}
        self.journal.append("shard", name=part.name, rows=part.rows, files=files, stored=stored)

    def open_written(self, parts: Sequence[Part]) -> Source:
        """See :meth:`FolderWork.open_written`; a store may be slow to list what it holds."""
        for wait in remote_errors.WAITS:
            with suppress(GalleryError):
                return super().open_written(parts)
            time.sleep(wait)
        return super().open_written(parts)

    def finish(self, infos: dict[str, Any], manifest: GalleryManifest) -> None:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        finished = self.finished
        for name in self._damaged(finished):
            self.journal.append("damaged", name=name)
            raise ResourceError(f"{self.gallery}: shard {name} is not what was put there; the same command repeats it")
        super().finish(infos, manifest)

    def publish(self) -> None:
        """Let DEST/published.json name the version, then drop the rest of the work."""
        manifest = sha256_of_file(self.gallery / MANIFEST_NAME)
        if not self.is_ready:
            self.journal.append("publishing", manifest=manifest)
        self._lease.check()
        if not self.is_published:
            self.destination.check_replaceable(force=self.force)
        self._place.publish(self.journal.token, manifest[:ID_DIGITS], self._keep)
        self.discard()

    def clear(self) -> None:
        """Drop all unfinished work, keeping the lease."""
        self._lease.check()
        if not self._is_in_use():
            remove_below(self.gallery)
        remove_below(self.root / self.journal.token)
        remove_objects([self.root / "begin.json"])
        self._open_journal()

    def discard(self) -> None:
        """Drop everything; a retry then starts from nothing."""
        self.clear()

    def close(self) -> None:
        """Let go of the lease; what is noted stays for the next run, here or elsewhere."""
        self._lease.release()

    def _is_in_use(self) -> bool:
        """Whether the version was published, be it that another one is shown now."""
        pointer = self._pointer()
        return pointer is not None and any(each.folder == self.journal.token for each in pointer.entries)

    def _pointer(self) -> Pointer | None:
        try:
            return read_pointer(self._place.dest)
        except ArtifactError as error:
            raise OutputError(f"{self.dest}: cannot be replaced: {error}") from error

    def _was_published(self) -> bool:
        """Whether DEST is what this work was for: killed after the last put, before all of the work was dropped."""
        pointer, begun = self._pointer(), self.journal.all("begin")
        is_shown = pointer is not None and pointer.current.folder == self.journal.token
        return is_shown and bool(begun) and begun[0]["identity"] == self.plan.identity()

    def _is_left_over(self) -> bool:
        return self._is_in_use() or super()._is_left_over()

    def _damaged(self, finished: Mapping[str, dict[str, Any]]) -> list[str]:
        """Ask the store what each object is now, which is not read again if it says that it is the same."""
        names = list(finished)
        intact = together(lambda name: self._is_as_stored(finished[name]), names)
        return [name for name, is_intact in zip(names, intact, strict=True) if not is_intact]

    def _is_as_stored(self, record: dict[str, Any]) -> bool:
        """Whether a part is what was written.

        A worker that was given up may have put it once more: the same bytes, by another etag or at another time.
        """
        try:
            now = {name: self._stored(name) for name in record["files"]}
        except ResourceError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise
        says_so = all(each["etag"] or each["modified"] for each in now.values())
        return (says_so and now == record.get("stored")) or self._are_intact(record["files"])

    def _stored(self, name: str) -> dict[str, Any]:
        """Return what the store says of an object."""
        path: RemotePath = self.gallery / name
        try:
            found = path.info()
        except FileNotFoundError as error:
            raise ResourceError(f"{path}: was put there and is not there") from error
        return {key: found[key] for key in ("size", "etag", "modified")}

    def _drop_unjournalled_files(self) -> None:
        drop_unfinished(self.gallery)
        if self.is_ready:
            return
        kept = {name for record in self.finished.values() for name in record["files"]}
        with suppress(FileNotFoundError):
            found = list(self.gallery.rglob("*"))
            remove_objects([path for path in found if path.relative_to(self.gallery).as_posix() not in kept])
