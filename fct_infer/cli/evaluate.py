"""``fct-evaluate``: CMC and mAP of queries against a gallery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from fct_infer.cli._common import json_option, run_cli, show_rows
from fct_infer.cli._progress import progress_on_stderr

if TYPE_CHECKING:
    from fct_infer.evaluation import Metric

_PATH = click.Path(path_type=Path)


def _parse_ks(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        ks = tuple(int(k) for k in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not integers joined by commas, such as 1,5") from error
    if min(ks) < 1:
        raise click.BadParameter(f"{min(ks)} is not a rank; the nearest item has rank 1")
    return ks


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--queries", required=True, type=_PATH, help="Embeddings of the queries: .npy, or a gallery folder.")
@click.option("--gallery", required=True, type=_PATH, help="Embeddings searched: .npy, a gallery or an upgraded one.")
@click.option("--query-labels", required=True, type=_PATH, help="Labels of the queries: .npy, or a folder of shards.")
@click.option("--gallery-labels", required=True, type=_PATH, help="Labels of all gallery rows, in the same form.")
@click.option("--exclude-self", is_flag=True, help="Query i is gallery row i: leave each query's own row out.")
@click.option("--metric", default="l2", show_default=True, type=click.Choice(["l2", "ip", "cosine"]))
@click.option("--k", "ks", default="1,5", show_default=True, callback=_parse_ks, help="Ranks to give CMC at.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all].")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page here.")
@json_option()
def command(
    queries: Path,
    gallery: Path,
    query_labels: Path,
    gallery_labels: Path,
    exclude_self: bool,
    metric: Metric,
    ks: tuple[int, ...],
    threads: int | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Rank a gallery by distance for every query and print CMC top-k and mAP.

    A gallery item is relevant if it has the query's label; queries with nothing relevant are left out and counted.
    """
    from fct_infer.evaluation import figures, rank_queries, read_embeddings, read_labels, write_report

    if exclude_self:
        click.echo("query i and gallery row i are the same item: each query's own row is left out", err=True)
    with progress_on_stderr() as progress:
        ranks = rank_queries(
            read_embeddings(queries),
            read_embeddings(gallery),
            read_labels(query_labels),
            read_labels(gallery_labels),
            metric=metric,
            exclude_self=exclude_self,
            threads=threads,
            progress=lambda done, rows: progress("rank", done, rows),
        )
    metrics = ranks.metrics(ks)
    inputs = {
        "queries": str(queries),
        "gallery": str(gallery),
        "query_labels": str(query_labels),
        "gallery_labels": str(gallery_labels),
    }
    if report is not None:
        settings = {"metric": metric, "own row excluded": "yes" if exclude_self else "no"}
        write_report(report, ranks, ks, inputs | settings)
    if as_json:
        document = metrics.as_dict() | {"exclude_self": exclude_self, "inputs": inputs}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    show_rows(figures(metrics))


def main() -> NoReturn:
    """Entry point of ``fct-evaluate``."""
    run_cli(command)


if __name__ == "__main__":
    main()
