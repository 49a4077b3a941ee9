"""The script a user would write: load the gallery, run the model, save, build the index, one after the other.

Runs in a process of its own; prints one JSON document with the seconds of each stage and the peak memory.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import faiss
import numpy as np

from benchmarks import opponents
from benchmarks.measure import Stopwatch, cores, peak_memory
from benchmarks.programs import UPGRADE_PROGRAMS

BATCH = 4096


@click.command()
@click.argument("gallery", type=Path)
@click.argument("dest", type=Path)
@click.option("--program", required=True)
@click.option("--runtime", required=True)
@click.option("--precision", required=True)
@click.option("--index", "factory", required=True)
@click.option("--training-rows", type=int, required=True)
def main(
    gallery: Path, dest: Path, program: str, runtime: str, precision: str, factory: str, training_rows: int
) -> None:
    opponents.find(runtime)  # imports do not count
    watch = Stopwatch()
    h = UPGRADE_PROGRAMS[program]
    apply = opponents.load(runtime, h, precision, cores())
    watch.lap("load_model")

    files = sorted((gallery / "embeddings").glob("*.npy"))
    old = np.concatenate([np.load(file) for file in files])
    side = np.concatenate([np.load(gallery / "side_information" / file.name) for file in files])
    watch.lap("read")

    new = np.empty((len(old), h.new_dim), np.float32)
    for start in range(0, len(old), BATCH):
        rows = slice(start, start + BATCH)
        result = apply(old[rows], side[rows], new[rows])
        if not np.shares_memory(result, new):
            new[rows] = result
    watch.lap("transform")

    (dest / "embeddings").mkdir(parents=True)
    start = 0
    for file in files:
        stop = start + len(np.load(file, mmap_mode="r"))
        np.save(dest / "embeddings" / file.name, new[start:stop])
        start = stop
    watch.lap("write")

    index = faiss.index_factory(h.new_dim, factory)
    sample = np.random.default_rng(0).choice(len(new), min(training_rows, len(new)), replace=False)
    index.train(new[sample])
    watch.lap("train_index")
    index.add(new)
    watch.lap("index")
    faiss.write_index(index, str(dest / "index.faiss"))
    watch.lap("finish")

    print(json.dumps({"seconds": watch.laps, "wall": watch.total, "peak_memory": peak_memory()}))


if __name__ == "__main__":
    main()
