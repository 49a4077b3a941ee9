"""One upgrade by this package, in a process of its own; prints one JSON document like opponents/plain_script.py."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from time import process_time

import click

from benchmarks.measure import Stopwatch, cores, peak_memory
from benchmarks.programs import UPGRADE_PROGRAMS
from fct_infer.index import builder
from fct_infer.transformation import Transformation
from fct_infer.upgrade.run import upgrade_gallery
from fct_infer.upgrade.settings import Settings

LIBRARIES = {".parquet": ["pyarrow.parquet"], ".hdf5": ["h5py"], ".faiss": ["faiss"]}


@click.command()
@click.argument("gallery", type=Path)
@click.argument("dest", type=Path)
@click.option("--program", required=True)
@click.option("--precision", required=True)
@click.option("--index", required=True)
@click.option("--device", default="cpu")
@click.option("--format", "form", default="npy")
@click.option("--index-by-faiss", is_flag=True, help="Train and fill the index by FAISS alone.")
def main(
    gallery: Path, dest: Path, program: str, precision: str, index: str, device: str, form: str, index_by_faiss: bool
) -> None:
    used = LIBRARIES.get(gallery.suffix, [])
    for module in [*used, *LIBRARIES.get(f".{form}", []), *(["faiss"] if index != "none" else [])]:
        importlib.import_module(module)  # which the package does on use; imports do not count
    if index_by_faiss:
        builder.train_index = lambda index, sample, threads, warm: index.train(sample)
        builder.filler_of = lambda *_: None
    watch = Stopwatch()
    h = Transformation(UPGRADE_PROGRAMS[program], precision, cores(), device)
    watch.lap("load_model")
    report = upgrade_gallery(gallery, h, dest, settings=Settings(index=index, format=form))
    watch.lap("upgrade")
    seconds = {"load_model": watch.laps["load_model"], **report.timings}
    print(json.dumps({"seconds": seconds, "wall": watch.total, "cpu": process_time(), "peak_memory": peak_memory()}))


if __name__ == "__main__":
    main()
