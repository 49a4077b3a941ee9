"""Is an index trained and filled by the core built sooner than by FAISS, and as good?

Contestants take turns, on the same rows with as many threads: training, adding, and a whole upgrade, each of these in a
process of its own. CPU time is shown beside wall time: other work on the machine disturbs it less.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import faiss
import numpy as np

from benchmarks import text
from benchmarks.galleries import read_shards, write_gallery
from benchmarks.measure import WORK, cores, environment, paired_ratio, save, warn_if_loaded
from benchmarks.programs import PROGRAMS
from benchmarks.table import gate, index_tables, show
from benchmarks.upgrade_runs import fused, run_once
from fct_infer.index import IndexBuilder, describe_index
from fct_infer.transformation import Float32Array

PROGRAM, ROWS, ROUNDS, INDEX = "small", 1_000_000, 3, "IVF1024,PQ32np"
QUICK_ROWS, QUICK_ROUNDS, QUICK_INDEX = 100_000, 1, "IVF256,PQ16np"
NPROBE, QUERIES, NEIGHBOURS = 16, 10_000, 10  # 1,000 leave a point to chance
WANTED_TRAIN, WANTED_ADD, WANTED_RECALL = 2.5, 3.5, -0.2
FAISS_METRICS = {"l2": faiss.METRIC_L2, "ip": faiss.METRIC_INNER_PRODUCT}
Times = dict[str, list[dict[str, float]]]


class ByFaiss(IndexBuilder):
    """The same index, trained and filled by FAISS."""

    def _train(self, sample: Float32Array, warm: object = None) -> None:
        self.index.train(sample)

    def _add(self, rows: Float32Array, ids: Any) -> None:
        self.index.add_with_ids(rows, ids)


BUILDERS = {"fct_infer": IndexBuilder, "FAISS": ByFaiss}


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Return the wall time and the CPU time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


@dataclass(frozen=True)
class Searched:
    """How good an index is, by contestant: means of all rounds.

    Attributes:
        recalls: recall@10 of queries.
        read: rows that a query is compared with: of lists that are not alike long, more.
    """

    recalls: dict[str, float]
    read: dict[str, float]


def build_stages(rows: Float32Array, factory: str, metric: str, rounds: int) -> tuple[dict[str, Times], Searched]:
    """Train and fill in turn; return the times by stage and contestant, and how good their indexes are."""
    plan = describe_index(factory, rows.shape[1], len(rows), metric)
    times: dict[str, Times] = {stage: {name: [] for name in BUILDERS} for stage in ("train", "add")}
    queries = rows[np.linspace(0, len(rows) - 1, QUERIES).astype(int)]
    _, exact = faiss.knn(queries, rows, NEIGHBOURS, metric=FAISS_METRICS[metric])
    searched = Searched({}, {})
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}: train and add ...", file=sys.stderr, flush=True)
        rng = np.random.default_rng(number)
        sample = rows[np.sort(rng.choice(len(rows), plan.training_rows, replace=False))]
        builders = {name: kind(factory, rows.shape[1], metric, cores()) for name, kind in BUILDERS.items()}
        ids = np.arange(len(rows))
        for name, builder in builders.items():
            times["train"][name].append(timed(partial(builder.train, sample)))
        for name, builder in builders.items():
            times["add"][name].append(timed(partial(builder.add, rows, ids)))
        for name, builder in builders.items():
            builder.nprobe = min(NPROBE, builder.nlist)
            faiss.cvar.indexIVF_stats.reset()
            _, found = builder.search(queries, NEIGHBOURS)
            hits = [len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in zip(exact, found, strict=True)]
            read = faiss.cvar.indexIVF_stats.ndis / len(queries)
            for means, value in ((searched.recalls, float(np.mean(hits))), (searched.read, read)):
                means[name] = means.get(name, 0) + value / rounds
    return times, searched


def whole_upgrades(gallery: Path, factory: str, rounds: int) -> Times:
    """Upgrade a gallery in turn, with the index by either."""
    command = fused(PROGRAM, "fp32", factory)
    commands = {"fct_infer": command, "FAISS": [*command, "--index-by-faiss"]}
    times: Times = {name: [] for name in commands}
    for number in range(rounds):
        for name, each in commands.items():
            print(f"round {number + 1} of {rounds}: whole upgrade, {name} ...", file=sys.stderr, flush=True)
            run = run_once(each, gallery, gallery.with_name("dest"))
            times[name].append({"wall": run["wall"], "cpu": run["cpu"]})
    return times


def summary(times: Times) -> dict[str, Any]:
    """Return medians by contestant, and FAISS's ratios to ours paired by round."""
    found: dict[str, Any] = {
        name: {clock: median(run[clock] for run in runs) for clock in ("wall", "cpu")} for name, runs in times.items()
    }
    ours, theirs = times.values()
    found["FAISS"]["ratio"] = {
        clock: paired_ratio([run[clock] for run in theirs], [run[clock] for run in ours]) for clock in ("wall", "cpu")
    }
    return found


