"""What to serve with while half of a gallery is new: quality of each way, and latency at 1,000,000 rows.

    make demo                                   # trains the models, once
    python -m benchmarks.bench_serving          # reads demo/work

Quality: 500 rows of the demo's gallery search it without themselves, by the new model (and by the old one, where a way
asks for that); mAP counts a row that is not found as missed. Latency: one query at a time, one thread; beside the time
on the clock stands that on the CPU, which a busy machine does not lengthen.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.galleries import write_gallery
from benchmarks.measure import WORK, environment, peak_memory, save, warn_if_loaded
from benchmarks.programs import PROGRAMS
from benchmarks.table import serving_tables, show
from fct_infer import Transformation, load_embedder, load_transformation, open_source
from fct_infer.gallery.ids import id_blocks
from fct_infer.index import GalleryIndex, IndexBuilder
from fct_infer.serving import CalibratedSpace, MixedGallery, StoredRows, calibrate, forecast_backfill
from fct_infer.serving.loading import new_blocks
from fct_infer.serving.orders import distance_order
from fct_infer.transformation import Float32Array

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
QUERIES, SEEDS, DEPTH = 500, 1, 200
ROWS, QUICK_ROWS, INDEX = 1_000_000, 100_000, "IVF1024,Flat"
CHANGED = (0, 10_000, 100_000)
TIMED, K, BATCH = 1000, 10, 256

Ranks = NDArray[np.int64]


class Demo:
    """The demo's gallery in all its forms; row i of each is the same image."""

    def __init__(self, work: Path) -> None:
        self.source = open_source(work / "old_gallery")
        rows = np.arange(self.source.schema.rows)
        self.old, self.side = self.source.read_rows(rows)
        self.ids = np.concatenate([ids for _, ids in id_blocks(self.source)])
        self.labels = np.load(work / "images" / "test_labels.npy")
        self.h = load_transformation(work / "bundles" / "transformation", "fp32", device="cpu")
        images = np.load(work / "images" / "test_images.npy").transpose(0, 3, 1, 2) / np.float32(255)
        embed = load_embedder(work / "bundles" / "new_model")
        self.new = np.concatenate(
            [embed(np.ascontiguousarray(images[at : at + 250])) for at in range(0, len(images), 250)]
        )
        self._by_id = np.argsort(self.ids)
        self.queries = np.sort(np.random.default_rng(0).choice(len(rows), QUERIES, replace=False))

    def rows_of(self, ids: NDArray[Any]) -> Ranks:
        """Rows of ids of any shape; -1 for nothing found."""
        places = np.searchsorted(self.ids, np.maximum(ids, 0), sorter=self._by_id)
        return np.where(ids < 0, -1, self._by_id[places])

    def mean_average_precision(self, ranking: Ranks) -> float:
        """Of rows (q, n) in their order, the query's own left out; -1 is nothing."""
        merits = []
        for query, row in zip(self.queries.tolist(), ranking, strict=True):
            kept = row[(row != query) & (row >= 0)]
            hits = np.flatnonzero(self.labels[kept] == self.labels[query])
            relevant = int((self.labels == self.labels[query]).sum()) - 1
            merits.append((np.arange(1, len(hits) + 1) / (hits + 1)).sum() / relevant)
        return 100 * float(np.mean(merits))

    def ranking(self, gallery: MixedGallery, *, both: bool = False) -> Ranks:
        """What a mixed gallery finds, all of it, as rows."""
        old = np.ascontiguousarray(self.old[self.queries]) if both else None
        found = gallery.search(np.ascontiguousarray(self.new[self.queries]), len(self.ids), old).ids
        return self.rows_of(found)


def naive(demo: Demo) -> Callable[[NDArray[np.bool_]], Ranks]:
    """Old and new rows in one index, as if they were of one space: what no class here does."""

    def search(is_new: NDArray[np.bool_]) -> Ranks:
        index = faiss.IndexFlatL2(demo.new.shape[1])
        index.add(np.where(is_new[:, None], demo.new, demo.old))
        ranking: Ranks = index.search(np.ascontiguousarray(demo.new[demo.queries]), len(demo.new))[1]
        return ranking

    return search


