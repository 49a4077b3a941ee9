"""What an unfinished upgrade has achieved: one JSON line per durable fact, appended in order.

A line is written only after the files it speaks of are on the disk. A line torn by a crash is the last one and is
ignored; a damaged line anywhere else means the journal cannot be trusted.
"""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any
from zlib import crc32

from fct_infer.errors import OutputError
from fct_infer.storage import append_line, truncate_file, work_folder

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
    lines = path.read_bytes().split(b"\n")
    records, intact = [], 0
    for number, line in enumerate(lines[:-1]):
        record = _parse(line)
        if record is None:
            if number < len(lines) - 2:
                raise OutputError(f"{path}: line {number + 1} is damaged; begin again with --restart")
            break
        records.append(record)
        intact += len(line) + 1
    return records, intact


class Journal:
    """Append-only list of records ``{"kind": ..., ...}``, from any thread.

    Raises:
        OutputError: an existing journal is damaged before its last line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self._lock = Lock()
        if path.exists():
            self._load()

    def append(self, kind: str, **fields: Any) -> None:
        """Add a record; it is durable when this returns."""
        record = {"kind": kind, **fields}
        text = json.dumps(record, allow_nan=False)
        with self._lock:
            append_line(self.path, f"{crc32(text.encode()):08x} {text}")
            self.records.append(record)

    def all(self, kind: str) -> list[Record]:
        """Return the records of one kind, in order."""
        return [record for record in self.records if record["kind"] == kind]

    def _load(self) -> None:
        self.records, intact = read_records(self.path)
        # A torn tail would swallow the next record: cut it off.
        if intact < self.path.stat().st_size:
            truncate_file(self.path, intact)


def _parse(line: bytes) -> Record | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % crc32(text):
        return None
    record = json.loads(text)
    return record if isinstance(record, dict) and "kind" in record else None
