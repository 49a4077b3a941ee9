"""What names a table or collection of a database that is read by its keys: ``duckdb:///shop.duckdb?table=items``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from fct_infer.errors import UsageError

_NAMES = {"table": "table", "collection": "table", "column": "column", "view": "view", "alias": "view"}


@dataclass(frozen=True)
class EngineUrl:
    """What a URL names.

    Attributes:
        scheme: the engine.
        name: the URL as it is shown; it holds no secret.
        path: of a database that is a file or a folder; None of a server.
        server: ``host:port``, or empty.
        table: the table or collection.
        column: of a destination: the new version of its embeddings.
        view: the view, or the alias, that readers search by; None for the usual one.
        more: what else the engine takes.
    """

    scheme: str
    name: str
    path: Path | None
    server: str
    table: str
    column: str | None = None
    view: str | None = None
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str, str]:
        """What tells the table from all others, however it is written."""
        where = self.server if self.path is None else os.path.realpath(self.path)
        return self.scheme, where, self.table


def parse_engine_url(url: str, more: tuple[str, ...] = (), *, has_servers: bool = False) -> EngineUrl:
    """Take a URL apart.

    Args:
        url: ``SCHEME:///a/path?table=NAME``, ``SCHEME://a/path?...``; of an engine with servers
            ``SCHEME://host:port?...``, and a relative path begins with ``./``.
        more: what else may stand behind the ``?``.
        has_servers: whether the engine may be a server.

    Raises:
        UsageError: it names no table, holds a password, or says something unknown or twice.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    rest, mark, fragment = rest.partition("#")
    where, _, query = rest.partition("?")
    if mark or fragment:
        raise UsageError(f"{scheme}://...: a # is written %23")
    if "@" in where.partition("/")[0]:
        raise UsageError(f"{scheme}://...: a URL must not hold a user or a password; keys come from the environment")
    found: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        name = _NAMES.get(key, key)
        if name in found or (key not in _NAMES and key not in more):
            raise UsageError(f"{scheme}://...: {key!r} stands there twice, or is not known; known are {_known(more)}")
        if not value or "\0" in value:
            raise UsageError(f"{scheme}://...: {key!r} is empty, or holds a NUL")
        found[name] = value
    if "table" not in found:
        raise UsageError(f"{scheme}://...: names no table; add ?table=NAME")
    is_server = has_servers and not where.startswith(("/", "./", "../"))
    if is_server and (not where or "/" in where.strip("/")):
        raise UsageError(f"{scheme}://...: wanted {scheme}://host:port or {scheme}:///a/path")
    path = None if is_server else Path(unquote(where))
    if path is not None and where in ("", "/"):
        raise UsageError(f"{scheme}://...: names no file")
    shown = f"{scheme}://{where}?{urlencode(list(found.items()), quote_via=quote, safe='/')}"
    server = where.strip("/") if is_server else ""
    table, column, view = found.pop("table"), found.pop("column", None), found.pop("view", None)
    return EngineUrl(scheme, shown, path, server, table, column, view, found)


def _known(more: tuple[str, ...]) -> str:
    return ", ".join((*_NAMES, *more))
