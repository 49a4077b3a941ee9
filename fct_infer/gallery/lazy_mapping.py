"""A mapping whose values are made when they are asked for: of many thousands, the values would take most memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

_Kept = TypeVar("_Kept")
_Made = TypeVar("_Made")


class LazyMapping(Mapping[str, _Made], Generic[_Kept, _Made]):
    """Makes a value of its name and of what is kept of it, again each time; read-only.

    Args:
        kept: what is kept, by name, in order.
        make: returns a value of a name and what is kept.
    """

    def __init__(self, kept: Mapping[str, _Kept], make: Callable[[str, _Kept], _Made]) -> None:
        self._kept, self._make = kept, make

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: object) -> bool:
        return name in self._kept

    def __getitem__(self, name: str) -> _Made:
        return self._make(name, self._kept[name])

    def __repr__(self) -> str:
        return repr(dict(self))
