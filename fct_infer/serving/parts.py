"""What was re-embedded, on disk: a gallery that grows by durable parts, each in the journal once it is whole.

FOLDER/  embeddings/00000000.npy  (n_i, dim) float32, rows of the new model
         ids/00000000.npy         (n_i,) whose
         marks/00000000.npy       (n_i,) int64 what tells whether a row in a database is still the one that was embedded
         journal.jsonl            the plan, then each part with the digests of its files and the model's version
         lock                     held by whoever appends
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArtifactError, FctError, OutputError
from fct_infer.gallery.reader import read_npy
from fct_infer.gallery.writer import write_npy
from fct_infer.serving.rows import Ids
from fct_infer.storage import FileLock, remove_tree, sha256_of_file
from fct_infer.transformation import Float32Array
from fct_infer.upgrade.journal import Journal, Record, read_records

JOURNAL = "journal.jsonl"
_FOLDERS = ("embeddings", "ids", "marks")


class PartFolder:
    """The folder, open for appending; a context manager.

    Args:
        folder: made if it is not there.
        plan: what is done here, strict JSON; the same each time the folder is opened.
        restart: throw away what is there and begin again.

    Raises:
        OutputError: another process appends, the folder holds something else, or another plan was begun there.
        ResourceError: disk full or another I/O error.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], *, restart: bool = False) -> None:
        self.folder = folder
        _refuse_foreign(folder)
        self._lock = FileLock(folder / "lock", str(folder))
        try:
            if restart:
                for name in (*_FOLDERS, JOURNAL):  # the journal last: without it the rest would be nobody's
                    remove_tree(folder / name)
            self._journal = Journal(folder / JOURNAL)
            self._begin(plan)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, plan: dict[str, Any]) -> None:
        if not self._journal.entries:
            self._journal.append("plan", **plan)
        known = {key: value for key, value in self._journal.all("plan")[0].items() if key != "kind"}
        if known != plan:
            differ = sorted(key for key in {*known, *plan} if known.get(key) != plan.get(key))
            raise OutputError(
                f"{self.folder}: another backfill was begun here, with another {differ[0]}; choose another folder, or "
                "begin again with --restart"
            )
        # Of a part that was being written when its process was killed; the next one takes its name.
        for folder in _FOLDERS:
            if (self.folder / folder).is_dir():
                known_names = {f"{number:08d}.npy" for number, part in enumerate(self.parts) if part["rows"]}
                for file in (self.folder / folder).iterdir():
                    if file.name not in known_names:
                        remove_tree(file)

    @property
    def parts(self) -> list[Record]:
        """The parts so far: ``asked`` for so many rows in the order, of which ``rows`` were embedded."""
        return self._journal.all("part")

    def append(self, ids: Ids, rows: Float32Array, asked: int, marks: NDArray[np.int64] | None = None) -> None:
        """Add a part of rows (n, dim) and their ids (n,), durably; ``asked`` is n and those that were not embedded."""
        name = f"{len(self.parts):08d}.npy"
        files = {}
        if len(ids):
            written = {f"ids/{name}": ids, f"embeddings/{name}": rows}
            if marks is not None:
                written[f"marks/{name}"] = marks
            files = {path: vars(write_npy(self.folder / path, array)) for path, array in written.items()}
        self._journal.append("part", asked=asked, rows=len(ids), files=files)

    def close(self) -> None:
        """Let others append."""
        self._lock.release()

    def __enter__(self) -> PartFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything a backfill did not make: a gallery without a journal is somebody's."""
    if not folder.is_dir():
        return
    names = {each.name for each in folder.iterdir()}
    own = {JOURNAL, *_FOLDERS} if JOURNAL in names else set()
    foreign = sorted(name for name in names - own if name != "lock" and not name.startswith("lock."))
    if foreign:
        raise OutputError(f"{folder}: holds {foreign[0]}, which no backfill made; choose another folder")


def read_backfilled(folder: str | Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[Ids, Float32Array]]:
    """Yield ids (n,) and rows (n, dim) of each part of a backfill, which may still be at work.

    Args:
        folder: where it appends.
        start, stop: numbers of the parts, to go on where one has read to; by default all that there are.

    Raises:
        ArtifactError: it is no such folder, or a file is missing or damaged.
    """
    for arrays in read_parts(folder, start, stop):
        yield arrays["ids"], arrays["embeddings"]


def read_parts(folder: str | Path, start: int = 0, stop: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield all arrays of each part, by the names of their folders; see :func:`read_backfilled`."""
    folder = Path(folder)
    try:
        records, _ = read_records(folder / JOURNAL)
    except (OSError, OutputError) as error:
        raise ArtifactError(f"{folder}: is no folder of a backfill: {error}") from error
    parts = [record for record in records if record["kind"] == "part"]
    for part in parts[start:stop]:
        if not part["rows"]:
            continue
        arrays = {}
        for name, file in part["files"].items():
            try:
                if sha256_of_file(folder / name) != file["sha256"]:
                    raise ArtifactError(f"{folder / name}: is damaged: its SHA-256 is not the one in {JOURNAL}")
                arrays[name.partition("/")[0]] = read_npy(folder / name)
            except ArtifactError:
                raise
            except FctError as error:
                raise ArtifactError(str(error)) from error
        yield arrays


def count_parts(folder: str | Path) -> int:
    """Return how many parts a backfill has appended so far."""
    return sum(record["kind"] == "part" for record in read_records(Path(folder) / JOURNAL)[0])
