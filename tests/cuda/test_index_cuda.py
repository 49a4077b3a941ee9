"""Indexes built with a real device: the recall of those built on the CPU, every id once, and nothing left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from support.cuda import no_device, require_device, require_module

from fct_infer.cuda import cuda_status
from fct_infer.index import IndexBuilder, describe_index, exact_neighbours, make_builder, measure_recall
from fct_infer.index.faiss_module import faiss, ivf_of
from fct_infer.index.gpu_faiss import why_no_gpu

ROWS, DIM, LISTS, QUERIES = 60_000, 64, 64, 200
BLOCK = 7_001
FACTORIES = [
    f"IVF{LISTS},Flat",
    f"IVF{LISTS},PQ16np",
    f"IVF{LISTS},PQ64np",
    f"IVF{LISTS},SQ8",
    f"IVF{LISTS}_HNSW16,PQ16np",
    f"OPQ16_64,IVF{LISTS},PQ16np",
    f"PCA48,IVF{LISTS},SQ8",
]
ON_CPU = ["Flat", "HNSW16", f"IVF{LISTS},PQ16x4np", f"IVF{LISTS},PQ16np,RFlat"]
MOST_DIFFERENCE = 0.02  # of recall, between a device and the CPU


def latent_rows() -> np.ndarray:
    """Near a surface of few dimensions, as embeddings are."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, 12), np.float32) @ rng.standard_normal((12, DIM), np.float32)
    return rows + 0.1 * rng.standard_normal((ROWS, DIM), np.float32)


@pytest.fixture(scope="module", autouse=True)
def faiss_device():
    require_module("faiss")
    missing = why_no_gpu("cuda:0")
    if missing:
        no_device(missing)


@pytest.fixture(scope="module")
def data():
    rows = latent_rows()
    ids = np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 3
    exact = exact_neighbours(rows[:QUERIES], [(rows, ids)], 11, "l2", 8)
    return rows, ids, exact


def fill(builder, rows, ids):
    if builder.needs_training:
        builder.train(rows)
    for start in range(0, len(rows), BLOCK):
        builder.add(rows[start : start + BLOCK], ids[start : start + BLOCK])
    return builder


def on_device(factory, memory=0):
    return make_builder(describe_index(factory, DIM, ROWS, "l2"), 8, "cuda:0", memory)


def recall(builder, data):
    rows, ids, exact = data
    if builder.nprobe is not None:
        builder.nprobe = 8
    return measure_recall(builder, rows[:QUERIES], ids[:QUERIES], exact)


def ids_in(index):
    lists = ivf_of(index).invlists
    return of_all_lists(lists, lambda n: faiss().rev_swig_ptr(lists.get_ids(n), lists.list_size(n)))


def vectors_in(index):
    """Those of an IVF-Flat index, in the order of :func:`ids_in`."""
    lists = ivf_of(index).invlists
    codes = of_all_lists(
        lists, lambda n: faiss().rev_swig_ptr(lists.get_codes(n), lists.list_size(n) * lists.code_size)
    )
    return codes.view(np.float32).reshape(-1, index.d)


def of_all_lists(lists, content):
    return np.concatenate([content(n).copy() for n in range(lists.nlist) if lists.list_size(n)])


def saved(builder, path):
    builder.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("factory", [*FACTORIES, *ON_CPU])
def test_recall_is_that_of_the_cpu(data, factory):
    rows, ids, _ = data
    builder = fill(on_device(factory), rows, ids)
    assert builder.placement["add"] == ("cpu" if factory in ON_CPU else "cuda:0"), builder.placement
    plain = fill(IndexBuilder(factory, DIM, "l2", 8), rows, ids)
    assert recall(builder, data) == pytest.approx(recall(plain, data), abs=MOST_DIFFERENCE)
    assert builder.rows == ROWS
    if factory in FACTORIES:
        assert sorted(ids_in(builder.index)) == sorted(ids)


