"""Tables of LanceDB in a folder: each is a Lance data set, read and upgraded as one."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from fct_infer.connectors.engine_url import EngineUrl, parse_engine_url
from fct_infer.connectors.lance_column import drop_column, vector_columns
from fct_infer.connectors.lance_dataset import LanceSource
from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.table_versions import VersionFacts
from fct_infer.errors import GalleryError, UsageError


def parse(url: str) -> EngineUrl:
    """Take a URL apart.

    Raises:
        UsageError: as :func:`parse_engine_url`, or it asks for what LanceDB has not.
    """
    parsed = parse_engine_url(url)
    if "/" in parsed.table or parsed.table in (".", ".."):
        raise UsageError(f"{parsed.name}: {parsed.table!r} is no name of a table")
    if parsed.view is not None:
        raise UsageError(f"{parsed.name}: LanceDB has no views; readers name the column that they search")
    return parsed


def dataset_of(url: str) -> Path:
    """Return where the data set of a table lies.

    Raises:
        GalleryError: there is none.
        UsageError: the URL is none.
    """
    parsed = parse(url)
    assert parsed.path is not None
    path = parsed.path / f"{parsed.table}.lance"
    if not path.is_dir():
        raise GalleryError(f"{parsed.name}: there is no table {parsed.table!r} in {parsed.path}")
    return path


def open_table(url: str, options: SourceOptions) -> LanceSource:
    """Open the newest version of a table.

    Raises:
        GalleryError: there is none, or it is malformed.
        UsageError: its name is none that LanceDB has.
    """
    return LanceSource(dataset_of(url), options)


def open_destination(url: str) -> Path:
    """Return the new column of the table's data set as upgrades know it: ``ITEMS.lance?column=NAME``.

    Raises:
        GalleryError: there is no such table.
        UsageError: the URL names no column, or one that LanceDB would take for a path into another.
    """
    parsed, dataset = parse(url), dataset_of(url)
    if not parsed.column:
        raise UsageError(f"{parsed.name}: names no column for the new vectors; add &column=vector_v2")
    if bad := set(parsed.column) & set("?&/.`"):
        raise UsageError(f"{parsed.name}: {''.join(sorted(bad))} cannot be in the name of a new column")
    return dataset.with_name(f"{dataset.name}?column={parsed.column}")


def versions(url: str) -> list[VersionFacts]:
    """Return the columns of vectors, those that were there and those that upgrades added; readers name one of them.

    Raises:
        GalleryError: there is no such table, or it is malformed.
    """
    found = vector_columns(dataset_of(url))
    return [VersionFacts(name, "published" if is_added else "original", False) for name, is_added in found.items()]


def rollback(url: str, to: str | None = None) -> NoReturn:
    """Refuse: nothing says which column readers search.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"{parse(url).name}: readers of LanceDB name the column that they search; drop (fct-gallery rollback) "
        "takes the one that the URL names out again"
    )


def drop(url: str) -> None:
    """Take the column that an upgrade added out again, by one commit.

    Raises:
        GalleryError: there is no such table.
        UsageError: the URL names no column, or one that no upgrade added.
    """
    drop_column(dataset_of(url), parse(url).column or "")


def books_of(url: str) -> NoReturn:
    """Refuse: a column of LanceDB is not written row by row.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"{parse(url).name}: vectors are replaced in PostgreSQL, SQLite and DuckDB only")
