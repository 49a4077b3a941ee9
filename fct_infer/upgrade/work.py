"""The unfinished upgrade on disk: ``DEST.partial`` with its lock, its journal and the folder that will be DEST.

DEST.partial/lock            held while an upgrade runs
DEST.partial/journal.jsonl   what is durable so far
DEST.partial/trained.faiss   the trained, empty index
DEST.partial/gallery/        becomes DEST by one rename
"""

from __future__ import annotations

from typing import Any

from fct_infer.errors import OutputError
from fct_infer.storage import FileLock, publish_directory, remove_tree, sha256_of_file
from fct_infer.upgrade.journal import Journal, journal_file, work_folder
from fct_infer.upgrade.plan import Plan


class Work:
    """Owner of ``DEST.partial``; holds its lock until closed.

    Raises:
        OutputError: DEST exists and is not to be replaced, another upgrade of it runs, or unfinished work there
            belongs to other inputs or settings, or lacks what was finished.
    """

    def __init__(self, plan: Plan, *, restart: bool = False, force: bool = False) -> None:
        self.plan, self.force = plan, force
        self.root = work_folder(plan.dest)
        self.gallery = self.root / "gallery"
        self.trained_index = self.root / "trained.faiss"
        self._refuse_foreign_folder()
        self._refuse_existing_dest()
        self._lock = FileLock(self.root / "lock", f"{plan.dest}")
        try:
            self._refuse_existing_dest()  # it may have been published while we waited for the disk
            if restart:
                self.clear()
            self.journal = Journal(journal_file(self.plan.dest))
            if self._was_published():
                self.clear()
            self._begin_or_resume()
        except BaseException:
            self._lock.release()
            raise

    @property
    def finished(self) -> dict[str, dict[str, Any]]:
        """Journal records of the shards that are done, by shard; where there is an index, they are the first ones."""
        return {record["name"]: record for record in self.journal.all("shard")}

    @property
    def is_ready(self) -> bool:
        """Whether all that is left is the rename."""
        return bool(self.journal.all("publishing"))

    def publish(self) -> None:
        """Make the finished folder DEST by one rename, then drop the rest of the work."""
        if not self.is_ready:
            self.journal.append("publishing", manifest=sha256_of_file(self.gallery / "manifest.json"))
        publish_directory(self.gallery, self.plan.dest, replace=self.force)
        remove_tree(self.root)

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
        remove_tree(self.root)

    def close(self) -> None:
        """Let go of the lock; what is journalled stays for the next run."""
        self._lock.release()

    def _refuse_foreign_folder(self) -> None:
        known = {"lock", "journal.jsonl", "journal.jsonl.tmp", "trained.faiss", "trained.faiss.tmp", "gallery"}
        if self.root.exists() and (
            not self.root.is_dir() or any(path.name not in known for path in self.root.iterdir())
        ):
            raise OutputError(f"{self.root}: exists and is not unfinished work of fct-upgrade-gallery")

    def _refuse_existing_dest(self) -> None:
        dest = self.plan.dest
        if dest.is_symlink() or (dest.exists() and not dest.is_dir()):
            raise OutputError(f"{dest}: exists and is not a folder")
        if dest.exists() and any(dest.iterdir()) and not self.force:
            raise OutputError(f"{dest}: exists already; --force replaces it once the new one is complete")

    def _was_published(self) -> bool:
        """A crash after the rename leaves the journal behind; the folder it speaks of is then DEST, or gone."""
        records, manifest = self.journal.all("publishing"), self.gallery / "manifest.json"
        return bool(records) and (not manifest.exists() or sha256_of_file(manifest) != records[-1]["manifest"])

    def _begin_or_resume(self) -> None:
        identity = self.plan.identity()
        begun = self.journal.all("begin")
        if not begun:
            self.clear()
            self.journal.append("begin", identity=identity)
            return
        different = _differences(begun[0]["identity"], identity)
        if different and self.journal.all("gate failed"):  # work that cannot be published need not be kept
            self.clear()
            self.journal.append("begin", identity=identity)
            return
        if different:
            raise OutputError(
                f"{self.root} holds unfinished work of another upgrade; different: {'; '.join(different)}. "
                f"{_other_device(begun[0]['identity'], identity, self.plan.transformation.no_card)}"
                "--restart drops it and begins again"
            )
        self._refuse_damaged_work()
        self._drop_unjournalled_files()

    def _refuse_damaged_work(self) -> None:
        for record in self.finished.values():
            for name, file in record["files"].items():
                path = self.gallery / name
                size = path.stat().st_size if path.is_file() else None
                if size != file["size"]:
                    found = "is missing" if size is None else f"has {size:,} bytes"
                    raise OutputError(
                        f"{path}: {found}, was finished with {file['size']:,}; begin again with --restart"
                    )

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
