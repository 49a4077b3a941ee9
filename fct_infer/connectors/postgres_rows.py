"""Rows as ``COPY ... (FORMAT BINARY)`` sends and takes them, many at once as NumPy structures.

A row is an int16 count of fields, then each field as an int32 length (-1: NULL) and its bytes, all big-endian. The
server sends one message a row; the file's header comes with the first one, its trailer is a message of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from select import select
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import optional

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
# type -> dtype of its values, whether it is an array of the server rather than pgvector's
KINDS: dict[str, tuple[np.dtype[Any], bool]] = {
    "vector": (np.dtype(np.float32), False),
    "halfvec": (np.dtype(np.float16), False),
    "_float4": (np.dtype(np.float32), True),
    "_float8": (np.dtype(np.float64), True),
}
VECTOR_TYPES = {"float32": "vector", "float16": "halfvec"}
MAX_DIM = 16_000  # of pgvector's types, which say it in an int16
_OIDS = {"_float4": 700, "_float8": 701}


@dataclass(frozen=True)
class VectorField:
    """A column of vectors of one width.

    Attributes:
        kind: of :data:`KINDS`.
        dim: its width.
    """

    kind: str
    dim: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """A field: its length, what stands before the values, and the values."""
        values, is_array = KINDS[self.kind]
        big = values.newbyteorder(">")
        if is_array:
            value = np.dtype([("length", ">i4"), ("value", big)])
            return np.dtype([("length", ">i4"), ("head", ">i4", (5,)), ("values", value, (self.dim,))])
        return np.dtype([("length", ">i4"), ("head", ">i2", (2,)), ("values", big, (self.dim,))])

    @property
    def start(self) -> bytes:
        """What every such field begins with, up to the values."""
        _, is_array = KINDS[self.kind]
        length = self.dtype.itemsize - 4
        if is_array:
            return np.array([length, 1, 0, _OIDS[self.kind], self.dim, 1], ">i4").tobytes()
        return length.to_bytes(4, "big") + np.array([self.dim, 0], ">i2").tobytes()


class VectorRows:
    """Rows of one or two fields of vectors."""

    def __init__(self, *fields: VectorField) -> None:
        self._fields = fields
        self._row = np.dtype([("count", ">i2"), *((f"{number}", field.dtype) for number, field in enumerate(fields))])
        self._offsets = [0] * len(fields)
        at = 2
        for number, field in enumerate(fields):
            self._offsets[number] = at
            at += field.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._row.itemsize

    def decode(self, messages: list[bytes], outs: Iterable[NDArray[Any]]) -> int | None:
        """Fill arrays (n, dim) with the fields of n rows.

        Returns:
            The place of the first row that has not this layout (:meth:`fault` says why), and what is filled means
            nothing; None if there is none.
        """
        if set(map(len, messages)) - {self._row.itemsize}:
            return next(place for place, message in enumerate(messages) if len(message) != self._row.itemsize)
        joined = b"".join(messages)
        rows, raw = np.frombuffer(joined, self._row), np.frombuffer(joined, np.uint8).reshape(len(messages), -1)
        for number, (field, out) in enumerate(zip(self._fields, outs, strict=True)):
            at, start = self._offsets[number], np.frombuffer(field.start, np.uint8)
            differs = (raw[:, at : at + len(start)] != start).any(axis=1)
            values = rows[f"{number}"]["values"]
            if KINDS[field.kind][1]:
                differs |= (values["length"] != KINDS[field.kind][0].itemsize).any(axis=1)
                values = values["value"]
            if differs.any():
                return int(np.argmax(differs))
            with np.errstate(over="ignore"):
                out[...] = values
        return None

    def fault(self, message: bytes) -> tuple[int, str]:
        """Return which field of a row is wrong and how."""
        at = 2
        for number, field in enumerate(self._fields):
            length = int.from_bytes(message[at : at + 4], "big", signed=True)
            if length < 0:
                return number, "is NULL"
            if found := _fault(field, message[at + 4 : at + 4 + length]):
                return number, found
            at += 4 + length
        return 0, "is no vector of numbers"


def _fault(field: VectorField, value: bytes) -> str | None:
    if not KINDS[field.kind][1]:
        dim = int.from_bytes(value[:2], "big")
        return None if dim == field.dim else f"is {dim} wide, wanted {field.dim}"
    head = np.frombuffer(bytes(value[:20]).ljust(20, b"\0"), ">i4")
    if head[0] != 1:
        return f"has {head[0]} dimensions, wanted a flat array of {field.dim} numbers"
    if head[3] != field.dim:
        return f"is {head[3]} wide, wanted {field.dim}"
    return "holds NULL" if head[1] else f"begins at subscript {head[4]}, wanted 1"


def messages_of(copy: Any) -> Iterator[bytes]:
    """Yield the rows that a COPY sends, each as it came.

    Up to the trailer they are taken from libpq one by one without psycopg's own loop, which takes most of the time of
    reading a table; the end is psycopg's.

    Raises:
        psycopg.Error: the server ended the COPY, or the connection is lost.
    """
    libpq, header = copy.connection.pgconn, len(HEADER)
    while True:
        length, message = libpq.get_copy_data(1)
        if length == 0:  # nothing has come yet
            select([libpq.socket], [], [])
            libpq.consume_input()
            continue
        if length < 0:
            raise _error_of(libpq)
        if header:
            header, message = 0, message[header:]
        if message == TRAILER:
            break
        yield message
    for _ in copy:  # nothing more, but the server's word that this was all
        pass


def _error_of(libpq: Any) -> Any:
    """Return the exception for what the server says of a COPY that it ended."""
    errors, result = optional("psycopg.errors", "postgres"), libpq.get_result()
    if result is None:
        return errors.OperationalError("the server ended a COPY without a word")
    return errors.error_from_result(result)


def with_vectors(keys: list[bytes], key_fields: int, vectors: NDArray[Any], field: VectorField) -> bytes:
    """Return rows of key fields, as a COPY sent them, with a vector each behind them, as a COPY takes them."""
    rows = np.empty(len(vectors), [("start", f"V{len(field.start)}"), ("values", field.dtype["values"])])
    rows.view(np.uint8).reshape(len(rows), -1)[:, : len(field.start)] = np.frombuffer(field.start, np.uint8)
    rows["values"] = vectors
    count, width = (key_fields + 1).to_bytes(2, "big"), rows.itemsize
    raw = memoryview(rows.tobytes())
    pieces = ((count, key[2:], raw[at : at + width]) for key, at in zip(keys, range(0, len(raw), width), strict=True))
    return b"".join(chain.from_iterable(pieces))
