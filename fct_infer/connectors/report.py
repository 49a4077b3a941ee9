"""What a connector reports of what it wrote: one shape, whatever it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes of all of them: ``rows``, and ``dtype``, of the embeddings.
    """

    def hints(self) -> dict[str, str]:
        """Return what to type next, or to take it back, by name."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON, hints too."""
        return {name: _plain(value) for name, value in asdict(self).items()} | self.hints()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
