"""What an unfinished upgrade has achieved: one JSON line per durable fact, appended in order.

A line is written only after the files it speaks of are on the disk. A line torn by a crash is the last one and is
ignored; a damaged line anywhere else means the journal cannot be trusted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any
from zlib import crc32

from fct_infer.errors import OutputError
from fct_infer.gallery.lazy_mapping import LazyMapping
from fct_infer.storage import append_line, truncate_file, work_folder
from fct_infer.storage.strict_json import json_pieces

Record = dict[str, Any]


def journal_file(dest: Path) -> Path:
    """Return where the journal of ``dest``'s unfinished upgrade is."""
    return work_folder(dest) / "journal.jsonl"


def first_record(path: Path) -> Record | None:
    """Return how a journal begins, which another process may be writing; None if there is none, or no whole line."""
    try:
        with path.open("rb") as file:
            return _parse(file.readline().removesuffix(b"\n"))
    except OSError:
        return None


def read_records(path: Path) -> tuple[list[Record], int]:
    """Return the records of a journal, which another process may be writing, and how many bytes they take.

    Raises:
        OutputError: it is damaged before its last line.
    """
    records, intact = [], 0
    for record, _, end in _intact_lines(path):
        records.append(record)
        intact = end
    return records, intact


def _intact_lines(path: Path) -> Iterator[tuple[Record, int, int]]:
    """Yield each record, and the offsets at which its line begins and ends."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            record = _parse(line.removesuffix(b"\n")) if line.endswith(b"\n") else None
            if record is None:
                if line.endswith(b"\n") and file.readline().endswith(b"\n"):
                    raise OutputError(f"{path}: line {number} is damaged; begin again with --restart")
                return
            start, end = end, end + len(line)
            yield record, start, end


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it is kept in memory: what it is, and where the rest of it is.

    Attributes:
        kind: of the record.
        name: what it is of; None where it is of no part.
        place: where it is read back from.
    """

    kind: str
    name: str | None
    place: Any


class Journal:
    """Append-only list of records ``{"kind": ..., ...}``, from any thread; the records themselves stay on the disk.

    Attributes:
        entries: one for each record, in order.

    Raises:
        OutputError: an existing journal is damaged before its last line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._lock = Lock()
        if path.exists():
            self._load()

    def append(self, kind: str, **fields: Any) -> None:
        """Add a record; it is durable when this returns."""
        record, checksum = {"kind": kind, **fields}, 0
        for piece in json_pieces(record, indent=None):  # the checksum stands first; a long record is never held whole
            checksum = crc32(piece, checksum)
        with self._lock:
            line = chain([b"%08x " % checksum], json_pieces(record, indent=None))
            self._note(record, append_line(self.path, line))

    def all(self, kind: str) -> list[Record]:
        """Return the records of one kind, in order."""
        return [self.read(entry) for entry in self.entries if entry.kind == kind]

    def has(self, kind: str) -> bool:
        """Whether there is a record of one kind."""
        return any(entry.kind == kind for entry in self.entries)

    def read(self, entry: Entry) -> Record:
        """Return a record.

        Raises:
            OutputError: its line is damaged, or gone.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(entry.place)
                record = _parse(file.readline().removesuffix(b"\n"))
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read back: {error.strerror}") from error
        if record is None:
            raise OutputError(f"{self.path}: was damaged while it was in use; begin again with --restart")
        return record

    def finished(self) -> Mapping[str, Record]:
        """Return the records of the parts that are done, and were not found damaged since, by part."""
        done: dict[str, Entry] = {}
        for entry in self.entries:
            if entry.kind == "shard" and entry.name is not None:
                done[entry.name] = entry
            elif entry.kind == "damaged" and entry.name is not None:
                del done[entry.name]
        return LazyMapping(done, lambda _, entry: self.read(entry))

    def _note(self, record: Record, place: Any) -> None:
        self.entries.append(Entry(sys.intern(record["kind"]), record.get("name"), place))

    def _load(self) -> None:
        intact = 0
        for record, start, end in _intact_lines(self.path):
            self._note(record, start)
            intact = end
        # A torn tail would swallow the next record: cut it off.
        if intact < self.path.stat().st_size:
            truncate_file(self.path, intact)


def _parse(line: bytes) -> Record | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % crc32(text):
        return None
    record = json.loads(text)
    return record if isinstance(record, dict) and "kind" in record else None