@pytest.mark.parametrize("factory", FACTORIES[:4])
def test_the_device_gives_the_lists_and_codes_of_the_cpu(data, factory, tmp_path):
    """From one trained index on, all but what lies on a border between two lists or codes is the same."""
    rows, ids, _ = data
    plain = IndexBuilder(factory, DIM, "l2", 8)
    plain.train(rows)
    trained = plain.save(tmp_path / "trained")
    builder = on_device(factory)
    builder.load_trained(tmp_path / "trained", trained.sha256)
    fill(builder, rows, ids)
    fill(plain, rows, ids)
    own, theirs = saved(builder, tmp_path / "own"), saved(plain, tmp_path / "theirs")
    sizes = [[ivf_of(each.index).invlists.list_size(n) for n in range(LISTS)] for each in (builder, plain)]
    assert np.abs(np.subtract(*sizes)).sum() < ROWS * 1e-3
    assert abs(len(own) - len(theirs)) < 1024


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_device_filled_in_parts_gives_the_same_file(data, factory, tmp_path):
    rows, ids, _ = data
    builder = on_device(factory)
    builder.train(rows)
    trained = builder.save(tmp_path / "trained")
    whole = saved(fill(builder, rows, ids), tmp_path / "whole")
    row_bytes = 2 * (ivf_of(builder.index).code_size + 8)
    room = LISTS * (1024 + 8 * DIM) + row_bytes * 25_000
    small = on_device(factory, memory=-(-4 * room // 3))
    small.load_trained(tmp_path / "trained", trained.sha256)
    assert saved(fill(small, rows, ids), tmp_path / "parts") == whole


def test_the_same_run_twice_gives_the_same_file(data, tmp_path):
    rows, ids, _ = data
    files = [saved(fill(on_device(f"IVF{LISTS},PQ16np"), rows, ids), tmp_path / str(number)) for number in range(2)]
    assert files[0] == files[1]


# Adds rows while others hold all of the device but what is left of 2 MiB: far less than the lists have to grow by.
FULL_DEVICE = textwrap.dedent("""
    import sys
    from pathlib import Path

    import numpy as np

    from fct_infer.backends.cuda_memory import CudaMemory
    from fct_infer.errors import ResourceError
    from fct_infer.index import describe_index, make_builder
    from fct_infer.index.gpu_faiss import DeviceFullError, GpuFaiss

    factory, folder = sys.argv[1], Path(sys.argv[2])
    rows, ids = np.load(folder / "rows.npy"), np.load(folder / "ids.npy")
    add, full = GpuFaiss.add, []

    def watched(*arguments):
        try:
            add(*arguments)
        except DeviceFullError as error:
            full.append(error)
            raise

    GpuFaiss.add = watched
    builder = make_builder(describe_index(factory, rows.shape[1], len(rows), "l2"), 8, "cuda:0")
    builder.train(rows)
    builder.add(rows[:10_000], ids[:10_000])
    memory, taken = CudaMemory(0), []
    with memory.current():
        for size in (1 << 30, 1 << 26, 1 << 21):
            try:
                while True:
                    taken.append(memory.allocate(size))
            except ResourceError:
                continue
        for start in range(10_000, len(rows), 10_000):
            builder.add(rows[start : start + 10_000], ids[start : start + 10_000])
        for address in taken:
            memory.free(address)
    builder.save(folder / "index")
    print(len(taken), len(full), builder.placement)
""")


def test_memory_that_runs_out_costs_no_row(data, tmp_path):
    """In a process of its own: FAISS ends it where an assertion of its own fails."""
    require_module("cuda.bindings.runtime")
    rows, ids, _ = data
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "ids.npy", ids)
    call = [sys.executable, "-c", FULL_DEVICE, f"IVF{LISTS},Flat", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    taken, full = map(int, done.stdout.split()[:2])
    assert taken > 0
    assert full > 0, f"the device was never full: {done.stdout}"
    index = faiss().read_index(str(tmp_path / "index"))
    stored = ids_in(index)
    assert sorted(stored) == sorted(ids)
    np.testing.assert_array_equal(vectors_in(index)[np.argsort(stored)], rows[np.argsort(ids)])


def test_rows_of_torch_are_added_where_they_lie(data, tmp_path):
    torch = pytest.importorskip("torch")
    rows, ids, _ = data
    factory = f"IVF{LISTS},PQ16np"
    builder = on_device(factory)
    builder.train(rows)
    trained = builder.save(tmp_path / "trained")
    fill(builder, rows, ids)
    other = on_device(factory)
    other.load_trained(tmp_path / "trained", trained.sha256)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        buffer = torch.empty((BLOCK, DIM), device="cuda:0")
        for start in range(0, ROWS, BLOCK):
            part = buffer[: len(rows[start : start + BLOCK])]
            part.copy_(torch.from_numpy(rows[start : start + BLOCK]))  # over rows that FAISS was given
            assert other.add_device_rows(part, ids[start : start + BLOCK]) == len(part)
    assert saved(other, tmp_path / "device") == saved(builder, tmp_path / "host")


def test_nothing_stays_on_the_device(data):
    rows, ids, _ = data

    def free() -> int:
        gc.collect()
        return cuda_status().devices[0].free_bytes

    def come_and_go() -> None:
        fill(on_device(f"OPQ16_64,IVF{LISTS},PQ16np", 1 << 30), rows, ids).close()

    require_device()
    come_and_go()
    before = free()
    for _ in range(3):
        come_and_go()
    assert before - free() < 8 << 20
