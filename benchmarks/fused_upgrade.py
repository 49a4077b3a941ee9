"""One upgrade by this package, in a process of its own; prints one JSON document like opponents/plain_script.py."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click

from benchmarks.measure import Stopwatch, cores, peak_memory
from benchmarks.programs import PROGRAMS
from fct_infer.transformation import Transformation
from fct_infer.upgrade.plan import Settings
from fct_infer.upgrade.run import upgrade_gallery


@click.command()
@click.argument("gallery", type=Path)
@click.argument("dest", type=Path)
@click.option("--program", required=True)
@click.option("--precision", required=True)
@click.option("--index", required=True)
@click.option("--device", default="cpu")
def main(gallery: Path, dest: Path, program: str, precision: str, index: str, device: str) -> None:
    if index != "none":
        importlib.import_module("faiss")  # which the package does on use; imports do not count
    watch = Stopwatch()
    h = Transformation(PROGRAMS[program], precision, cores(), device)
    watch.lap("load_model")
    report = upgrade_gallery(gallery, h, dest, settings=Settings(index=index))
    watch.lap("upgrade")
    seconds = {"load_model": watch.laps["load_model"], **report.timings}
    print(json.dumps({"seconds": seconds, "wall": watch.total, "peak_memory": peak_memory()}))


if __name__ == "__main__":
    main()