def mixed(demo: Demo, make: Callable[[], MixedGallery], *, both: bool) -> Callable[[NDArray[np.bool_]], Ranks]:
    """One of the ways of :class:`MixedGallery`."""

    def search(is_new: NDArray[np.bool_]) -> Ranks:
        gallery = make()
        if is_new.any():
            gallery.upsert(demo.ids[is_new], demo.new[is_new])
            gallery.compact()
        return demo.ranking(gallery, both=both)

    return search


def ways(demo: Demo) -> tuple[dict[str, Callable[[NDArray[np.bool_]], Ranks]], dict[float, float]]:
    """Return what is compared, by name, and what the calibration expects to lose."""
    builder = IndexBuilder("Flat", demo.old.shape[1], "l2", 1)
    builder.add(demo.old, demo.ids)
    old_index = GalleryIndex(builder.index, "l2")
    both_known = np.random.default_rng(1).choice(len(demo.ids), len(demo.ids) // 4, replace=False)
    calibration = calibrate(demo.old[both_known], demo.new[both_known])

    def fetch(ids: NDArray[Any]) -> tuple[Float32Array, Float32Array]:
        rows = demo.rows_of(ids)
        return demo.old[rows], demo.side[rows]

    stored = StoredRows(old_index, fetch, demo.h, "l2", DEPTH)
    top = _Cut(stored, DEPTH)
    return {
        "naive: one index of both spaces": naive(demo),
        "two indexes, merged by quantiles": mixed(
            demo, lambda: MixedGallery(CalibratedSpace(old_index, calibration), demo.ids), both=True
        ),
        f"h over the old space's top {DEPTH}": mixed(demo, lambda: MixedGallery(top, demo.ids), both=True),
        "h on read": mixed(demo, lambda: MixedGallery.open(demo.source, demo.h, index="Flat"), both=False),
    }, calibration.loss


class _Cut:
    """A space that has no more candidates than its depth, though all rows are asked for."""

    def __init__(self, space: StoredRows, most: int) -> None:
        self._space, self._most = space, most
        self.metric, self.dim, self.depth, self.is_exact_space = space.metric, space.dim, space.depth, True

    def nearest(self, queries: Float32Array, count: int, old_queries: Float32Array | None) -> Any:
        """See Space: what lies beyond is nothing."""
        costs, ids = self._space.nearest(queries, min(count, self._most), old_queries)
        short = ((0, 0), (0, count - costs.shape[1]))
        return np.pad(costs, short, constant_values=np.inf), np.pad(ids, short, constant_values=-1)


def quality(work: Path) -> dict[str, Any]:
    """mAP of each way at each share, in random order and class by class; what the forecast said of h on read."""
    demo = Demo(work)
    contestants, loss = ways(demo)
    rng = np.random.default_rng(2)
    orders = {
        "random": [rng.permutation(len(demo.ids)) for _ in range(SEEDS)],
        "class by class": [np.argsort(demo.labels, kind="stable")],
        "far from the mean of their class first": [distance_order(demo.source, demo.h, demo.labels)],
    }
    found: dict[str, dict[str, list[float]]] = {}
    for order_name, same_kind in orders.items():
        found[order_name] = {}
        for name, search in contestants.items():
            merits = []
            for share in SHARES:
                at_share = []
                for order in same_kind:
                    is_new = np.zeros(len(order), bool)
                    is_new[order[: round(share * len(order))]] = True
                    at_share.append(demo.mean_average_precision(search(is_new)))
                merits.append(float(np.mean(at_share)))
            found[order_name][name] = merits
            print(order_name, name, [round(each, 1) for each in merits], file=sys.stderr)
    return {"rows": len(demo.ids), "mAP": found, "expected_loss": loss, "forecast": _forecasts(demo, orders)}


def _forecasts(demo: Demo, orders: dict[str, list[Ranks]]) -> dict[str, dict[str, list[float]]]:
    """Overlap@10 at each share: forecast from a probe of 1,000 rows, and of all rows."""
    transformed = demo.h(demo.old, demo.side)
    probe = np.sort(np.random.default_rng(3).choice(len(demo.ids), 1000, replace=False))
    found = {}
    for name, same_kind in orders.items():
        turns = np.empty(len(demo.ids))
        turns[same_kind[0]] = np.arange(len(turns)) / len(turns)
        by_probe = forecast_backfill(transformed[probe], demo.new[probe], turns[probe])
        by_all = forecast_backfill(transformed, demo.new, turns)
        found[name] = {
            "probe": [by_probe.at(share) for share in SHARES],
            "all rows": [by_all.at(share) for share in SHARES],
        }
    return found


def latency(rows: int) -> dict[str, Any]:
    """Milliseconds of one search, with more and more rows changed and after folding them in."""
    faiss.omp_set_num_threads(1)
    threadpool_limits(1)
    program = PROGRAMS["small"]
    h = Transformation(program, "fp32", threads=1)
    WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=WORK))
    try:
        write_gallery(folder / "g", rows, dict(program.dims))
        h_seconds = _h_seconds(folder / "g", h)
        cpu, begun = time.process_time(), time.perf_counter()
        gallery = MixedGallery.open(folder / "g", h, index=INDEX, threads=1)
        opened = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "h_cpu": h_seconds}
        rng = np.random.default_rng(0)
        queries = h(*open_source(folder / "g").sample(TIMED, 1)[1:])
        order = rng.permutation(rows)
        cases, done = {}, 0
        for changed in CHANGED:
            upserts = []
            for start in range(done, changed, BATCH):
                ids = order[start : min(start + BATCH, changed)]
                vectors = h(*open_source(folder / "g").read_rows(np.sort(ids)))
                before = time.perf_counter()
                gallery.upsert(np.sort(ids), vectors)
                upserts.append(time.perf_counter() - before)
            done = changed
            cases[f"{changed:,} changed"] = _timed(gallery, queries) | {"upsert_ms": _median_ms(upserts)}
        before = time.perf_counter()
        gallery.compact()
        compact = time.perf_counter() - before
        cases[f"{CHANGED[-1]:,} folded in"] = _timed(gallery, queries)
        return {
            "rows": rows,
            "index": INDEX,
            "open": opened,
            "compact": compact,
            "cases": cases,
            "memory": peak_memory(),
        }
    finally:
        shutil.rmtree(folder)


