"""``fct-fit``: from items embedded by both models to a transformation, and how good it is."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fct_infer.cli._common import duration_text, json_option, run_cli, show_rows
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.cli._source_options import Place
from fct_infer.cli._verbosity import note
from fct_infer.threadpools import let_threads_wait_briefly

if TYPE_CHECKING:
    from rich.table import Table

    from fct_infer.evaluation import Metric
    from fct_infer.fitting import Compression, Fit, Pairs
    from fct_infer.fitting.crossfit import Trial
    from fct_infer.fitting.measures import Direction

_PATH = Place()
_SHOWN = 8  # candidates
_WIDTH = 80  # of tables in a file or a pipe


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", value)
    if not found or float(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no time; wanted for instance 90s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--old", required=True, type=_PATH, help="Old embeddings: .npy, Parquet, HDF5, ..., a gallery, a table.")
@click.option("--new", required=True, type=_PATH, help="New embeddings, of the same items or some of them.")
@click.option("--old-ids", type=_PATH, help="Ids of OLD's rows: .txt, .npy, .csv or .parquet [OLD's own].")
@click.option("--new-ids", type=_PATH, help="Ids of NEW's rows [NEW's own; without any, rows match by their order].")
@click.option("--old-embedding-column", metavar="NAME", help="Column of OLD's embeddings.")
@click.option("--new-embedding-column", metavar="NAME", help="Column of NEW's embeddings.")
@click.option("--id-column", metavar="NAME", help="Column of the ids, in both.")
@click.option("--side", type=_PATH, help="Side-information of OLD's rows [OLD's own, if it has any].")
@click.option("--labels", type=_PATH, help="Labels of OLD's rows, .npy: candidates are judged by mAP.")
@click.option("--queries", type=_PATH, help="Queries by the new model, .npy: candidates are judged by their recall.")
@click.option("--truth", type=_PATH, help="Ids of each query's right rows, .npy (n,) or (n, most).")
@click.option("--old-queries", type=_PATH, help="The queries by the old model: what the old gallery gives today.")
@click.option(
    "--direction",
    type=click.Choice(["old-to-new", "new-to-old"]),
    default="old-to-new",
    show_default=True,
    help="new-to-old makes a map for new queries that search an untouched old gallery.",
)
@click.option("-o", "--output", "bundle", required=True, type=_PATH, help="Bundle to write.")
@click.option(
    "--metric", type=click.Choice(["l2", "ip", "cosine"]), help="[cosine if all new rows have length 1, or l2]"
)
@click.option(
    "--budget", default="5m", show_default=True, callback=_seconds, help="For a network; closed forms are always tried."
)
@click.option(
    "--compress",
    is_flag=True,
    help="Find the smallest network that is as good: it learns from the map, on stored rows.",
)
@click.option("--gallery", type=_PATH, help="Those stored rows, with --compress [the rows of OLD that NEW lacks].")
@click.option("--config", type=_PATH, help="Where to write what was chosen as a configuration of fct-train.")
@click.option("--no-network", is_flag=True, help="Closed forms only: seconds, and no PyTorch.")
@click.option(
    "--max-pairs", type=click.IntRange(min=50), default=100_000, show_default=True, help="Sample of pairs used."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is drawn.")
@click.option("--allow-cast", is_flag=True, help="Narrow float64 and wide integers to float32.")
@click.option("--old-model", metavar="NAME", help="Whose vectors OLD holds: a name, or sha256:DIGEST [as OLD says].")
@click.option("--new-model", metavar="NAME", help="Whose vectors NEW holds [as NEW says].")
@click.option("--force", is_flag=True, help="Replace a bundle that exists once the new one is complete.")
@json_option()
def command(
    bundle: Path,
    config: Path | None,
    direction: Direction,
    metric: Metric | None,
    budget: float,
    compress: bool,
    no_network: bool,
    max_pairs: int,
    seed: int,
    force: bool,
    as_json: bool,
    **inputs: Any,
) -> None:
    """Fit a transformation from old embeddings to new ones, on items that both models have embedded.

    Two .npy files do: row i of both is the same item. With ids, rows are matched by them; where OLD has none, NEW's
    are its row numbers. Closed forms and a network are tried on rows held out from them; the one whose gallery is
    searched best is written as BUNDLE, ready for fct-upgrade-gallery, and what it will be worth is printed.

    \b
    Example:
      fct-fit --old old.npy --new new.npy -o h.bundle
      fct-upgrade-gallery GALLERY --transformation h.bundle -o DEST
    """
    from fct_infer.artifacts.bundle import refuse_existing
    from fct_infer.export import Options, export_transformation
    from fct_infer.fitting import Settings, fit_pairs
    from fct_infer.fitting.inputs import read_inputs, read_stored
    from fct_infer.fitting.training_file import refuse_existing_config, write_config

    given = {f"--{name.replace('_', '-')}": value for name, value in inputs.items() if isinstance(value, Path)}
    refuse_existing(bundle, given, force=force)
    if config is not None:
        if direction == "new-to-old":
            raise click.UsageError("--config wants a map of stored rows, not --direction new-to-old")
        refuse_existing_config(config, bundle, given, force=force)
    settings = Settings(metric, budget, not no_network, seed, direction)
    if direction == "new-to-old" and inputs["queries"]:
        raise click.UsageError(
            "--direction new-to-old is judged by --labels or by the rows of all pairs, not by --queries"
        )
    if inputs["gallery"] and not compress:
        raise click.UsageError("--gallery is what --compress learns from; it wants --compress")
    if compress and (no_network or direction == "new-to-old"):
        flag = "--no-network" if no_network else "--direction new-to-old"
        raise click.UsageError(f"--compress trains networks to map stored rows; it does not go with {flag}")
    with progress_on_stderr() as progress:
        pairs, queries = read_inputs(inputs, max_pairs=max_pairs, seed=seed, progress=progress)
    if compress:
        settings = replace(settings, compress=read_stored(inputs, pairs, seed=seed))
    note(_pairs_line(pairs))
    with progress_on_stderr("steps") as progress:
        found = fit_pairs(pairs, settings, queries, progress)
    old_model, new_model = pairs.models if direction == "old-to-new" else pairs.models[::-1]
    options = Options(("core",), old_model=old_model, new_model=new_model, force=force)
    report = export_transformation(found.program, bundle, options)
    probe = _probe(inputs)
    next_command = report.next_command.replace(" GALLERY ", f" {_stored(pairs, inputs)} ", 1) + probe
    if config is not None:
        write_config(found, pairs, inputs, config)
    if direction == "new-to-old":
        probe = ""
        next_command = f"fct_infer.load_transformation({str(bundle)!r})(queries), then search the old gallery"
    if as_json:
        document = found.as_dict() | {"bundle": str(bundle), "direction": direction, "next_command": next_command}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    show_fit(found)
    if found.forecast.verdict.action in ("keep old", "re-embed"):
        next_command = f"nothing; to see for yourself, {next_command}"
    click.echo(f"\nnext: {next_command}")
    if probe:
        click.echo("(the probe tells a wrong gallery; what h is worth stands above: it was fitted on the same rows)")
        if pairs.matched_by == "order":
            click.echo("(NEW has no ids: a gallery of other rows than OLD's wants them, with --probe-ids)")


def _stored(pairs: Pairs, inputs: dict[str, Any]) -> str:
    """Return what is to be upgraded, with its options: OLD, unless it holds no more than the pairs."""
    if not pairs.only_old:
        return "GALLERY"
    flags = {"--ids": "old_ids", "--id-column": "id_column", "--embedding-column": "old_embedding_column"}
    given = [f" {flag} {shlex.quote(str(inputs[name]))}" for flag, name in flags.items() if inputs.get(name)]
    return shlex.quote(str(inputs["old"])) + "".join(given) + (" --allow-cast" if inputs["allow_cast"] else "")


def _probe(inputs: dict[str, Any]) -> str:
    """Return the options that check new rows by NEW, which flatters a map fitted on it, and tells a wrong gallery."""
    flags = {
        "--probe": "new",
        "--probe-ids": "new_ids",
        "--probe-id-column": "id_column",
        "--probe-column": "new_embedding_column",
    }
    given = [(flag, str(inputs[name])) for flag, name in flags.items() if inputs[name] is not None]
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in given)


def _pairs_line(pairs: Pairs) -> str:
    widths = f"{pairs.old.shape[1]} -> {pairs.new.shape[1]}"
    side = "" if pairs.side is None else f", side-information {pairs.side.shape[1]}"
    by = ", NEW's ids taken for row numbers of OLD, which has none" if pairs.matched_by == "row numbers" else ""
    return (
        f"{pairs.matched:,} items are in both{by} (only in OLD {pairs.only_old:,}, only in NEW {pairs.only_new:,}); "
        f"{len(pairs):,} are used; {widths}{side}"
    )


def show_fit(found: Fit) -> None:
    """Print the candidates, what is to be expected of the chosen one, and the verdict."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    shown = [*found.trials[:_SHOWN]] + [trial for trial in found.trials[_SHOWN:] if trial is found.chosen]
    table = _candidates(f"Held-out rows, {found.metric}: {found.measure} in %; MFLOP a row")
    for trial in shown:
        _add(table, trial, trial is found.chosen)
    console.print(table)
    if found.screened is not None:
        click.echo()
        console.print(_networks_table(found))
    if found.compression is not None:
        click.echo()
        console.print(_compression_table(found.compression))
    forecast = found.forecast
    asked = f"{forecast.queries:,} queries that {'did not choose' if forecast.is_independent else 'chose it, too'}"
    among = "" if forecast.folds > 1 else f", among the {forecast.gallery_rows:,} rows of the fold"
    rows = {found.measure: f"{forecast.measured}, on {asked}{among}"}
    for name, known in (("old/old", forecast.old_old), ("new/new", forecast.new_new)):
        if known is not None:
            rows[name] = str(known)
    rows["finds itself"] = ", ".join(f"{value} up to rank {k}" for k, value in forecast.recall.items())
    fewer = ", ".join(f"{point.pairs:,}: {100 * point.estimate.mean:.1f} %" for point in forecast.curve)
    rows["with fewer pairs"] = fewer if found.network is None else f"the closed form {fewer}"
    rows["with twice as many"] = f"about {100 * forecast.twice:+.1f}, if gains go on shrinking as they do"
    rows["time"] = f"{duration_text(found.seconds)} for {found.pairs:,} pairs"
    click.echo()
    show_rows(rows)
    for text in found.notes:
        click.echo(f"note: {text}")
    click.echo(f"\nIs it worth it? {forecast.verdict.sentence}")


