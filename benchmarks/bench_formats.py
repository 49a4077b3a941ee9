"""What does it cost to upgrade vectors where they lie, and to publish Parquet, next to the project's own shards?

The same rows in every format, each written by its own library; contestants run in turn, each in a process of its own,
on a file in the page cache, without an index.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import faiss
import h5py
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.galleries import read_shards, write_gallery
from benchmarks.measure import WORK, environment, paired_ratio, save, warn_if_loaded
from benchmarks.programs import PROGRAMS
from benchmarks.table import formats_tables, gate, show
from benchmarks.upgrade_runs import Run, fused, run_once
from fct_infer.transformation import Float32Array

PROGRAM, ROWS, ROUNDS, QUICK_ROWS = "small", 500_000, 3, 100_000
BASELINE = "npy shards"
WANTED = 1.5  # times the wall time of shards, at most, for plain Parquet


def _column(rows: Float32Array) -> pa.Table:
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    return pa.table({"id": np.arange(len(rows)), "embedding": values})


def _plain_parquet(path: Path, rows: Float32Array) -> None:
    pq.write_table(_column(rows), path, row_group_size=100_000, use_dictionary=False, compression="none")


def _default_parquet(path: Path, rows: Float32Array) -> None:
    pq.write_table(_column(rows), path)


def _fbin(path: Path, rows: Float32Array) -> None:
    path.write_bytes(np.array(rows.shape, "<u4").tobytes() + rows.tobytes())


def _hdf5(path: Path, rows: Float32Array) -> None:
    with h5py.File(path, "w") as file:
        file["train"] = rows


def _packed_hdf5(path: Path, rows: Float32Array) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("train", data=rows, chunks=(1000, rows.shape[1]), compression="gzip", compression_opts=1)


def _faiss(path: Path, rows: Float32Array) -> None:
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    faiss.write_index(index, str(path))


def _lance(path: Path, rows: Float32Array) -> None:
    lance.write_dataset(_column(rows), path)


FORMATS: dict[str, tuple[str, Callable[[Path, Float32Array], None]]] = {
    "one .npy": ("rows.npy", np.save),
    "Parquet, plain": ("plain.parquet", _plain_parquet),
    "Parquet, as pyarrow writes it": ("default.parquet", _default_parquet),
    "Lance": ("rows.lance", _lance),
    "fbin": ("rows.fbin", _fbin),
    "HDF5": ("rows.hdf5", _hdf5),
    "HDF5, gzip": ("packed.hdf5", _packed_hdf5),
    "FAISS Flat": ("flat.faiss", _faiss),
}


def write_formats(folder: Path, rows: int) -> dict[str, Path]:
    """Write the same rows in every format; return where, by name."""
    write_gallery(folder / "shards", rows, PROGRAMS[PROGRAM].dims)
    shutil.rmtree(folder / "shards" / "side_information")  # the old rows take its place: formats of one array have none
    vectors = np.concatenate(list(read_shards(folder / "shards")))
    found = {BASELINE: folder / "shards"}
    for name, (file, write) in FORMATS.items():
        write(folder / file, vectors)
        found[name] = folder / file
    return found


def new_rows(dest: Path) -> bytes:
    """Return the bytes of all new rows."""
    parts = sorted((dest / "embeddings").iterdir())
    if parts[0].suffix == ".npy":
        return b"".join(np.load(part).tobytes() for part in parts)
    columns = (pq.read_table(part)["embedding"].combine_chunks().values.to_numpy() for part in parts)
    return b"".join(column.tobytes() for column in columns)


def bench(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Return the result, ready for JSON."""
    header, sources = environment(), write_formats(folder, rows)
    contestants = {name: (path, "npy") for name, path in sources.items()}
    contestants["Parquet, plain, to Parquet"] = (sources["Parquet, plain"], "parquet")
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    expected = b""
    for number in range(rounds):
        for name, (path, form) in contestants.items():
            print(f"round {number + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
            command = [*fused(PROGRAM, "fp32", "none"), "--format", form]
            runs[name].append(run_once(command, path, folder / "dest"))
            found = new_rows(folder / "dest")
            if found != (expected := expected or found):
                raise click.ClickException(f"{name}: the new rows are not those of {BASELINE}")
    walls = {name: [run["wall"] for run in each] for name, each in runs.items()}
    results = {
        name: {
            "wall": median(walls[name]),
            "cpu": median(run["cpu"] for run in each),
            "read": median(run["seconds"]["read"] for run in each),
            "peak_memory": median(run["peak_memory"] for run in each),
            "ratio": paired_ratio(walls[name], walls[BASELINE]),
        }
        for name, each in runs.items()
    }
    return {
        **header,
        "parameters": {"rows": rows, "rounds": rounds, "program": PROGRAM},
        "contestants": results,
        "not_measured": [],
        "gates": [gate("plain Parquet / npy shards, seconds", results["Parquet, plain"]["ratio"], WANTED, False)],
    }


@click.command()
@click.option("--rows", default=ROWS, show_default=True)
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--quick", is_flag=True, help="A fifth of the rows, one round; nothing is written to results/.")
def main(rows: int, rounds: int, quick: bool) -> None:
    """Compare an upgrade from every format with one from shards (needs 5 GB of disk)."""
    warn_if_loaded()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        result = bench(Path(folder), QUICK_ROWS if quick else rows, 1 if quick else rounds)
    show(result, formats_tables(result))
    if not quick:
        print(f"written: {save('formats', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
