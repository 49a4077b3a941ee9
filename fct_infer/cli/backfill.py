"""``fct-backfill``: re-embeds a gallery with the new model while its transformed rows serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from fct_infer.cli._common import json_option, run_cli, show_rows
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.cli._source_options import source_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fct_infer.connectors import SourceOptions
    from fct_infer.gallery.source import Source
    from fct_infer.serving.backfill import BackfillReport
    from fct_infer.serving.embedders import Embed
    from fct_infer.transformation import Transformation

_PATH = click.Path(path_type=Path)
_SHOWN_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
_PERCENT = click.FloatRange(0, 100)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@source_options
@click.option("-o", "--output", "folder", required=True, type=_PATH, metavar="FOLDER", help="Grows by durable parts.")
@click.option("--embed", required=True, metavar="WHAT", help="module:function, http(s)://..., or a gallery of rows.")
@click.option("--images", type=_PATH, metavar="FOLDER", help="Then --embed is a model of them; ids are their paths.")
@click.option("--into", metavar="URL", help="Also into a published version in a database: ...?table=T&column=VERSION.")
@click.option("--transformation", type=_PATH, metavar="H", help="If SOURCE holds old rows: a bundle or model file.")
@click.option(
    "--order",
    type=click.Choice(("uncertainty", "distance", "access", "random")),
    default="random",
    show_default=True,
    help="Which rows come first.",
)
@click.option(
    "--uncertainty",
    type=_PATH,
    help="For --order uncertainty: FastFill's bundle, or .npy, a number a row, larger is less sure [--transformation].",
)
@click.option("--labels", type=_PATH, help="For --order distance: .npy of classes; without, one mean for all.")
@click.option("--access-log", type=_PATH, help="For --order access: text, a line ID or ID COUNT.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Rows a second at most.")
@click.option("--until", type=_PERCENT, default=100, show_default=True, help="Stop at so many % of the rows.")
@click.option("--stop-gain", type=_PERCENT, help="Stop when another 10 % of the rows would give fewer points.")
@click.option("--probe-rows", type=click.IntRange(min=0), default=1000, show_default=True, help="Measured on; 0: none.")
@click.option("--metric", type=click.Choice(("l2", "ip", "cosine")), help="By default the published gallery's, or l2.")
@click.option("--model-version", default="new", show_default=True, metavar="TEXT", help="Kept beside the rows.")
@click.option("--batch-rows", type=click.IntRange(min=1), default=256, show_default=True, help="Ids a call.")
@click.option("--part-rows", type=click.IntRange(min=1), default=4096, show_default=True, help="Rows kept as one.")
@click.option("--restart", is_flag=True, help="Throw away what FOLDER holds and begin again.")
@json_option()
def command(
    source: Path | str,
    options: SourceOptions,
    folder: Path,
    embed: str,
    images: Path | None,
    into: str | None,
    transformation: Path | None,
    metric: str | None,
    until: float,
    stop_gain: float | None,
    model_version: str,
    restart: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Re-embed the rows of SOURCE with the new model, the ones that matter first, while SOURCE goes on serving.

    SOURCE is what fct-upgrade-gallery published, or with --transformation the old gallery. A random sample is
    re-embedded first: it shows what each further 10 % will give. The same command goes on after a stop or a crash.

    \b
    Example:
      fct-backfill DEST -o DEST.new --embed my_models:embed_items --order uncertainty --uncertainty h.bundle
      fct-backfill DEST -o DEST.new --embed new_model.bundle --images photos
      fct-backfill DEST -o DEST.new --embed http://127.0.0.1:8000/embed --rate 50 --stop-gain 0.3
    """
    from fct_infer.connectors import open_source
    from fct_infer.gallery.manifest import own_manifest
    from fct_infer.serving.backfill import Backfiller, Settings
    from fct_infer.serving.embedders import open_embedder
    from fct_infer.storage import check_place

    check_place(folder, {"SOURCE": source} if isinstance(source, Path) else {})
    manifest = own_manifest(source) if isinstance(source, Path) and source.is_dir() else None
    metric = metric or (manifest.metric if manifest else "l2")
    settings = Settings(
        model=model_version,
        metric=metric,
        batch_rows=given["batch_rows"],
        part_rows=given["part_rows"],
        rate=given["rate"],
        until=until / 100,
        stop_gain=None if stop_gain is None else stop_gain / 100,
        probe_rows=given["probe_rows"],
    )
    h = None
    if transformation is not None:
        from fct_infer.backends.loading import load_transformation

        h = load_transformation(transformation)
    with open_source(source, options) as opened:
        if given["order"] == "uncertainty":
            given["uncertainty"] = given["uncertainty"] or transformation
        order = _order(given, opened, h, metric)
        target = None
        if into is not None:
            from fct_infer.connectors.table_versions import open_version

            target = open_version(into)
        new_model = _image_embedder(embed, images) if images is not None else open_embedder(embed)
        backfiller = Backfiller(opened, folder, new_model, order, h=h, gallery=target, settings=settings)
        with progress_on_stderr() as progress:
            report = backfiller.run(progress, restart=restart)
    if as_json:
        click.echo(json.dumps(report.as_dict() | {"folder": str(folder)}, indent=2, allow_nan=False))
    else:
        show_report(report, folder)