def texts() -> Float32Array:
    """Return what the definitions of WordNet are embedded to (113,330, 256), by token vectors."""

    def rows() -> dict[str, Float32Array]:
        return {"rows": text.embed("static", [item.meaning for item in text.dictionary()])}

    return text.once("definitions", rows)["rows"]


def bench(
    vectors: Float32Array, rounds: int, factory: str, metric: str = "l2", gallery: Path | None = None
) -> dict[str, Any]:
    """Return the result, ready for JSON; with whole upgrades, if there is a gallery."""
    header = environment()
    times, searched = build_stages(vectors, factory, metric, rounds)
    if gallery is not None:
        times["whole upgrade"] = whole_upgrades(gallery, factory, rounds)
    stages = {stage: summary(each) for stage, each in times.items()}
    recalls = searched.recalls
    gained = 100 * (recalls["fct_infer"] - recalls["FAISS"])
    return {
        **header,
        "parameters": {
            "rows": len(vectors),
            "dim": vectors.shape[1],
            "rounds": rounds,
            "program": PROGRAM,
            "index": factory,
            "metric": metric,
        },
        "stages": stages,
        "recall_at_10": recalls,
        "rows_read_a_query": searched.read,
        "not_measured": [],
        "gates": [
            gate("training, FAISS's CPU seconds / ours", stages["train"]["FAISS"]["ratio"]["cpu"], WANTED_TRAIN),
            gate("adding, FAISS's CPU seconds / ours", stages["add"]["FAISS"]["ratio"]["cpu"], WANTED_ADD),
            gate("recall@10 less that of FAISS, points of a hundred", gained, WANTED_RECALL),
        ],
    }


@click.command()
@click.option("--rows", default=ROWS, show_default=True)
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--index", "factory", default=INDEX, show_default=True)
@click.option("--metric", type=click.Choice(list(FAISS_METRICS)), help="Train and add by it: implies --stages-only.")
@click.option("--vectors", type=click.Path(exists=True, path_type=Path), help="Yours, .npy: implies --stages-only.")
@click.option("--texts", "are_texts", is_flag=True, help="Of WordNet's definitions, likewise; wants .[reproduce].")
@click.option("--stages-only", is_flag=True, help="No whole upgrades; nothing is written to results/.")
@click.option("--quick", is_flag=True, help="A tenth of the rows, one round; nothing is written to results/.")
def main(
    rows: int,
    rounds: int,
    factory: str,
    metric: str | None,
    vectors: Path | None,
    are_texts: bool,
    stages_only: bool,
    quick: bool,
) -> None:
    """Compare building an index by the core and by FAISS, and write results/index.json."""
    if quick:
        rows, rounds, factory = QUICK_ROWS, QUICK_ROUNDS, QUICK_INDEX
    warn_if_loaded()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        if vectors is not None or are_texts:
            given = texts() if vectors is None else np.load(vectors).astype(np.float32, copy=False)
            gallery, stages_only = None, True
        else:
            gallery = Path(folder) / "gallery"
            write_gallery(gallery, rows, PROGRAMS[PROGRAM].dims)
            given = np.concatenate(list(read_shards(gallery)))
            stages_only = stages_only or metric is not None
        result = bench(given, rounds, factory, metric or "l2", None if stages_only else gallery)
    show(result, index_tables(result))
    if not (quick or stages_only):
        print(f"written: {save('index', result)}; python -m benchmarks.table puts it into README.md")


if __name__ == "__main__":
    main()
