"""The unfinished upgrade of a folder on disk, ``DEST.partial``.

DEST.partial/lock            held while an upgrade runs
DEST.partial/journal.jsonl   what is durable so far
DEST.partial/trained.faiss   the trained, empty index
DEST.partial/index_parts/    parts of the index, until they are gathered
DEST.partial/gallery/        becomes DEST by one rename
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.spec import FolderSinkSpec
from fct_infer.errors import GalleryError, OutputError
from fct_infer.gallery import MANIFEST_NAME, GalleryManifest, Part, Sink, Source, read_manifest, sample_rows
from fct_infer.gallery.destination import Job, Progress, check_same_upgrade
from fct_infer.gallery.sink import Receipt
from fct_infer.gallery.source import Rows
from fct_infer.gallery.versions import INFOS_NAME, drop_old_versions
from fct_infer.storage import (
    ReadFile,
    Staging,
    remove_tree,
    sha256_of_file,
    work_folder,
    write_json,
    write_pieces,
)
from fct_infer.storage.closing import closed_if_refused
from fct_infer.storage.versions import kept_versions, version_id
from fct_infer.upgrade.journal import Journal, journal_file

_OTHERS = ("journal.jsonl", "journal.jsonl.tmp", "trained.faiss", "trained.faiss.tmp", "index_parts")
_FOREIGN = "exists and is not unfinished work of fct-upgrade-gallery"


class FilesDestination(Protocol):
    """What :class:`FolderWork` has to know of where its files go."""

    format: str
    keep: int

    @property
    def name(self) -> Path:
        """The folder, or the URL of one."""

    def check_replaceable(self, *, force: bool) -> None:
        """See :class:`~fct_infer.gallery.destination.Destination`."""


class FolderWork:
    """Owner of ``DEST.partial``; holds its lock until closed. See :class:`~fct_infer.gallery.destination.Work`.

    Args:
        plan: of the upgrade.
        destination: where DEST is.
        restart: drop unfinished work instead of resuming it.
        force: replace a finished DEST.
        progress: told of the rows whose finished files have been compared with their digests.

    Attributes:
        is_published: a run that was killed after its rename has made DEST already; only cleaning up is left to do.
        repeated: shards whose finished files were found damaged, and which are therefore upgraded again.

    Raises:
        OutputError: DEST exists and is not to be replaced, another upgrade of it runs, or unfinished work there
            belongs to other inputs or settings.
    """

    def __init__(
        self, plan: Job, destination: FilesDestination, *, restart: bool, force: bool, progress: Progress | None
    ) -> None:
        self.plan, self.destination, self.force, self._progress = plan, destination, force, progress
        self.dest: Path = destination.name
        self._keep = destination.keep
        self.is_published = False
        self.repeated: list[str] = []
        self._take()
        with closed_if_refused(self):
            self.is_published = not restart and self._was_published()
            if self.is_published:
                return
            self._refuse_existing_dest()  # it may have been published while we waited for the disk
            if restart or self._is_left_over():
                self.clear()
            self._begin_or_resume()

    def _take(self) -> None:
        """Keep others out, and open the journal of what an earlier run has achieved."""
        self.root = work_folder(self.dest)
        self.gallery = self.root / "gallery"
        self.trained_index = self.root / "trained.faiss"
        if not self.root.exists():
            self._refuse_existing_dest()
        self._staging = Staging(self.dest, "gallery", others=_OTHERS, foreign=_FOREIGN, keeps_versions=True)
        with closed_if_refused(self._staging):
            self.journal = Journal(journal_file(self.dest))

    @property
    def index_parts(self) -> Path:
        """Where parts of the index wait that are gathered into one file."""
        return self.trained_index.parent / "index_parts"

    @property
    def finished(self) -> Mapping[str, dict[str, Any]]:
        """Journal records of the shards that are done, by shard; where there is an index, they are the first ones."""
        return self.journal.finished()

    def open_sink(self) -> Sink:
        """Return what writes the new rows into the folder that will be DEST, and reads them from there."""
        return self.sink_spec().open(self.plan.gallery)

    def sink_spec(self) -> FolderSinkSpec:
        """See :class:`~fct_infer.gallery.destination.SharedWork`."""
        job = self.plan
        return FolderSinkSpec(self.destination.format, self.gallery.absolute(), job.new_dim, job.dtype, job.new_model)

    def record(self, part: Part, receipt: Receipt) -> None:
        """Journal a part, all of whose files are durable."""
        files = {name: vars(file) for name, file in receipt.items()}
        self.journal.append("shard", name=part.name, rows=part.rows, files=files)

    def open_written(self, parts: Sequence[Part]) -> Source:
        """Open what was written of some parts and check that rows and ids are those of the input.

        Raises:
            GalleryError: something is missing or has the wrong size.
        """
        with closing(self.open_sink()) as sink:
            written = sink.as_source()
        pairs = zip(written.parts(), parts, strict=False)
        if len(written.parts()) != len(parts) or any(
            (new.name, new.rows) != (part.name, part.rows) for new, part in pairs
        ):
            raise GalleryError(f"{self.gallery}: the shards written are not those of {self.plan.gallery.path}")
        if (written.schema.id_dtype is None) != (self.plan.gallery.schema.id_dtype is None):
            raise GalleryError(f"{self.gallery}: ids were not carried over")
        return written

    def drop_unrecorded(self) -> None:
        """Drop what a writer that was given up has left, so that nothing is published but what is recorded."""
        self._drop_unjournalled_files()

    def settle(self) -> None:
        """Files that change while they are read are refused at the end, see :meth:`Plan.check_unchanged`."""

    def read_back(self, rows: int, seed: int) -> tuple[Sequence[int | str], Rows, Rows | None, Rows]:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        return self.read_back_rows(sample_rows(self.plan.gallery.schema.rows, rows, seed))

    def read_back_rows(self, chosen: NDArray[np.int64]) -> tuple[Sequence[int | str], Rows, Rows | None, Rows]:
        """Like :meth:`read_back`, of rows by their sorted numbers."""
        with own_work():
            written = self.open_written(self.plan.gallery.parts())
            new, _ = written.read_rows(chosen, with_side=False)
        old, side = self.plan.gallery.read_rows(chosen, with_side=self.plan.reads_side)
        return chosen.tolist(), old, side, new

    def infos(self) -> dict[str, Any]:
        """What upgrade_infos.json says, before the rename or after it."""
        folder = self.gallery if (self.gallery / INFOS_NAME).exists() else self.dest
        with ReadFile(folder / INFOS_NAME) as file:
            infos: dict[str, Any] = json.loads(file.read(file.size))
        return infos

    def finish(self, infos: dict[str, Any], manifest: GalleryManifest) -> None:
        """Write infos and manifest; after this only the rename is missing."""
        files = {**manifest.files, INFOS_NAME: write_json(self.gallery / INFOS_NAME, infos)}
        write_pieces(self.gallery / MANIFEST_NAME, replace(manifest, files=files).pieces())

    @property
    def is_ready(self) -> bool:
        """Whether all that is left is the rename."""
        return self.journal.has("publishing")

    def publish(self) -> None:
        """Make the finished folder DEST by one rename, then drop old versions and the rest of the work."""
        if self.is_published:
            predecessor = kept_versions(self.dest).get(self.journal.all("publishing")[-1].get("replaces", ""))
        else:
            manifest, replaces = sha256_of_file(self.gallery / "manifest.json"), version_id(self.dest) or ""
            self.journal.append("publishing", manifest=manifest, replaces=replaces)
            predecessor = self._staging.publish(replace=self.force, keep=self._keep > 0)
        drop_old_versions(self.dest, self._keep, predecessor)
        self.discard()

    def clear(self) -> None:
        """Drop all unfinished work, keeping the lock."""
        for path in (self.gallery, self.trained_index, self.index_parts, journal_file(self.dest)):
            remove_tree(path)
        self.journal = Journal(journal_file(self.dest))

    def failed_gate(self) -> None:
        """Remember that the work may not be published as it is: with other settings it is begun again unasked."""
        if not self.journal.has("gate failed"):
            self.journal.append("gate failed")

    def discard(self) -> None:
        """Drop everything, the folder included: a retry then starts from nothing."""
        self.clear()  # the journal last: it says whether DEST is what this work was for
        remove_tree(self.root)

    def close(self) -> None:
        """Let go of the lock; what is journalled stays for the next run."""
        self._staging.close()

    def _refuse_existing_dest(self) -> None:
        self.destination.check_replaceable(force=self.force)

    def _was_published(self) -> bool:
        """Whether DEST is what this work was for: killed after the rename, before all of the work was dropped."""
        records, manifest = self.journal.all("publishing"), self.dest / "manifest.json"
        if not records or not manifest.is_file() or sha256_of_file(manifest) != records[-1]["manifest"]:
            return False
        begun = self.journal.all("begin")
        return bool(begun) and begun[0]["identity"] == self.plan.identity()

    def _is_left_over(self) -> bool:
        """A crash after the rename leaves a journal behind that speaks of a folder which is not there any more."""
        records, manifest = self.journal.all("publishing"), self.gallery / "manifest.json"
        return bool(records) and (not manifest.exists() or sha256_of_file(manifest) != records[-1]["manifest"])

    def _begin_or_resume(self) -> None:
        identity = self.plan.identity()
        begun = self.journal.all("begin")
        different = bool(begun) and begun[0]["identity"] != identity
        # Work that failed a gate cannot be published as it is, so it need not be kept for the settings it had.
        if not begun or (different and self.journal.has("gate failed")):
            self.clear()
            self.journal.append("begin", identity=identity)
            return
        check_same_upgrade(str(self.root), begun[0]["identity"], self.plan)
        self._drop_damaged_work()
        self._drop_unjournalled_files()

    def _drop_damaged_work(self) -> None:
        """Forget finished shards whose files are no longer what was written: they are upgraded again.

        An index takes rows in order, so all behind a damaged shard are too, where there is one.
        """
        if self.is_ready:
            self._refuse_damaged_result()
            return
        finished = self.finished
        damaged = self._damaged(finished)
        if not damaged:
            return
        names = list(finished)
        self.repeated = names[names.index(damaged[0]) :] if self.plan.is_in_order else damaged
        for name in self.repeated:
            self.journal.append("damaged", name=name)

    def _damaged(self, finished: Mapping[str, dict[str, Any]]) -> list[str]:
        """Return which finished parts are no longer what was written."""
        rows, checked, damaged = {part.name: part.rows for part in self.plan.gallery.parts()}, 0, []
        for name, record in finished.items():
            self._report(checked)
            if not self._are_intact(record["files"]):
                damaged.append(name)
            checked += rows[name]
        return damaged

    def _refuse_damaged_result(self) -> None:
        """All that is left is the rename, so all that its manifest lists has to be what was written, the index too."""
        files = read_manifest(self.gallery).files
        checked, whole = 0, max(1, sum(file.size for file in files.values()))
        for name, file in files.items():
            self._report(self.plan.gallery.schema.rows * checked // whole)
            checked += file.size
            if not self._are_intact({name: vars(file)}):
                raise OutputError(f"{self.gallery / name}: is damaged; begin again with --restart")

    def _report(self, rows: int) -> None:
        if self._progress:
            self._progress("check finished work", rows, self.plan.gallery.schema.rows)

    def _are_intact(self, files: dict[str, dict[str, Any]]) -> bool:
        for name, file in files.items():
            with suppress(GalleryError):
                path = self.gallery / name
                if path.is_file() and path.stat().st_size == file["size"] and sha256_of_file(path) == file["sha256"]:
                    continue
            return False
        return True

    def _drop_unjournalled_files(self) -> None:
        if self.is_ready:
            return
        kept = {name for record in self.finished.values() for name in record["files"]}
        kept |= {f"index/{record['name']}.faiss" for record in self.journal.all("index part")}
        for folder, _, names in os.walk(self.gallery):
            for path in (Path(folder, name) for name in names):
                if path.relative_to(self.gallery).as_posix() not in kept and path.is_file():
                    remove_tree(path)


@contextmanager
def own_work() -> Iterator[None]:
    """What is wrong with our own files is no fault of the gallery, and no reason to drop what is finished."""
    try:
        yield
    except GalleryError as error:
        raise OutputError(f"unfinished work is damaged: {error}; begin again with --restart") from error
