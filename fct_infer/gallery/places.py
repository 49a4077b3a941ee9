"""What names a gallery: a path, or a URL where it lies in a database."""

from __future__ import annotations

import re
from pathlib import Path

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def scheme_of(place: str | Path) -> str | None:
    """Return the scheme of a URL in small letters; None for a path."""
    found = _URL.match(place) if isinstance(place, str) else None
    return found.group(1).lower() if found else None


def place_of(text: str | Path) -> Path | str:
    """Return a URL as it is, for a path would lose one of its slashes, and anything else as a path."""
    return text if isinstance(text, str) and scheme_of(text) else Path(text)
