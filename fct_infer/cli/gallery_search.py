"""``fct-gallery search``: the nearest rows of a published gallery."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fct_infer.cli._common import json_option, show_table
from fct_infer.cli._source_options import Place

if TYPE_CHECKING:
    from fct_infer.serving.results import SearchResults

_SHOWN, _NEIGHBOURS = 3, 5
_PATH = click.Path(path_type=Path)


@click.command("search")
@click.argument("dest", type=Place())
@click.option("--queries", required=True, type=Place(), help="Embeddings of the new model, in any format.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="Rows wanted of each query.")
@click.option("-o", "--output", type=_PATH, help="File for all results: .npz, .parquet, or .npy (ids alone).")
@click.option("--embedding-column", metavar="NAME", help="Column, data set, array or tensor of the queries.")
@click.option("--id-column", metavar="NAME", help="That of their ids; of the file of ids with --ids.")
@click.option("--ids", type=_PATH, help="Ids of the queries beside: .txt, .npy, .csv or .parquet, one a row.")
@click.option("--allow-cast", is_flag=True, help="Narrow float64 and wide integers to float32.")
@click.option("--show", default=_SHOWN, show_default=True, type=click.IntRange(min=0), help="Queries printed.")
@json_option()
def search_command(
    dest: Path,
    queries: Path,
    k: int,
    output: Path | None,
    embedding_column: str | None,
    id_column: str | None,
    ids: Path | None,
    allow_cast: bool,
    show: int,
    as_json: bool,
) -> None:
    """Find the K nearest rows of the published gallery DEST for each query, by the metric it was published with.

    With its index if it has one; else all of its rows are compared. Rows are named by their ids, or by their number if
    they have none.

    \b
    Example:
      fct-gallery search DEST --queries queries.npy -k 10 -o found.parquet
    """
    from fct_infer.connectors import SourceOptions, open_source
    from fct_infer.serving import open_gallery
    from fct_infer.serving.queries import read_queries
    from fct_infer.serving.results import SearchResults, check_results_path

    if output is not None:
        check_results_path(output)
    gallery = open_gallery(dest)
    options = SourceOptions(embedding_column=embedding_column, id_column=id_column, ids=ids, allow_cast=allow_cast)
    with open_source(queries, options) as source:
        rows, names = read_queries(source)
    index = gallery.index
    start = time.perf_counter()
    distances, found = index.search(rows, k)
    searched_by = type(getattr(index, "index", None)).__name__ if gallery.has_index else "all rows"
    metric = gallery.manifest.metric
    results = SearchResults(dest, metric, searched_by, names, distances, found, time.perf_counter() - start)
    if output is not None:
        results.write(output)
    if as_json:
        click.echo(json.dumps(results.as_dict(), indent=2, allow_nan=False))
    else:
        show_results(results, show, output)


def show_results(results: SearchResults, shown: int, output: Path | None) -> None:
    """Print the first results, and where all of them are."""
    from fct_infer.serving.results import table_of

    show_table(table_of(results, shown, _NEIGHBOURS), numbers=(1, 3))
    count = len(results.queries)
    says = f"{count:,} queries of {results.dest} by {results.searched_by} ({results.metric}) in {results.seconds:.3g} s"
    click.echo(f"\n{says}" + (f"; all results in {output}" if output else "; -o writes them all"))
