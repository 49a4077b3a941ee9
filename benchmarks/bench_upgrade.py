"""Is the whole upgrade, from shards on disk to a searchable index, faster than the script a user would write?

Contestants run in turn, each in a process of its own, on the same gallery in the page cache, with the same index
factory and as many training rows.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
import faiss
import numpy as np

from benchmarks.galleries import read_shards, write_gallery
from benchmarks.measure import WORK, cores, environment, fastest_float, paired_ratio, save, warn_if_loaded
from benchmarks.opponents import OPPONENTS
from benchmarks.opponents.plain_script import BATCH
from benchmarks.opponents.resnet50 import images_per_second
from benchmarks.programs import UPGRADE_PROGRAMS
from benchmarks.table import gate, show, upgrade_tables
from benchmarks.upgrade_runs import Run, batch_seconds, fused, plain, run_once
from fct_infer.index import describe_index

PROGRAM, ROWS, ROUNDS, INDEX = "small", 1_000_000, 3, "IVF1024,PQ32np"
INDEXES = {"wide": "IVF4096,PQ96np"}  # of other programs than the first
QUICK_ROWS, QUICK_ROUNDS, QUICK_INDEX = 100_000, 1, "IVF256,PQ16np"
PLAIN_RUNTIME = "ONNX Runtime"  # of the plain script, at fp32
MAX_RELATIVE_ERROR = {"fp32": 1e-4, "bf16": 5e-2}  # L2 norm of a row's difference over that of the row
NPROBE, QUERIES, NEIGHBOURS = 16, 10_000, 10  # 1,000 leave 0.4 points to chance
WANTED_FASTEST, WANTED_PLAIN, WANTED_RECALL = 2.0, 2.5, -0.2


def fastest_runtime(program: str, precision: str, rounds: int) -> str:
    """Return the opponent that transforms a batch of the plain script fastest at this precision.

    Each is measured in processes of its own, which take turns.
    """
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        for name in OPPONENTS:
            print(f"round {number + 1} of {rounds}: a batch by {name} ...", file=sys.stderr, flush=True)
            if (found := batch_seconds(program, precision, name)) is not None:
                seconds.setdefault(name, []).append(found)
    return min(seconds, key=lambda name: median(seconds[name]))


def check_equal(dest: Path, reference: Path, precision: str) -> None:
    """Stop unless two upgraded galleries hold the same embeddings; one shard in memory at a time."""
    for ours, theirs in zip(read_shards(reference), read_shards(dest), strict=True):
        error = float(np.max(np.linalg.norm(theirs - ours, axis=1) / np.linalg.norm(ours, axis=1)))
        if not error <= MAX_RELATIVE_ERROR[precision]:
            raise click.ClickException(f"{dest}: embeddings differ from fct_infer's by {error:.1e}")


def recall(dest: Path) -> float:
    """Return recall@10 of an upgraded gallery's index against exact search, rows of the gallery as queries."""
    rows = np.concatenate(list(read_shards(dest)))
    queries = rows[np.linspace(0, len(rows) - 1, QUERIES).astype(int)]
    _, exact = faiss.knn(queries, rows, NEIGHBOURS)
    index = faiss.read_index(str(dest / "index.faiss"))
    faiss.extract_index_ivf(index).nprobe = NPROBE
    _, found = index.search(queries, NEIGHBOURS)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in zip(exact, found, strict=True)]))


def compare(gallery: Path, contestants: dict[str, list[str]], rounds: int, precision: str) -> dict[str, Run]:
    """Run all contestants in turn; return medians, and ratios paired by round, by name."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    dests = {name: gallery.with_name(f"dest-{number}") for number, name in enumerate(contestants)}
    ours = next(iter(contestants))
    for number in range(rounds):
        for name, command in contestants.items():
            print(f"round {number + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
            runs[name].append(run_once(command, gallery, dests[name]))
    for dest in dests.values():
        check_equal(dest, dests[ours], precision)
    walls = {name: [run["wall"] for run in all_runs] for name, all_runs in runs.items()}
    return {
        name: {
            "wall": median(walls[name]),
            "peak_memory": median(run["peak_memory"] for run in all_runs),
            "seconds": {stage: median(run["seconds"][stage] for run in all_runs) for stage in all_runs[0]["seconds"]},
            "recall_at_10": recall(dests[name]),
            **({} if name == ours else {"ratio": paired_ratio(walls[name], walls[ours])}),
        }
        for name, all_runs in runs.items()
    }


def bench(folder: Path, rows: int, rounds: int, program: str, index: str) -> dict[str, Any]:
    """Return the result, ready for JSON."""
    header, h, precision = environment(), UPGRADE_PROGRAMS[program], fastest_float()
    images = images_per_second(precision, cores())
    fastest = fastest_runtime(program, precision, rounds)
    training_rows = describe_index(index, h.new_dim, rows, "l2").training_rows
    write_gallery(folder / "gallery", rows, h.dims)
    baseline, best = f"plain script, {PLAIN_RUNTIME} fp32", f"plain script, {fastest} {precision}"
    contestants = {  # baseline and best are one and the same where that runtime is the fastest at fp32
        f"fct_infer {precision}": fused(program, precision, index),
        baseline: plain(program, "fp32", index, PLAIN_RUNTIME, training_rows),
        best: plain(program, precision, index, fastest, training_rows),
    }
    results = compare(folder / "gallery", contestants, rounds, precision)
    what = f"{program} h, {rows:,} rows"
    ours, *others = (result["recall_at_10"] for result in results.values())
    gates = [
        gate(f"{what}: {best} / ours", results[best]["ratio"], WANTED_FASTEST),
        gate(f"{what}: {baseline} / ours", results[baseline]["ratio"], WANTED_PLAIN),
        gate(
            f"{what}: recall@10 less that of the best script, points of a hundred",
            100 * (ours - max(others)),
            WANTED_RECALL,
        ),
    ]
    not_measured = [] if precision == "bf16" else ["bf16: not native on this CPU, not measured"]
    parameters = {"rows": rows, "rounds": rounds, "program": program, "index": index, "precision": precision}
    return {
        **header,
        "parameters": {**parameters, "training_rows": training_rows, "batch": BATCH, "nprobe": NPROBE},
        "resnet50_images_per_second": images,
        "contestants": results,
        "not_measured": not_measured,
        "gates": gates,
    }


@click.command()
@click.option("--rows", default=ROWS, show_default=True, help="Rows of the gallery.")
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--program", type=click.Choice(list(UPGRADE_PROGRAMS)), default=PROGRAM, show_default=True)
@click.option("--index", help=f"FAISS factory string of an IVF index [default: {INDEX}; wide: {INDEXES['wide']}].")
@click.option("--quick", is_flag=True, help="A tenth of the rows, one round; nothing is written to results/.")
def main(rows: int, rounds: int, program: str, index: str | None, quick: bool) -> None:
    """Compare a whole upgrade with the script a user would write."""
    warn_if_loaded()
    index = index or INDEXES.get(program, INDEX)
    if quick:
        rows, rounds, index = QUICK_ROWS, QUICK_ROUNDS, QUICK_INDEX
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        result = bench(Path(folder), rows, rounds, program, index)
    show(result, upgrade_tables(result))
    if not quick:
        name = "upgrade" if program == PROGRAM else f"upgrade_{program}"
        print(f"written: {save(name, result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
