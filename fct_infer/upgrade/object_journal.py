"""What an unfinished upgrade has achieved, as objects in a store: one for each fact, none of them ever listed.

FOLDER/begin.json              of which upgrade it is, and the token of its version
FOLDER/TOKEN/part-NAME.json    a part that is durable
FOLDER/TOKEN/KIND.json         anything else that is said once

Each is written after what it speaks of, and is found again by its name, from whichever machine.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

from fct_infer.errors import ArtifactError, OutputError
from fct_infer.storage import RemotePath
from fct_infer.storage.objects import put_object, read_object, remove_objects, together
from fct_infer.storage.strict_json import check_seal, json_pieces, parse_strict, sealed_bytes
from fct_infer.upgrade.journal import Entry, Journal, Record

_KINDS = ("trained", "gate failed", "publishing")


class ObjectJournal(Journal):
    """See :class:`~fct_infer.upgrade.journal.Journal`.

    Args:
        folder: of the objects.
        parts: names of all parts, in their order.
        check: called before anything is noted; raises if the work is another's by now.

    Attributes:
        token: of the version that is made.

    Raises:
        OutputError: ``begin.json`` is damaged.
    """

    def __init__(self, folder: RemotePath, parts: Iterable[str], check: Callable[[], None]) -> None:
        self._folder, self._check, self._lock = folder, check, Lock()
        self.entries: list[Entry] = []
        begin = begin_record(folder)
        self.token = str(begin["token"]) if begin else secrets.token_hex(6)
        if begin:
            keys = [*map(self._key, _KINDS), *(self._part(name) for name in parts)]
            for record in [begin, *together(_read, keys)]:
                if record is not None:
                    self._note(record, _text(record))

    def append(self, kind: str, **fields: Any) -> None:
        """Add a record; it is durable when this returns."""
        self._check()
        record = {"kind": kind, **fields}
        if kind == "damaged":
            remove_objects([self._part(fields["name"])])
        elif kind == "begin":
            record |= {"token": self.token}
            put_object(self._folder / "begin.json", _sealed(record))
        else:
            put_object(self._part(fields["name"]) if kind == "shard" else self._key(kind), _sealed(record))
        with self._lock:
            self._note(record, _text(record))

    def read(self, entry: Entry) -> Record:
        """Return a record, which is kept as text: a store takes its time for each."""
        record: Record = json.loads(entry.place)
        return record

    def _key(self, kind: str) -> RemotePath:
        key: RemotePath = self._folder / self.token / f"{kind.replace(' ', '-')}.json"
        return key

    def _part(self, name: str) -> RemotePath:
        key: RemotePath = self._folder / self.token / f"part-{name}.json"
        return key


def begin_record(folder: RemotePath) -> Record | None:
    """Return what says which upgrade unfinished work is of; None without any.

    Raises:
        OutputError: it is damaged.
    """
    path: RemotePath = folder / "begin.json"
    data = read_object(path)
    if data is None:
        return None
    record = _parse(data)
    if record is None or not str(record.get("token", "")).isalnum() or not isinstance(record.get("identity"), dict):
        raise OutputError(f"{path}: is damaged; remove it, then the upgrade begins again")
    return record


def _read(path: RemotePath) -> Record | None:
    """Return a record; None if there is none, or it is damaged: what it speaks of is done again."""
    data = read_object(path)
    return None if data is None else _parse(data)


def _text(record: Record) -> bytes:
    return b"".join(json_pieces(record, indent=None))


def _sealed(record: Record) -> bytes:
    return sealed_bytes({"record": record})  # within, for a record has a sha256 of its own


def _parse(data: bytes) -> Record | None:
    try:
        document = parse_strict(data)
        check_seal(data, str(document["sha256"]))
        record = document["record"]
    except (ArtifactError, KeyError, AttributeError, TypeError):
        return None
    return record if isinstance(record, dict) and "kind" in record else None