def _h_seconds(path: Path, h: Transformation) -> float:
    """CPU seconds of reading and transforming all rows, without an index."""
    before = time.process_time()
    for _ in new_blocks(open_source(path), h):
        pass
    return time.process_time() - before


def _median_ms(seconds: list[float]) -> float | None:
    return 1000 * float(np.median(seconds)) if seconds else None


def _timed(gallery: MixedGallery, queries: Float32Array) -> dict[str, float]:
    clock, cpu = [], []
    for number in range(len(queries)):
        before, cpu_before = time.perf_counter(), time.thread_time()
        gallery.search(queries[number : number + 1], K)
        cpu.append(1000 * (time.thread_time() - cpu_before))
        clock.append(1000 * (time.perf_counter() - before))
    return {
        f"{name}p{at}": float(np.percentile(each, at)) for name, each in (("", clock), ("cpu ", cpu)) for at in (50, 99)
    }


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=Path("demo/work"), show_default=True)
@click.option("--quick", is_flag=True, help="100,000 rows; shows that everything works and writes nothing.")
def main(work: Path, quick: bool) -> None:
    """Measure, print, save."""
    if not (work / "bundles" / "new_model").is_dir():
        raise click.UsageError(f"{work}: holds no trained models; run make demo first")
    warn_if_loaded()
    result = environment() | {"quality": quality(work), "latency": latency(QUICK_ROWS if quick else ROWS)}
    result |= {"gates": [], "not_measured": []}
    show(result, serving_tables(result))
    if not quick:
        save("serving", result)


if __name__ == "__main__":
    main()
