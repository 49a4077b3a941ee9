"""``fct-upgrade-gallery``: move a gallery into the new model's space and index it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fct_infer.artifacts.precisions import PRECISIONS
from fct_infer.backends.runner import BACKENDS
from fct_infer.cli._common import byte_size, duration_text, json_option, run_cli, say_files_are_code, show_rows
from fct_infer.cli._executor_options import executor_options
from fct_infer.cli._page import check_page
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.cli._source_options import Place, columns_text, source_options
from fct_infer.cli._verbosity import note
from fct_infer.machine import counted, size_text

if TYPE_CHECKING:
    from fct_infer.connectors import SourceOptions
    from fct_infer.upgrade.executor import Executor
    from fct_infer.upgrade.plan import Plan


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@source_options
@click.option("--transformation", required=True, type=click.Path(path_type=Path), help="Bundle, h.onnx or h.pt.")
@click.option(
    "-o", "--output", "dest", required=True, type=Place(), help="Folder or s3://, gs:// URL to create; or table."
)
@click.option(
    "--format",
    type=click.Choice(["npy", "parquet"]),
    help="Of DEST; parquet carries all other columns along [default: parquet if DEST ends with .parquet, else npy].",
)
@click.option("--index", default="auto", show_default=True, help="FAISS factory string, auto, or none.")
@click.option(
    "--old-index",
    type=click.Path(path_type=Path),
    metavar="INDEX",
    help="Of the old embeddings (a FAISS IVF file, or a published folder): training begins with its lists, if that is "
    "as good; with --index auto their number is taken.",
)
@click.option(
    "--sharded-index",
    is_flag=True,
    help="Publish the index in shards, read where they lie and searched as one: it may be larger than memory.",
)
@click.option(
    "--metric",
    default="l2",
    show_default=True,
    type=click.Choice(["l2", "ip", "cosine"]),
    help="Of the index, and of searches without one.",
)
@click.option("--normalize", is_flag=True, help="L2-normalise the new embeddings.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), help="Of the new embeddings [default: the gallery's]."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["auto", *PRECISIONS]),
    help="auto: the fastest that proves itself on rows of the gallery.",
)
@click.option(
    "--backend", default="auto", show_default=True, type=click.Choice(BACKENDS), help="Which of a bundle's files runs."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto: a device, if one can; cpu, cuda, cuda:N; several: cuda:0,cuda:1.",
)
@click.option(
    "--device-memory",
    type=byte_size,
    default="0",
    help="Most of each device's memory for h and an index built there, together: 8GiB [default: what it has].",
)
@click.option(
    "--index-device",
    default="auto",
    show_default=True,
    help="Where to build it: cpu, cuda:N; auto: as --device.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all].")
@click.option(
    "--block-rows",
    type=click.IntRange(min=1),
    help="Rows processed at once [default: about 16 MiB, on a device up to 128 MiB].",
)
@click.option(
    "--shards-at-once",
    type=click.IntRange(min=1),
    help="Shards upgraded at the same time [default: 1; on a device, without an index, 1 per 2 threads, at most 8].",
)
@click.option("--restart", is_flag=True, help="Drop unfinished work and begin again.")
@click.option("--force", is_flag=True, help="Replace a finished output once the new one is complete.")
@click.option(
    "--append",
    is_flag=True,
    help="Take over from DEST the shards whose files in SOURCE are unchanged, transform the others; if rows were only "
    "added at the end, DEST's index is extended, else built anew.",
)
@click.option(
    "--keep",
    default=1,
    show_default=True,
    type=click.IntRange(min=0),
    help="Versions of DEST that stay when it is replaced, for fct-gallery rollback; 0 drops them all.",
)
@click.option("--dry-run", is_flag=True, help="Check the inputs, show the plan and the estimates, write nothing.")
@click.option(
    "--verify-rows",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows computed again in float64 before publishing.",
)
@click.option("--min-cosine", type=click.FloatRange(0, 1), help="Gate [default: by precision, 0.99999 for fp32].")
@click.option("--min-recall", type=click.FloatRange(0, 1), help="Gate on the index's recall@10 [default: none].")
@click.option(
    "--probe",
    type=click.Path(path_type=Path),
    metavar="PAIRS",
    help="Some items by the new model, with ids or one a row: what they should mean is checked before publishing.",
)
@click.option("--probe-ids", type=click.Path(path_type=Path), help="Ids of PAIRS' rows, in a file beside.")
@click.option(
    "--probe-id-column",
    metavar="NAME",
    help="Column of PAIRS' ids; of the file with --probe-ids [that of SOURCE's ids, if PAIRS has one of that name].",
)
@click.option("--probe-column", metavar="NAME", help="Column of PAIRS' embeddings.")
@click.option("--probe-queries", type=click.Path(path_type=Path), help="Queries by the new model: the same by them.")
@click.option("--probe-truth", type=click.Path(path_type=Path), help="Ids of each query's right rows.")
@click.option("--min-probe", type=click.FloatRange(0, 1), help="Gate on the probe's recall@10 [default: none].")
@click.option("--report", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page here.")
@executor_options
@json_option()
def command(
    source: Path | str,
    options: SourceOptions,
    transformation: Path,
    dest: Path | str,
    precision: str,
    backend: str,
    device: str,
    device_memory: int,
    threads: int | None,
    restart: bool,
    force: bool,
    append: bool,
    dry_run: bool,
    as_json: bool,
    page: Path | None,
    probe: Path | None,
    probe_ids: Path | None,
    probe_id_column: str | None,
    probe_column: str | None,
    probe_queries: Path | None,
    probe_truth: Path | None,
    executor: Executor | None,
    **settings: Any,
) -> None:
    """Transform every row of SOURCE, build a FAISS index, verify both, publish them as one folder.

    SOURCE is a gallery folder, or a .npy, .npz, Parquet (a file or a folder of them), Arrow, Feather, fbin, fvecs,
    HDF5, FAISS or safetensors file, a Lance or saved Hugging Face data set; the format is told by content, then by
    suffix. It may be a URL: s3://, gs://, hf:// or https://. Or a table of PostgreSQL:
    postgresql://user@host/db?table=items; with -o 'postgresql://...?table=items&column=embedding_v2' it is upgraded
    where it is, while it is written to (docs/postgres.md). With -o 'items.lance?column=embedding_v2' a Lance data set
    gets one more column by one commit.

    DEST may be a URL too, s3://bucket/gallery or gs://: parts are sent there as they are done, and one small object,
    put last, makes them the gallery (docs/galleries.md).

    Work happens in DEST.partial; a run that was stopped or killed is resumed by the same command. What --force or
    --append replaces stays in DEST.versions, for fct-gallery rollback.

    \b
    Example:
      fct-upgrade-gallery items.parquet --transformation h.bundle -o DEST --dry-run
      fct-upgrade-gallery items.parquet --transformation h.bundle -o DEST
    """
    from fct_infer import open_source, upgrade_gallery
    from fct_infer.artifacts.loading import is_code
    from fct_infer.backends.loading import open_transformation
    from fct_infer.backends.options import RuntimeOptions
    from fct_infer.connectors import open_destination
    from fct_infer.upgrade.estimate import estimate
    from fct_infer.upgrade.page import write_page
    from fct_infer.upgrade.planning import make_plan
    from fct_infer.upgrade.probe import Probe
    from fct_infer.upgrade.settings import Settings

    if page is not None:
        check_page(page, dest)
    if is_code(transformation):
        say_files_are_code(transformation)
    # A file that is code was named by the user; of a bundle, code runs only if its backend was asked for.
    trust = is_code(transformation) or backend != "auto"
    settings["format"] = settings["format"] or ("parquet" if str(dest).endswith(".parquet") else "npy")
    known = (probe, probe_ids, probe_column, probe_queries, probe_truth, probe_id_column)
    chosen = Settings(**settings, probe=Probe(*known) if any(known) else None)
    destination = open_destination(dest)
    runtime = RuntimeOptions(precision, threads, backend, device, device_memory, chosen.normalize, trust)
    h = open_transformation(transformation, runtime)
    if h.assignment:
        note(f"{transformation}: {h.assignment}")
    if h.no_device:
        click.echo(f"{h.no_device}; the CPU computes in its place", err=True)
    with open_source(source, options) as gallery:
        columns = columns_text(gallery.schema.columns, gallery.schema.other_columns)
        if dry_run:
            with make_plan(gallery, h, destination, chosen, append=append) as plan:
                plan.destination.check_replaceable(force=force or append)
                if executor is not None:
                    executor.check(plan)
                show_estimate(estimate(plan) | appended(plan, append), as_json)
                plan.check_resources()
            if page is not None:
                note(f"--report: {page} is written by an upgrade, not by --dry-run")
            return
        note(f"{gallery.path}: {columns}")
        with progress_on_stderr() as progress:
            report = upgrade_gallery(
                gallery,
                h,
                destination,
                settings=chosen,
                restart=restart,
                force=force,
                append=append,
                executor=executor,
                progress=progress,
            )
    if page is not None:
        write_page(page, report)
    show_report(report.as_dict(), as_json)
    if report.verification.warning:
        click.echo(f"warning: {report.verification.warning}", err=True)


def appended(plan: Plan, append: bool) -> dict[str, Any]:
    """Return what a dry run says of --append."""
    from fct_infer.upgrade.append import index_is_extended, unchanged_parts

    if not append:
        return {}
    parts = unchanged_parts(plan)
    rows = sum(part.rows for part in parts)
    return {"unchanged": {"shards": len(parts), "rows": rows, "index_is_extended": index_is_extended(plan)}}


def show_estimate(estimate: dict[str, Any], as_json: bool) -> None:
    """Print the plan of a dry run."""
    from fct_infer.upgrade.meaning import Expected
    from fct_infer.upgrade.report import size_of_gallery

    if as_json:
        click.echo(json.dumps(estimate, indent=2, allow_nan=False))
        return
    settings, index, dims = estimate["settings"], estimate["index"], estimate["dims"]
    rows = {
        "gallery": f"{estimate['gallery']}: {size_of_gallery(estimate['rows'], estimate['shards'])}",
        "columns": columns_text(estimate["columns"], tuple(estimate["left_out"])),
        "models": _models_text(estimate["models"]),
        "ids": (estimate["ids"] or "none; the row number stands for the id")
        + (f"; {repeated_ids_text(estimate['duplicate_ids'])}" if estimate["duplicate_ids"] else ""),
        "dims": " + ".join(str(dims[name]) for name in ("old", "side_information") if dims[name])
        + f" -> {dims['new']}",
        "result": f"{settings['dtype']}, precision {settings['precision']}"
        + (f" ({estimate['precision_choice']})" if estimate["precision_choice"] else "")
        + (", L2-normalised" if settings["normalize"] else "")
        + (", as Parquet with all other columns" if settings.get("format") == "parquet" else ""),
        "device": estimate["device"],
        "index": "none"
        if index is None
        else f"{index['factory']} ({settings['metric']}), about {size_text(index['estimated_bytes'])}, "
        + (f"trained on {counted(index['training_rows'], 'row')}" if index["training_rows"] else "nothing to train"),
        "disk": f"read {size_text(estimate['bytes_read'])}"
        + (f" {estimate['readings']} times, as samples are read forward" if estimate["readings"] > 1 else "")
        + f", write about {size_text(estimate['bytes_written'])}",
        "memory": f"about {size_text(estimate['memory_bytes'])}",
        "time": _time_text(estimate),
    }
    if unchanged := estimate.get("unchanged"):
        rows["append"] = (
            f"{counted(unchanged['shards'], 'shard')}, {counted(unchanged['rows'], 'row')}, taken over unchanged"
        )
        if unchanged["index_is_extended"]:
            rows["append"] += "; the index is extended, its lists and codes as they were trained"
    if estimate["probe"]:
        rows["probe"] = "; ".join(str(Expected(**found)) for found in estimate["probe"])
    show_rows(rows | estimate["promises"])


def _time_text(estimate: dict[str, Any]) -> str:
    text = (
        f"about {duration_text(estimate['transformation_seconds'])} for the transformation "
        f"({estimate['transformation_rows_per_second']:,.0f} rows/s measured now)"
    )
    if estimate["index"] is None:
        return text
    if (index := estimate["index_seconds"]) is None:
        return f"{text}, plus the index, whose kind has no estimate"
    training = f"{duration_text(index['training'])} for training the index, " if index["training"] else ""
    if "old_index" in estimate["settings"]:
        training += "or less if the old index's lists prove as good, "
    return f"{text}, {training}{duration_text(index['adding'])} for filling it"


def _models_text(models: dict[str, Any]) -> str:
    from fct_infer.identity import ModelId, model_text

    old, new = (model_text(ModelId(**models[name]) if name in models else None) for name in ("old", "new"))
    return f"{old} -> {new}" + ("; --new-model of fct-fit or fct-export names it" if new == "unknown" else "")


def repeated_ids_text(count: int) -> str:
    """Return the line about rows that share an id."""
    return f"{counted(count, 'row')} with the id of an earlier row"


def show_report(report: dict[str, Any], as_json: bool) -> None:
    """Print what an upgrade did."""
    from fct_infer.gallery.places import DATABASES, scheme_of
    from fct_infer.upgrade.report import Meaning, size_of_gallery

    if as_json:
        click.echo(json.dumps(report, indent=2, allow_nan=False))
        return
    checks, timings = report["verification"], report["timings"]
    rows = {
        "published": f"{report['dest']}: {size_of_gallery(report['rows'], report['shards'])}",
        "speed": f"{report['rows_per_second']:,.0f} rows/s; "
        f"{report['overlap']:.0%} of the stages' work hidden behind another stage",
        "seconds": ", ".join(f"{stage.replace('_', ' ')} {seconds:.2f}" for stage, seconds in timings.items()),
        "computed": f"on {report['device']} in {report['settings']['precision']}"
        + (f" ({report['precision_choice']})" if report["precision_choice"] else ""),
        "checked": f"{counted(checks['rows'], 'row')} against {checks['recomputed_by']}: "
        f"cosine >= {checks['min_cosine']:.6f}",
    }
    rows["models"] = _models_text(report["models"])
    rows["meaning"] = "\n    ".join(str(Meaning.from_dict(found)) for found in report["meaning"]) or (
        "not checked: whether h belongs to this gallery, --probe can tell from some items by the new model"
    )
    if report["settings"]["device"] == "cuda":
        rows["computed"] += "; a CPU's results differ in the last bits"
    if report["resumed_rows"]:
        rows["resumed"] = f"{counted(report['resumed_rows'], 'row')} done already"
    if report["settings"]["side_information"] == "old":
        rows["note"] = "no side_information/ in the gallery: the old embeddings took its place"
    if report["duplicate_ids"]:
        rows["ids"] = repeated_ids_text(report["duplicate_ids"])
    if report["index"]:
        rows["index"] = f"{report['settings']['index']} ({report['settings']['metric']}), "
        rows["index"] += f"recall@10 {checks['recall_at_10']:.3f} on {checks['queries']} queries"
        if left_out := report["index"].get("rows left out"):
            rows["left out"] = (
                f"{left_out:,} rows that are zero have no direction: the index for cosine does not hold them"
            )
        if lists := report["index_placement"].get("lists"):
            rows["index"] += f"; {lists}"
        if reason := report["index_placement"].get("reason"):
            rows["index"] += f"; built on {report['index_placement']['add']}: {reason}"
        if kernels := report["index_placement"].get("kernels"):
            rows["index"] += f"; filled on {report['index_placement']['add']} by {kernels}"
    show_rows(rows)
    dest = report["dest"]
    check = "versions" if scheme_of(dest) in DATABASES else "rollback" if "?column=" in dest else "verify"
    click.echo(f"\n{'undo' if check == 'rollback' else 'next'}: fct-gallery {check} {shlex.quote(dest)}")


def main() -> NoReturn:
    """Entry point of ``fct-upgrade-gallery``."""
    run_cli(command, resumes=True)


if __name__ == "__main__":
    main()
