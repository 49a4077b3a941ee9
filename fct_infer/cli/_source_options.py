"""How a source is named on the command line: the same options in every command that reads one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click


class Place(click.Path):
    """A path or a URL that is read."""

    name = "place"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a path, a ``RemotePath`` if it is a URL of files, and the URL of a table as it is."""
        from fct_infer.gallery.places import place_of
        from fct_infer.storage import RemotePath

        place = place_of(value)
        return place if isinstance(place, RemotePath | str) else super().convert(place, param, ctx)


_OPTIONS = (
    click.argument("source", type=Place()),
    click.option("--embedding-column", metavar="NAME", help="Column, data set, array or tensor of the embeddings."),
    click.option("--side-column", metavar="NAME", help="That of the side-information."),
    click.option("--id-column", metavar="NAME", help="That of the ids; of the file of ids with --ids."),
    click.option("--ids", type=Place(), help="Ids beside: .txt, .npy, .csv or .parquet, one a row."),
    click.option("--allow-cast", is_flag=True, help="Narrow float64 and wide integers to float32."),
    click.option("--model", metavar="NAME", help="Whose vectors they are: a name, or sha256:DIGEST [as SOURCE says]."),
    click.option("--lossy", is_flag=True, help="Take the approximate vectors of a compressed FAISS index."),
)  # fmt: skip


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add SOURCE and its options to a command, which is called with ``source`` and ``options`` (a SourceOptions)."""

    @wraps(command)
    def run(**given: Any) -> Any:
        from fct_infer.connectors import SourceOptions

        options = {each.name: given.pop(each.name) for each in fields(SourceOptions)}
        return command(options=SourceOptions(**options), **given)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def columns_text(columns: dict[str, str], other: tuple[str, ...]) -> str:
    """Return which columns are read in which role, and which are not, in one line."""
    used = ", ".join(f"{role} {name!r}" for role, name in columns.items())
    left = f"; not used: {', '.join(map(repr, other))}" if other else ""
    return (used or "one array") + left
