"""Does an index train sooner from the old index's lists, as well, and are lists of no use recognised?

Items are seen by two models. Both see the same in them, or the new one other things in half of what it sees, or the old
lists belong to other items. Training from scratch and from the old lists take turns on the same sample.
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

import click
import faiss
import numpy as np

from benchmarks.bench_index import timed
from benchmarks.measure import cores, environment, paired_ratio, save, warn_if_loaded
from benchmarks.table import Table, gate, show
from fct_infer.index import IndexBuilder, WarmStart, describe_index
from fct_infer.transformation import Float32Array

ROWS, DIM, LATENT, PLACES, ROUNDS, INDEX = 300_000, 128, 24, 200, 3, "IVF1024,PQ32np"
QUERIES, NEIGHBOURS, NPROBE = 1000, 10, 16
KINDS = {"the same": 0, "half the same": LATENT // 2, "nothing the same": LATENT}
WORST_RECALL = -0.2  # points of a hundred


def views(kind: str, rows: int) -> tuple[Float32Array, Float32Array]:
    """Return the rows of some items by two models, clustered as embeddings are."""
    rng = np.random.default_rng(3)
    latent = rng.standard_normal((rows, LATENT), np.float32)
    latent += 3 * rng.standard_normal((PLACES, LATENT), np.float32)[rng.integers(0, PLACES, rows)]
    other = latent.copy()
    other[:, LATENT - KINDS[kind] :] = other[rng.permutation(rows), LATENT - KINDS[kind] :]
    found = []
    for each in (latent, other):
        projection = rng.standard_normal((LATENT, DIM), np.float32) / np.float32(np.sqrt(LATENT))
        found.append(each @ projection + np.float32(0.1) * rng.standard_normal((rows, DIM), np.float32))
    return found[0], found[1]


def recall(builder: IndexBuilder, rows: Float32Array, queries: Float32Array, exact: Any) -> float:
    """Return recall@10 at a fixed number of probes."""
    builder.add(rows, np.arange(len(rows)))
    builder.nprobe = min(NPROBE, builder.nlist)
    _, found = builder.search(queries, NEIGHBOURS)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in zip(exact, found, strict=True)]))


def compare(kind: str, rows: int, factory: str, rounds: int) -> dict[str, Any]:
    """Train either way in turn; return medians, ratios paired by round, and the mean recalls."""
    old, new = views(kind, rows)
    plan = describe_index(factory, DIM, rows, "l2")
    before = IndexBuilder(factory.partition(",")[0] + ",Flat", DIM, "l2", cores())
    before.train(np.ascontiguousarray(old[:: max(1, rows // plan.training_rows)]))
    lists = before.index.quantizer.search(old, 1)[1][:, 0]
    queries = new[np.linspace(0, rows - 1, QUERIES).astype(int)]
    _, exact = faiss.knn(queries, new, NEIGHBOURS)
    times: dict[str, list[dict[str, float]]] = {"scratch": [], "warm": []}
    recalls: dict[str, list[float]] = {"scratch": [], "warm": []}
    said = ""
    for number in range(rounds):
        print(f"{kind}: round {number + 1} of {rounds} ...", file=sys.stderr, flush=True)
        chosen = np.sort(np.random.default_rng(number).choice(rows, plan.training_rows, replace=False))
        sample = np.ascontiguousarray(new[chosen])
        for name, warm in (("scratch", None), ("warm", WarmStart(lists[chosen], before.nlist))):
            builder = IndexBuilder(factory, DIM, "l2", cores())
            times[name].append(timed(lambda b=builder, w=warm, s=sample: b.train(s, w)))  # type: ignore[misc]
            recalls[name].append(recall(builder, new, queries, exact))
        said = builder.placement["lists"]
    scratch, warm_times = ([run["cpu"] for run in runs] for runs in times.values())
    return {
        "cpu": {"scratch": median(scratch), "warm": median(warm_times)},
        "wall": {name: median(run["wall"] for run in runs) for name, runs in times.items()},
        "ratio": paired_ratio(scratch, warm_times),
        "recall_at_10": {name: float(np.mean(each)) for name, each in recalls.items()},
        "kept": said.startswith("lists began"),
        "said": said,
    }


def table(result: dict[str, Any]) -> Table:
    """A row for each kind of gallery."""
    rows = []
    for kind, case in result["cases"].items():
        recalls = [f"{case['recall_at_10'][name]:.4f}" for name in ("scratch", "warm")]
        seconds = [f"{case['cpu'][name]:.2f}" for name in ("scratch", "warm")]
        rows.append([kind, *seconds, f"{case['ratio']:.2f}x", *recalls, "yes" if case["kept"] else "no"])
    columns = ["the models see", "scratch, CPU s", "warm, CPU s", "ratio", "recall@10", "warm", "lists kept"]
    parameters = result["parameters"]
    return Table(f"Training {parameters['index']} on {parameters['training_rows']:,} rows", columns, rows)


@click.command()
@click.option("--rows", default=ROWS, show_default=True)
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--index", "factory", default=INDEX, show_default=True)
@click.option("--quick", is_flag=True, help="One round; nothing is written to results/.")
def main(rows: int, rounds: int, factory: str, quick: bool) -> None:
    """Compare training from scratch and from the old lists, and write results/warm_start.json."""
    warn_if_loaded()
    result = environment()
    training_rows = describe_index(factory, DIM, rows, "l2").training_rows
    result["parameters"] = {"rows": rows, "rounds": rounds, "index": factory, "training_rows": training_rows}
    result["cases"] = {kind: compare(kind, rows, factory, 1 if quick else rounds) for kind in KINDS}
    result["not_measured"] = []
    result["gates"] = [
        gate(
            f"{kind}: recall@10 of a warm start less that from scratch, points of a hundred",
            100 * (case["recall_at_10"]["warm"] - case["recall_at_10"]["scratch"]),
            WORST_RECALL,
        )
        for kind, case in result["cases"].items()
    ]
    show(result, [table(result)])
    if not quick:
        print(f"written: {save('warm_start', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