def _candidates(title: str, *more: str) -> Table:
    """Return an empty table of candidates."""
    from rich.table import Table

    table = Table("Candidate", title=title, title_justify="left", box=None)
    for column in ("%", *more, "MFLOP"):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _add(table: Table, trial: Trial, is_chosen: bool, *more: str) -> None:
    mark, style = ("* ", "bold") if is_chosen else ("  ", None)
    share = f"{100 * trial.estimate.mean:.1f} ± {100 * trial.estimate.standard_error:.1f}"
    table.add_row(mark + trial.name, share, *more, f"{trial.flops / 1e6:.2f}", style=style)


def _networks_table(found: Fit) -> Table:
    """Return the networks beside the closed form they start from, where both were fitted on the same rows."""
    screened = found.screened
    assert screened is not None
    asked = len(screened.closed_form.scores)
    table = _candidates(f"One fold of {screened.rows:,} rows, {asked:,} queries, fitted on the others", "against it")
    _add(table, screened.closed_form, found.network is None, "")
    for network in screened.networks:
        gain = screened.difference(network.trial)
        against = f"{100 * gain.mean:+.1f} ± {100 * gain.standard_error:.1f}"
        _add(table, network.trial, network.trial is found.chosen, against)
    return table


def _compression_table(found: Compression) -> Table:
    """Return the maps by size; neither they nor what they learnt from were fitted on the pairs that judge them here."""
    from rich.table import Table

    title = (
        f"Smaller, learnt from it on {found.stored:,} stored rows in {found.steps:,} steps each: {found.measure} in %"
    )
    table = Table("Map", title=title, title_justify="left", box=None)
    for column in ("%", "against it", "MFLOP", "rows/s", "speed-up"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in (*found.students, found.teacher):
        figures, style = each.as_dict(found.teacher), "bold" if each is found.chosen else None
        difference = figures["difference"]
        against = f"{100 * difference['mean']:+.1f} ± {100 * difference['standard_error']:.1f}"
        table.add_row(
            ("* " if each is found.chosen else "  ") + each.name,
            f"{100 * figures['mean']:.1f} ± {100 * figures['standard_error']:.1f}",
            "" if each is found.teacher else against,
            f"{each.flops / 1e6:.2f}",
            f"{each.rows_per_second:,.0f}",
            f"{each.rows_per_second / found.teacher.rows_per_second:.1f}",
            style=style,
        )
    return table


def main() -> NoReturn:
    """Entry point of ``fct-fit``."""
    let_threads_wait_briefly()
    run_cli(command)


if __name__ == "__main__":
    main()
