"""The unfinished upgrade on disk: ``DEST.partial`` with its lock, its journal and the folder that will be DEST.

DEST.partial/lock            held while an upgrade runs
DEST.partial/journal.jsonl   what is durable so far
DEST.partial/trained.faiss   the trained, empty index
DEST.partial/gallery/        becomes DEST by one rename
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fct_infer.errors import GalleryError, OutputError
from fct_infer.gallery import read_manifest
from fct_infer.gallery.manifest import foreign_to_manifest
from fct_infer.gallery.versions import drop_old_versions
from fct_infer.storage import Staging, check_replaceable, remove_tree, sha256_of_file, work_folder
from fct_infer.upgrade.journal import Journal, journal_file
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.stream import Progress

_OTHERS = ("journal.jsonl", "journal.jsonl.tmp", "trained.faiss", "trained.faiss.tmp")
_FOREIGN = "exists and is not unfinished work of fct-upgrade-gallery"


class Work:
    """Owner of ``DEST.partial``; holds its lock until closed.

    Args:
        plan: of the upgrade.
        restart: drop unfinished work instead of resuming it.
        force: replace a finished DEST.
        progress: told of the rows whose finished files have been compared with their digests.

    Attributes:
        is_published: a run that was killed after its rename has made DEST already; only cleaning up was left to do.
        repeated: shards whose finished files were found damaged, and which are therefore upgraded again.

    Raises:
        OutputError: DEST exists and is not to be replaced, another upgrade of it runs, or unfinished work there
            belongs to other inputs or settings.
    """

    def __init__(
        self, plan: Plan, *, restart: bool = False, force: bool = False, progress: Progress | None = None
    ) -> None:
        self.plan, self.force, self._progress = plan, force, progress
        self.root = work_folder(plan.dest)
        self.gallery = self.root / "gallery"
        self.trained_index = self.root / "trained.faiss"
        self.is_published = False
        self.repeated: list[str] = []
        if not self.root.exists():
            self._refuse_existing_dest()
        self._staging = Staging(plan.dest, "gallery", others=_OTHERS, foreign=_FOREIGN, keeps_versions=True)
        try:
            self.journal = Journal(journal_file(self.plan.dest))
            self.is_published = not restart and self._was_published()
            if self.is_published:
                return
            self._refuse_existing_dest()  # it may have been published while we waited for the disk
            if restart or self._is_left_over():
                self.clear()
            self._begin_or_resume()
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> dict[str, dict[str, Any]]:
        """Journal records of the shards that are done, by shard; where there is an index, they are the first ones."""
        done: dict[str, dict[str, Any]] = {}
        for record in self.journal.records:
            if record["kind"] == "shard":
                done[record["name"]] = record
            elif record["kind"] == "damaged":
                del done[record["name"]]
        return done

    @property
    def is_ready(self) -> bool:
        """Whether all that is left is the rename."""
        return bool(self.journal.all("publishing"))

    def publish(self) -> None:
        """Make the finished folder DEST by one rename, then drop the rest of the work."""
        if not self.is_ready:
            self.journal.append("publishing", manifest=sha256_of_file(self.gallery / "manifest.json"))
        keep = self.plan.settings.keep
        predecessor = self._staging.publish(replace=self.force, keep=keep > 0)
        drop_old_versions(self.plan.dest, keep, predecessor)
        self.discard()

    def clear(self) -> None:
        """Drop all unfinished work, keeping the lock."""
        for path in (self.gallery, self.trained_index, journal_file(self.plan.dest)):
            remove_tree(path)
        self.journal = Journal(journal_file(self.plan.dest))

    def failed_gate(self) -> None:
        """Remember that the work may not be published as it is: with other settings it is begun again unasked."""
        if not self.journal.all("gate failed"):
            self.journal.append("gate failed")

    def discard(self) -> None:
        """Drop everything, the folder included: a retry then starts from nothing."""
        self.clear()  # the journal last: it says whether DEST is what this work was for
        remove_tree(self.root)

    def close(self) -> None:
        """Let go of the lock; what is journalled stays for the next run."""
        self._staging.close()

    def _refuse_existing_dest(self) -> None:
        check_replaceable(self.plan.dest, foreign_to_manifest, force=self.force)

    def _was_published(self) -> bool:
        """Whether DEST is what this work was for: killed after the rename, before all of the work was dropped."""
        records, manifest = self.journal.all("publishing"), self.plan.dest / "manifest.json"
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
        different = _differences(begun[0]["identity"], identity) if begun else []
        # Work that failed a gate cannot be published as it is, so it need not be kept for the settings it had.
        if not begun or (different and self.journal.all("gate failed")):
            self.clear()
            self.journal.append("begin", identity=identity)
            return
        if different:
            raise OutputError(
                f"{self.root} holds unfinished work of another upgrade; different: {'; '.join(different)}. "
                f"{_other_device(begun[0]['identity'], identity, self.plan.transformation.no_card)}"
                "--restart drops it and begins again"
            )
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
        rows, checked, damaged = {part.name: part.rows for part in self.plan.gallery.parts()}, 0, []
        for name, record in finished.items():
            self._report(checked)
            if not self._are_intact(record["files"]):
                damaged.append(name)
            checked += rows[name]
        if not damaged:
            return
        names = list(finished)
        self.repeated = names[names.index(damaged[0]) :] if self.plan.index else damaged
        for name in self.repeated:
            self.journal.append("damaged", name=name)

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
        for path in self.gallery.rglob("*"):
            if path.is_file() and path.relative_to(self.gallery).as_posix() not in kept:
                remove_tree(path)


def _other_device(before: dict[str, Any], now: dict[str, Any], no_card: str | None) -> str:
    """Say how to go on if it is the device that changed, for with ``--device auto`` nobody asked for another one."""
    was, new = (each["settings"].get("device") for each in (before, now))
    if was == new:
        return ""
    why = f"Now {no_card}. " if no_card else ""
    return f"{why}A CPU and a card differ in the last bits: --device {was} goes on, "


def _differences(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    """Name the leaves in which two identities differ, at most five of them."""
    found: list[str] = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{where}{key} ")
        elif old != new:
            found.append(f"{where}{key} (was {_short(old)}, is {_short(new)})")
    return found[:5] + (["..."] if len(found) > 5 else [])


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 20 else text[:12] + "..."