def _image_embedder(model: str, images: Path) -> Embed:
    from fct_infer.backends.loading import load_embedder
    from fct_infer.serving.image_embedder import ImageEmbedder

    return ImageEmbedder(load_embedder(model), images)


def _order(given: dict[str, Any], source: Source, h: Transformation | None, metric: str) -> NDArray[np.int64]:
    from fct_infer.evaluation.inputs import read_labels
    from fct_infer.evaluation.orders import random_order, uncertainty_order
    from fct_infer.serving.loading import all_ids
    from fct_infer.serving.orders import access_order, distance_order, read_uncertainties

    order: Literal["uncertainty", "distance", "access", "random"] = given["order"]
    for name, wanted in (("uncertainty", "uncertainty"), ("labels", "distance"), ("access_log", "access")):
        option = f"--{name.replace('_', '-')}"
        if given[name] is not None and order != wanted:
            raise click.UsageError(f"{option} is for --order {wanted}")
        if given[name] is None and order == wanted and name != "labels":
            raise click.UsageError(f"--order {order} wants {option}")
    if order == "uncertainty":
        return uncertainty_order(read_uncertainties(given["uncertainty"], source, h))
    if order == "distance":
        labels = None if given["labels"] is None else read_labels(given["labels"])
        return distance_order(source, h, labels, metric)
    if order == "access":
        return access_order(all_ids(source), given["access_log"])
    return random_order(source.schema.rows, seed=0)


def show_report(report: BackfillReport, folder: Path) -> None:
    """Print how far it is, how good the search is now, and what more would give."""
    rows = {
        "re-embedded": f"{report.new:,} of {report.rows:,} rows ({100 * report.new / report.rows:.1f} %)",
        "this run": f"{report.embedded:,} rows in {report.seconds:.1f} s; ended: {report.reason}",
        "in": str(folder),
    }
    if report.left_out:
        rows["left as they were"] = f"{report.left_out:,} rows that the embedder had nothing for"
    if (forecast := report.forecast) is not None:
        curve = ", ".join(f"{share:.0%} {100 * forecast.at(share):.1f}" for share in _SHOWN_SHARES)
        rows["overlap@10 %"] = f"{curve} (by share of the order; on {forecast.overlap.shape[1]:,} rows)"
        rows["now"] = f"{100 * forecast.at(report.reached):.1f}, {report.reached:.1%} down the order"
        if report.reached < 1:
            gain, error = forecast.gain(report.reached)
            rows["another 10 %"] = f"would give {100 * gain:+.1f} ± {100 * error:.1f}"
    show_rows(rows)


def main() -> NoReturn:
    """Entry point of ``fct-backfill``."""
    run_cli(command, resumes=True)


if __name__ == "__main__":
    main()
