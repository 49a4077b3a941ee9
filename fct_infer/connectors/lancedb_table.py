"""Tables of LanceDB in a folder: each is a Lance data set, read as one."""

from __future__ import annotations

from typing import NoReturn

from fct_infer.connectors.engine_url import EngineUrl, parse_engine_url
from fct_infer.connectors.lance_dataset import LanceSource
from fct_infer.connectors.options import SourceOptions
from fct_infer.errors import GalleryError, UsageError


def parse(url: str) -> EngineUrl:
    """Take a URL apart."""
    return parse_engine_url(url)


def open_table(url: str, options: SourceOptions) -> LanceSource:
    """Open the newest version of a table.

    Raises:
        GalleryError: there is none, or it is malformed.
        UsageError: its name is none that LanceDB has.
    """
    parsed = parse(url)
    assert parsed.path is not None
    if "/" in parsed.table or parsed.table in (".", ".."):
        raise UsageError(f"{parsed.name}: {parsed.table!r} is no name of a table")
    path = parsed.path / f"{parsed.table}.lance"
    if not path.is_dir():
        raise GalleryError(f"{parsed.name}: there is no table {parsed.table!r} in {parsed.path}")
    return LanceSource(path, options)


def open_destination(url: str) -> NoReturn:
    """Refuse: new rows become a column by one commit, of which a folder is made first.

    Raises:
        UsageError: always.
    """
    parsed = parse(url)
    raise UsageError(
        f"{parsed.name}: upgrade the table into a folder, then fct-gallery add-column makes its rows a new column of "
        f"{parsed.path}/{parsed.table}.lance by one commit"
    )


def books_of(url: str) -> NoReturn:
    """Refuse: LanceDB keeps the versions of a table itself.

    Raises:
        UsageError: always.
    """
    parsed = parse(url)
    raise UsageError(f"{parsed.name}: LanceDB itself keeps versions; table.list_versions() and table.restore(version)")
