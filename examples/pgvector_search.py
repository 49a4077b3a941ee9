"""Searching a table of PostgreSQL with pgvector before, while and after fct-upgrade-gallery upgrades it where it is.

    pip install 'fct-infer[postgres]'
    fct-upgrade-gallery 'postgresql://me@host/shop?table=items' --transformation h.bundle \\
        -o 'postgresql://me@host/shop?table=items&column=embedding_v2'

    shop = psycopg.connect("postgresql://me@host/shop")
    items = ItemSearch(shop, {"embedding": old_model, "embedding_v2": new_model})
    items.search("a question", k=10)

Begun with both models before the upgrade, it needs no restart: the view tells whose vectors it shows, and a query is
embedded by that model. An example to copy, not a part of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psycopg import Connection, sql

Model = Callable[[str], Sequence[float]]
"""A question -> its embedding."""


class ItemSearch:
    """Finds the rows that are nearest to a question.

    Args:
        connection: to the database; autocommit or not, every search is a transaction of its own.
        models: name of a column of vectors -> the model they are of.
        view: that an upgrade makes beside the table, ``TABLE_current``.
        operator: of pgvector: ``<->`` for l2, ``<#>`` for the inner product, ``<=>`` for the cosine.
    """

    def __init__(
        self,
        connection: Connection[Any],
        models: Mapping[str, Model],
        view: str = "items_current",
        operator: str = "<->",
    ) -> None:
        self._connection, self._models = connection, models
        self._shown = next(iter(models))  # what the view showed last
        self._which = sql.SQL("SELECT embedding_version FROM {} LIMIT 1").format(sql.Identifier(view))
        self._nearest = sql.SQL("SELECT id, embedding {op} %s::vector FROM {view} ORDER BY 2 LIMIT %s").format(
            view=sql.Identifier(view), op=sql.SQL(operator)
        )

    def search(self, question: str, k: int = 10) -> list[tuple[Any, float]]:
        """Return (id, distance) of the nearest rows, nearest first."""
        while True:
            vector = "[" + ",".join(map(str, self._models[self._shown](question))) + "]"
            # Within one transaction the view stays what it is: publishing waits for readers that have begun.
            with self._connection.transaction(), self._connection.cursor() as cursor:
                found = cursor.execute(self._which).fetchone()
                if found is None or found[0] == self._shown:
                    return cursor.execute(self._nearest, (vector, k)).fetchall() if found else []
            self._shown = found[0]
