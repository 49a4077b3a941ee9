"""``fct-evaluate``: CMC and mAP of queries against a gallery."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import numpy as np

from fct_infer.cli._common import json_option, run_cli, show_rows
from fct_infer.cli._executor_options import executor_options
from fct_infer.cli._page import check_page
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.cli._source_options import Place
from fct_infer.cli._verbosity import note

if TYPE_CHECKING:
    from fct_infer.evaluation import Figure, Metric, Study
    from fct_infer.upgrade.executor import Executor

_FIGURES = ("cmc", "map", "recall", "r-precision")
_WIDTH = 80  # of tables in a file or a pipe
_COMPARED = ("gallery", "new_gallery", "queries", "old_queries")
_PATH = Place()


def _parse_ks(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        ks = tuple(int(k) for k in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not integers joined by commas, such as 1,5") from error
    if min(ks) < 1:
        raise click.BadParameter(f"{min(ks)} is not a rank; the nearest item has rank 1")
    return ks


def _parse_figures(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    figures = tuple(dict.fromkeys(value.split(",")))
    unknown = [figure for figure in figures if figure not in _FIGURES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(_FIGURES)}")
    return figures


def _split(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label.strip() for label in value.split(","))) if value else ()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--queries", type=_PATH, help="Embeddings of the queries: .npy, or a gallery folder.")
@click.option("--gallery", required=True, type=_PATH, help="Embeddings searched: .npy, a gallery or an upgraded one.")
@click.option("--query-labels", type=_PATH, help="Labels of the queries: .npy, or a folder of shards.")
@click.option("--gallery-labels", type=_PATH, help="Labels of all gallery rows, in the same form.")
@click.option("--truth", type=_PATH, help="Instead of labels: ids of each query's right rows, .npy (n,) or (n, most).")
@click.option("--gallery-ids", type=_PATH, help="Ids that --truth names [the gallery's own, else row numbers].")
@click.option("--new-gallery", type=_PATH, help="The gallery re-embedded: gives new/new and the backfilling curve.")
@click.option("--old-queries", type=_PATH, help="The queries embedded by the old model: gives old/old.")
@click.option("--old-gallery", type=_PATH, help="The gallery before it was transformed, if GALLERY is upgraded.")
@click.option("--uncertainty", type=_PATH, help="How unsure each gallery row is, .npy: an order to backfill in.")
@click.option("--query-cameras", type=_PATH, help="Cameras of the queries, in the form of labels.")
@click.option("--gallery-cameras", type=_PATH, help="Of the gallery: rows of a query's label and camera are left out.")
@click.option("--query-groups", type=_PATH, help="Groups of the queries (product, video, burst), as labels.")
@click.option("--gallery-groups", type=_PATH, help="Of the gallery: rows of a query's group are left out.")
@click.option(
    "--ignore-labels", callback=_split, help="Labels whose gallery rows are left out: Market-1501's junk is -1."
)
@click.option(
    "--distractor-labels", callback=_split, help="Labels that are never right: Market-1501's distractors are 0."
)
@click.option("--exclude-self", is_flag=True, help="Query i is gallery row i: leave each query's own row out.")
@click.option(
    "--metric", default="l2", show_default=True, type=click.Choice(["l2", "ip", "cosine"]), help="What near means."
)
@click.option(
    "--metrics",
    "figures",
    default="cmc,map",
    show_default=True,
    callback=_parse_figures,
    help=f"Of {','.join(_FIGURES)}.",
)
@click.option("--k", "ks", default="1,5", show_default=True, callback=_parse_ks, help="Ranks for CMC and recall.")
@click.option("--per-class", is_flag=True, help="Give the figures of each label as well.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all].")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page here.")
@click.option("--images", type=_PATH, help="Images of the gallery for the page, .npy uint8 (n, h, w, 3).")
@click.option("--query-images", type=_PATH, help="Images of the queries, in the same form.")
@executor_options
@json_option()
def command(
    metric: Metric,
    figures: tuple[Figure, ...],
    ks: tuple[int, ...],
    exclude_self: bool,
    per_class: bool,
    threads: int | None,
    report: Path | None,
    images: Path | None,
    query_images: Path | None,
    ignore_labels: tuple[str, ...],
    distractor_labels: tuple[str, ...],
    executor: Executor | None,
    as_json: bool,
    **paths: Path | None,
) -> None:
    """Rank a gallery by distance for every query and print CMC top-k and mAP.

    A gallery item is relevant if it has the query's label; queries with nothing relevant are left out and counted.
    Re-identification as Market-1501 measures it: --query-cameras, --gallery-cameras, --ignore-labels -1.
    With --truth instead of labels, the right rows are named one by one. With neither, --new-gallery alone: the share of
    nearest neighbours that the two galleries have in common, by --queries or by 1,000 of their own rows.

    With --old-queries and --new-gallery, the upgrade is judged: every query model against every gallery, the share of
    the gap closed, flips, the backfilling curve, and whether it is worth it.

    With --executor ray the workers of a cluster read the embeddings and rank; each holds what it ranks in memory.

    \b
    Example:
      fct-evaluate --queries q.npy --gallery DEST --query-labels ql.npy --gallery-labels gl.npy
      fct-evaluate --queries q.npy --gallery DEST --truth right_ids.npy --report page.html
    """
    from fct_infer.evaluation import (
        ImageFile,
        Settings,
        labels_like,
        read_study_inputs,
        retrieved_html,
        retrieved_rows,
        study,
        write_report,
    )
    from fct_infer.gallery.jobs import Workers

    workers = executor if isinstance(executor, Workers) else None
    if workers is not None and threads is not None:
        raise click.UsageError("--threads is for --executor threads; Ray workers take --resources cpu=N")
    if not _is_labelled(paths, per_class):
        if report is not None:
            raise click.UsageError("--report wants labels or --truth")
        options = {"metric": metric, "exclude_self": exclude_self, "ks": ks, "threads": threads, "workers": workers}
        _show_overlap(paths, options, as_json)
        return
    if (query_images and not images) or (images and not report):
        raise click.UsageError("--query-images wants --images, and --images wants --report")
    if paths["uncertainty"] and not paths["new_gallery"]:
        raise click.UsageError("--uncertainty wants --new-gallery: the rows that are backfilled")
    for what in ("cameras", "groups"):
        if (paths[f"query_{what}"] is None) != (paths[f"gallery_{what}"] is None):
            raise click.UsageError(f"--query-{what} and --gallery-{what} go together")
    if report is not None:
        check_page(report)
    if exclude_self:
        note("query i and gallery row i are the same item: each query's own row is left out")
    inputs = read_study_inputs(paths, named=workers is not None)
    of_gallery = ImageFile(images, len(inputs.gallery)) if images else None
    of_queries = ImageFile(query_images, len(inputs.queries)) if query_images else of_gallery if exclude_self else None
    if paths["truth"]:
        missing = np.isin(inputs.query_labels, inputs.gallery_labels, invert=True)
        if missing.any():
            first = inputs.query_labels[missing][0].item()
            click.echo(f"--truth: {missing.sum():,} ids are of no gallery row, such as {first!r}", err=True)
    ignored, distractors = (labels_like(texts, inputs.gallery_labels) for texts in (ignore_labels, distractor_labels))
    for name, labels in (("ignore", ignored), ("distractor", distractors)):
        for label in labels:
            rows_of = np.count_nonzero(inputs.gallery_labels == label)
            note(f"--{name}-labels: {rows_of:,} gallery rows have the label {label!r}")
    settings = Settings(metric, exclude_self, ks, figures, per_class, threads, ignored, distractors)
    with nullcontext() if workers is None else workers.session():
        with progress_on_stderr() as progress:
            found = study(inputs, settings, progress, workers)
        rows = retrieved_rows(inputs, found, workers) if of_gallery else []
    given = {name: str(path) for name, path in paths.items() if path is not None}
    if report is not None:
        write_report(report, found, given, retrieved_html(rows, of_gallery, of_queries) if of_gallery else "")
    if as_json:
        document = found.as_dict() | {"inputs": given}
        if rows:
            document["retrieved"] = [row.as_dict() for row in rows]
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    show_study(found)


def _is_labelled(paths: dict[str, Path | None], per_class: bool) -> bool:
    """Whether it is known what is right; without, two galleries can only be compared with each other."""
    labels = [f"--{name}-labels" for name in ("query", "gallery") if paths[f"{name}_labels"]]
    if paths["gallery_ids"] and not paths["truth"]:
        raise click.UsageError("--gallery-ids wants --truth, which names them")
    if labels and paths["truth"]:
        raise click.UsageError(f"--truth takes the place of labels; leave out {' and '.join(labels)}")
    if per_class and not labels:
        raise click.UsageError("--per-class wants labels")
    if paths["truth"] or len(labels) == 2:
        if not paths["queries"]:
            raise click.UsageError("--queries is missing")
        return True
    if labels:
        raise click.UsageError("--query-labels and --gallery-labels go together")
    if not paths["new_gallery"]:
        raise click.UsageError(
            "wanted --query-labels and --gallery-labels, --truth, or (to compare neighbours) --new-gallery"
        )
    if unused := [name for name in paths if paths[name] and name not in _COMPARED]:
        raise click.UsageError(f"--{unused[0].replace('_', '-')} wants labels or --truth")
    if paths["old_queries"] and not paths["queries"]:
        raise click.UsageError("--old-queries wants --queries, the same by the new model")
    return False


def _show_overlap(paths: dict[str, Path | None], options: dict[str, Any], as_json: bool) -> None:
    from fct_infer.evaluation import name_embeddings, neighbour_overlap, read_embeddings

    given = {name: path for name, path in paths.items() if path is not None}
    read = read_embeddings if options["workers"] is None else name_embeddings
    arrays = {name: read(path) for name, path in given.items()}
    with progress_on_stderr() as progress:
        found = neighbour_overlap(
            arrays["gallery"],
            arrays["new_gallery"],
            queries=arrays.get("queries"),
            old_queries=arrays.get("old_queries"),
            progress=partial(progress, "neighbours"),
            **options,
        )
    if as_json:
        inputs = {name: str(path) for name, path in given.items()}
        click.echo(json.dumps(found.as_dict() | {"inputs": inputs}, indent=2, allow_nan=False))
        return
    shown = {
        f"overlap@{k}": f"{100 * share:.2f} % ± {100 * found.standard_error[k]:.2f}"
        for k, share in found.overlap.items()
    }
    show_rows(shown | {"queries": f"{found.queries:,}", "gallery": f"{found.gallery_rows:,} rows"})


def show_study(found: Study) -> None:
    """Print the figures, and what was found beyond them."""
    from rich.console import Console

    from fct_infer.evaluation import figures
    from fct_infer.evaluation.compatibility import rich_table

    show_rows(figures(found.ranks.metrics(), found.settings.figures))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    if len(found.matrix.ranks) > 1:
        console.print(found.table().rich("\nQuery model / gallery"))
    if found.per_class:
        header, *body = found.by_class()
        console.print(rich_table(header, body, "\nBy label, the worst first"))
    if found.flips is not None:
        click.echo(f"\nflips: {len(found.flips.positive):,} repaired, {len(found.flips.negative):,} broken")
    if found.curves:
        click.echo("\nbackfilling, mean mAP over the curve")
        show_rows({name: f"{100 * curve.area:.2f} %" for name, curve in found.curves.items()})
        if found.left_out:
            click.echo(found.left_out)
    if found.verdict is not None:
        click.echo(f"\nIs it worth it? {found.verdict.sentence}")


def main() -> NoReturn:
    """Entry point of ``fct-evaluate``."""
    run_cli(command)


if __name__ == "__main__":
    main()
