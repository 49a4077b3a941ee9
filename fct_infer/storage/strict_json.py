"""JSON that may come from anywhere: typed fields, no surprise among numbers and keys, a seal over all of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from fct_infer.errors import ArtifactError

MAX_VALUES = 4_000_000  # of one document: what a parser makes of a byte may take sixty
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEAL_DIGITS = 64
_AFTER_SEAL = b'"\n}\n'
PIECE_BYTES = 1 << 16
_T = TypeVar("_T")


def parse_strict(data: bytes) -> Any:
    """Return what a JSON text holds; memory is bounded by a multiple of its length.

    Raises:
        ArtifactError: no JSON, nested too deeply, a number that is not finite, a key twice, or too many values.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise ArtifactError(f"holds more than {MAX_VALUES:,} values")
    try:
        return json.loads(data, parse_constant=finite, parse_float=finite, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ArtifactError("nested too deeply") from error
    except ArtifactError:
        raise
    except ValueError as error:  # of JSON, of UTF-8, and of a number of thousands of digits
        raise ArtifactError(f"is not JSON: {str(error)[:300]}") from error


def json_pieces(value: Any, indent: int | None = 2, *, ensure_ascii: bool = True) -> Iterator[bytes]:
    """Yield what ``json.dumps`` makes of a value without NaN, in pieces of some :data:`PIECE_BYTES`.

    Any mapping is written as a dict is, item by item, so that one which makes its items when asked is never held whole.
    """
    encoder = json.JSONEncoder(indent=indent, allow_nan=False, ensure_ascii=ensure_ascii, default=_LazyDict)
    waiting, size = [], 0
    for text in encoder.iterencode(value):
        waiting.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield "".join(waiting).encode()
            waiting, size = [], 0
    if waiting:
        yield "".join(waiting).encode()


class _LazyDict(dict[str, Any]):
    """A mapping in the form in which the encoder takes it: it asks a dict whether it is empty, and for its items."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, Mapping):
            raise TypeError(f"object of type {type(value).__name__} is not JSON serializable")
        self._mapping = value

    def __len__(self) -> int:
        return len(self._mapping)

    def items(self) -> Any:
        return self._mapping.items()


def sealed_pieces(document: dict[str, Any], indent: int | None = 2) -> Iterator[bytes]:
    """Yield strict JSON whose last field, ``sha256``, is the digest of all bytes before that digest."""
    digest, held = hashlib.sha256(), b""
    for piece in json_pieces({**document, "sha256": ""}, indent):
        held += piece
        if len(held) > PIECE_BYTES:  # the end, after which the seal comes, stays here
            digest.update(held[: -len(_AFTER_SEAL)])
            yield held[: -len(_AFTER_SEAL)]
            held = held[-len(_AFTER_SEAL) :]
    body = (held + b"\n").removesuffix(_AFTER_SEAL)
    digest.update(body)
    yield body + digest.hexdigest().encode() + _AFTER_SEAL


def sealed_bytes(document: dict[str, Any], indent: int | None = 2) -> bytes:
    """Return all that :func:`sealed_pieces` yields."""
    return b"".join(sealed_pieces(document, indent))


def check_seal(data: bytes, seal: str) -> None:
    """Check the digest that :func:`sealed_bytes` wrote.

    Raises:
        ArtifactError: the text was altered since.
    """
    body = data.removesuffix(seal.encode() + _AFTER_SEAL)
    if body == data or _seal(body) != seal.encode():
        raise ArtifactError("does not match its own sha256; it was altered after it was written")


def is_sealed(data: bytes) -> bool:
    """Whether bytes are a document of :func:`sealed_bytes`, unaltered."""
    body = data.removesuffix(_AFTER_SEAL)
    return len(body) < len(data) and body[-_SEAL_DIGITS:] == _seal(body[:-_SEAL_DIGITS])


class Fields:
    """Typed fields of one JSON object, taken one by one; a missing, wrong or left-over one is an ArtifactError."""

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        self._left: dict[str, Any] = dict(typed(value, dict, where))

    def take(self, key: str, kind: type[_T]) -> _T:
        """Return and use up a field of one type."""
        if key not in self._left:
            raise ArtifactError(f"{self._where}: {key!r} is missing")
        return typed(self._left.pop(key), kind, f"{self._where}.{key}")

    def take_optional(self, key: str, kind: type[_T]) -> _T | None:
        """Return and use up a field that may be null."""
        return self.take(key, type(None) if self._left.get(key, ...) is None else kind)

    def take_if_there(self, key: str, kind: type[_T]) -> _T | None:
        """Return and use up a field that not every version writes; None if it is absent."""
        return self.take(key, kind) if key in self._left else None

    def one_of(self, key: str, choices: tuple[_T, ...]) -> _T:
        """Return a text that is one of several."""
        value = self.take(key, str)
        for choice in choices:
            if choice == value:
                return choice
        raise ArtifactError(f"{self._where}.{key} is {value!r}, wanted one of {', '.join(map(str, choices))}")

    def positive(self, key: str, most: int | None = None) -> int:
        """Return an integer of at least 1, and at most ``most``."""
        value = positive_of(self.take(key, int), f"{self._where}.{key}")
        if most is not None and value > most:
            raise ArtifactError(f"{self._where}.{key} is beyond {most:,}")
        return value

    def number(self, key: str) -> float:
        """Return a finite number."""
        return number_of(self.take(key, object), f"{self._where}.{key}")

    def sha256(self, key: str) -> str:
        """Return a SHA-256 as 64 hex digits."""
        value = self.take(key, str)
        if not _SHA256.fullmatch(value):
            raise ArtifactError(f"{self._where}.{key} is {value!r}, wanted 64 hex digits")
        return value

    def nested(self, key: str) -> Fields:
        """Return the fields of an object inside."""
        return Fields(self.take(key, dict), f"{self._where}.{key}")

    def nested_optional(self, key: str) -> Fields | None:
        """Return the fields of an object inside that may be null."""
        value = self.take_optional(key, dict)
        return None if value is None else Fields(value, f"{self._where}.{key}")

    def done(self) -> None:
        """Check that every field was used."""
        if self._left:
            raise ArtifactError(f"{self._where}: unknown {', '.join(map(repr, self._left))}")


def typed(value: Any, kind: type[_T], where: str) -> _T:
    """Return the value if it has that type; a bool is no int."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise ArtifactError(f"{where} is {type(value).__name__}, wanted {kind.__name__}")
    return value


def number_of(value: Any, where: str) -> float:
    """Return the value as a float if it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArtifactError(f"{where} is {type(value).__name__}, wanted a number")
    return float(value)


def positive_of(value: Any, where: str) -> int:
    """Return the value if it is an integer of at least 1."""
    if typed(value, int, where) < 1:
        raise ArtifactError(f"{where} is {value}, wanted at least 1")
    return int(value)


def _seal(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def finite(text: str) -> float:
    """Parse a number; NaN, Infinity and what overflows to it are a ValueError."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 1000 else "one key"
        raise ArtifactError(f"has {twice!r} twice in one object")
    return found
