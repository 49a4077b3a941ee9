"""What names a gallery: a path, the URL of files in a store, or the URL of a table in a database."""

from __future__ import annotations

import re
from pathlib import Path

from fct_infer.storage import location

DATABASES = ("postgresql", "postgres", "duckdb", "sqlite", "lancedb", "qdrant", "chroma", "milvus")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def scheme_of(place: str | Path) -> str | None:
    """Return the scheme of a URL in small letters; None for a path."""
    found = _URL.match(place) if isinstance(place, str) else None
    return found.group(1).lower() if found else None


def place_of(text: str | Path) -> Path | str:
    """Return the URL of a table as it is, and anything else as a path, see :func:`fct_infer.storage.location`.

    Raises:
        UsageError: a URL of no scheme that is known, or that holds a password.
    """
    if isinstance(text, str) and scheme_of(text) in DATABASES:
        return text
    return location(text)
