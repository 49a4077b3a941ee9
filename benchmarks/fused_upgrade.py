"""One upgrade by this package, in a process of its own; prints one JSON document like opponents/plain_script.py."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

import fct_infer.index
from benchmarks.measure import cores, peak_memory
from benchmarks.programs import PROGRAMS
from fct_infer.transformation import Transformation
from fct_infer.upgrade.plan import Settings
from fct_infer.upgrade.run import upgrade_gallery

assert fct_infer.index  # FAISS is imported before the clock starts, as in the plain script
STAGES = {"train_index": "train index", "replay": None, "stream": "stream", "verify": "verify", "finish": "save index"}


@click.command()
@click.argument("gallery", type=Path)
@click.argument("dest", type=Path)
@click.option("--program", required=True)
@click.option("--precision", required=True)
@click.option("--index", "factory", required=True)
def main(gallery: Path, dest: Path, program: str, precision: str, factory: str) -> None:
    start = time.perf_counter()
    h = Transformation(PROGRAMS[program], precision, cores())
    loaded = time.perf_counter()
    report = upgrade_gallery(gallery, h, dest, settings=Settings(index=factory))
    wall = time.perf_counter() - start
    document = {
        "seconds": {"load model": loaded - start, **report.timings},
        "wall": wall,
        "peak_memory": peak_memory(),
        "overlap": report.overlap,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
