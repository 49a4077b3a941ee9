"""Building with a device, FAISS's GPU part played by the CPU: the same bytes as without, whatever the device does."""

from __future__ import annotations

import gc
import tempfile
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest
from support.fake_devices import DlpackArray, InterfaceArray
from support.fake_gpu_faiss import OUT_OF_MEMORY, OUT_OF_MEMORY_CUVS, STREAM, FakeDevices

from fct_infer.device_arrays import FinishedRows
from fct_infer.errors import ArrayError, ResourceError, UnsupportedError, UsageError
from fct_infer.index import GpuIndexBuilder, IndexBuilder, describe_index, make_builder
from fct_infer.index.faiss_module import ivf_of
from fct_infer.index.gpu_faiss import find_gpu
from fct_infer.index.training import train_transforms

ROWS, DIM, LISTS = 1200, 16, 16
DATA = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
IDS = np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 5  # 0 is one of them
BLOCKS = (500, 1, 299, 400)
ON_DEVICE = ["IVF16,Flat", "IVF16,PQ4np", "IVF16,PQ8np", "IVF16,SQ8", "PCA14,IVF16,SQ8", "OPQ4_16,IVF16,PQ4np"]
LIST_BYTES = 4 * LISTS * DIM  # of an index without rows on the fake device


class TrainedByFaiss(IndexBuilder):
    """On the CPU, with the k-means that a device does, too."""

    def _train(self, sample, warm):
        train_transforms(self.index, sample)
        self.index.train(sample)


@pytest.fixture
def devices(monkeypatch) -> FakeDevices:
    return FakeDevices().install(monkeypatch)


def fill(builder, blocks=BLOCKS, rows=DATA, ids=IDS):
    if builder.needs_training:
        builder.train(DATA)
    start = 0
    for count in blocks:
        builder.add(rows[start : start + count], ids[start : start + count])
        start += count
    return builder


def on_device(factory, metric="l2", device="cuda", memory=0):
    return make_builder(describe_index(factory, DIM, ROWS, metric), 1, device, memory)


def saved(builder, path):
    builder.save(path)
    return path.read_bytes()


@cache
def cpu_file(factory, metric="l2"):
    with tempfile.TemporaryDirectory() as folder:
        return saved(fill(TrainedByFaiss(factory, DIM, metric, 1)), Path(folder) / "index")


def memory_for(rows, code_bytes):
    """Return a --device-memory with room for so many rows."""
    return -(-4 * (LISTS * (1024 + 8 * DIM) + 2 * rows * (code_bytes + 8)) // 3)


def ids_in(index):
    lists = ivf_of(index).invlists
    return np.concatenate([faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).copy() for n in range(lists.nlist)])


@pytest.mark.parametrize(("factory", "metric"), [*((factory, "l2") for factory in ON_DEVICE), ("IVF16,PQ4np", "ip")])
def test_the_same_file_as_without_a_device(devices, tmp_path, factory, metric):
    builder = fill(on_device(factory, metric))
    assert builder.placement == {"train": "cuda:0", "add": "cuda:0"}
    assert (builder.rows, devices.moves) == (ROWS, 0)
    assert saved(builder, tmp_path / "device") == cpu_file(factory, metric)
    assert (builder.rows, devices.moves) == (ROWS, 1)
    assert builder.index.ntotal == ROWS


@pytest.mark.parametrize("factory", ON_DEVICE)
def test_a_gallery_too_large_for_the_device_goes_there_in_parts(devices, tmp_path, factory):
    code_bytes = ivf_of(IndexBuilder(factory, DIM, "l2", 1).index).code_size
    builder = fill(on_device(factory, memory=memory_for(550, code_bytes)))
    assert devices.moves == 2  # 500 + 1, 299, then 400
    assert saved(builder, tmp_path / "device") == cpu_file(factory)
    assert builder.placement["add"] == "cuda:0"


def test_blocks_larger_than_the_device_are_cut(devices, tmp_path):
    builder = fill(on_device("IVF16,PQ4np", memory=memory_for(100, 4)), blocks=(1200,))
    assert saved(builder, tmp_path / "device") == cpu_file("IVF16,PQ4np")
    assert devices.moves == 12


def test_half_of_what_is_free_is_used_unless_told_otherwise(devices, tmp_path):
    devices.free = (1536 << 20) + 2 * (LISTS * (1024 + 8 * DIM) + 2 * 550 * 12)
    fill(on_device("IVF16,PQ4np"))
    assert devices.moves == 2


@pytest.mark.parametrize("factory", [*ON_DEVICE, "IVF16_HNSW8,PQ4np"])
@pytest.mark.parametrize("words", [OUT_OF_MEMORY, OUT_OF_MEMORY_CUVS], ids=["cudaMalloc", "rmm"])
def test_memory_that_runs_out_halfway_costs_no_row(devices, tmp_path, factory, words):
    """Others may take the device's memory at any moment; lists torn by that hold places that are no rows."""
    builder = on_device(factory)
    builder.train(DATA)
    row_bytes = ivf_of(builder.index).code_size + 8
    devices.words, devices.memory = words, LIST_BYTES + 600 * row_bytes
    fill(builder)
    assert devices.moves == 2
    assert builder.rows == ROWS
    data = saved(builder, tmp_path / "device")
    assert sorted(ids_in(builder.index)) == sorted(IDS)
    assert builder.placement["add"] == "cuda:0"
    if "HNSW" not in factory:
        assert data == cpu_file(factory)


@pytest.mark.parametrize("factory", ["IVF16,PQ4np", "OPQ4_16,IVF16,PQ4np"])
def test_what_not_even_the_emptied_device_takes_is_added_on_the_cpu(devices, tmp_path, factory):
    builder = on_device(factory)
    builder.train(DATA)
    devices.memory = LIST_BYTES + 450 * 12
    fill(builder, blocks=(300, 200, 600, 100))
    assert saved(builder, tmp_path / "device") == cpu_file(factory)
    assert builder.placement["add"] == "cpu"
    assert builder.placement["reason"] == "cuda:0 is too full for 600 rows"
    assert devices.live == []


@pytest.mark.parametrize(("memory", "room"), [(20_000, "15,000"), (1, "1")])  # 1: h left nothing of a common budget
def test_a_device_without_room_for_the_empty_index(devices, tmp_path, memory, room):
    builder = fill(on_device("IVF16,PQ4np", memory=memory))
    assert builder.placement["add"] == "cpu"
    assert builder.placement["reason"] == f"cuda:0 has {room} bytes for an index that takes 18,432 without rows"
    assert saved(builder, tmp_path / "device") == cpu_file("IVF16,PQ4np")


def test_training_goes_on_without_a_full_device(devices, tmp_path):
    devices.memory = 4 * DIM - 1
    builder = on_device("IVF16,PQ4np")
    trained = saved(fill(builder, ()), tmp_path / "trained")
    assert trained == saved(fill(TrainedByFaiss("IVF16,PQ4np", DIM, "l2", 1), ()), tmp_path / "cpu")
    assert builder.placement["train"] == "cpu"
    assert builder.placement["reason"].startswith("cuda:0 is full: StandardGpuResources: alloc fail")
    assert (devices.live, devices.leaked) == ([], 0)


def test_a_graph_over_the_lists_stays_on_the_cpu(devices, tmp_path):
    builder = fill(on_device("IVF16_HNSW8,PQ8np", memory=memory_for(550, 8)))
    assert builder.placement == {"train": "cuda:0", "add": "cuda:0"}
    saved(builder, tmp_path / "device")
    ivf = ivf_of(builder.index)
    assert isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexHNSWFlat)
    assert sorted(ids_in(builder.index)) == sorted(IDS)
    builder.nprobe = LISTS
    _, found = builder.search(DATA, 1)
    plain = fill(TrainedByFaiss("IVF16_HNSW8,PQ8np", DIM, "l2", 1))
    plain.nprobe = LISTS
    own, plain_own = (found[:, 0] == IDS).mean(), (plain.search(DATA, 1)[1][:, 0] == IDS).mean()
    assert own == pytest.approx(plain_own, abs=0.01)


@pytest.mark.parametrize(
    ("factory", "train", "reason"),
    [
        ("Flat", "cpu", "IndexFlat has no inverted lists"),
        ("HNSW16", "cpu", "IndexHNSWFlat has no inverted lists"),
        ("SQ8", "cuda:0", "IndexScalarQuantizer has no inverted lists"),
        ("PQ4np", "cuda:0", "IndexPQ has no inverted lists"),
        ("IMI2x3,Flat", "cuda:0", "MultiIndexQuantizer has no GPU form"),
        ("IVF16,PQ4x4fs", "cuda:0", "IndexIVFPQFastScan has no GPU form"),
        ("IVF16,PQ8np,RFlat", "cuda:0", "IndexIDMap keeps data of each row beside the inverted lists"),
        ("IDMap2,IVF16,Flat", "cuda:0", "IndexIDMap2 keeps data of each row beside the inverted lists"),
        ("IVF16,PQ4x4np", "cuda:0", "GPU: only pq.nbits == 8 is supported"),
        ("IVF16,SQ6", "cuda:0", "Unsupported scalar QuantizerType on GPU"),
    ],
)
def test_what_has_no_gpu_form_is_added_on_the_cpu_and_says_so(devices, tmp_path, factory, train, reason):
    builder = fill(on_device(factory))
    assert builder.placement == {"train": train, "add": "cpu", "reason": reason}
    assert saved(builder, tmp_path / "device") == cpu_file(factory)
    assert not builder.takes_device_rows


def test_codes_of_64_bytes_fit_a_devices_shared_memory(devices):
    data = np.random.default_rng(0).standard_normal((600, 64), np.float32)
    builder = make_builder(describe_index("IVF4,PQ64np", 64, 600, "l2"), 1, "cuda")
    builder.train(data)
    builder.add(data, np.arange(600))
    assert builder.placement == {"train": "cuda:0", "add": "cuda:0"}


def test_a_run_that_resumes_ends_with_the_same_bytes(devices, tmp_path):
    first = on_device("OPQ4_16,IVF16,PQ4np")
    first.train(DATA)
    trained = first.save(tmp_path / "trained")
    whole = saved(fill(first), tmp_path / "whole")
    second = on_device("OPQ4_16,IVF16,PQ4np")
    second.load_trained(tmp_path / "trained", trained.sha256)
    assert saved(fill(second), tmp_path / "resumed") == whole
    assert second.placement["train"] == "an earlier run"


def test_search_and_save_see_rows_that_were_on_the_device_and_more_can_follow(devices):
    builder = fill(on_device("IVF16,Flat"), blocks=(700,))
    builder.nprobe = LISTS
    assert builder.search(DATA[:700], 1)[1][:, 0].tolist() == IDS[:700].tolist()
    builder.add(DATA[700:], IDS[700:])
    assert builder.rows == ROWS
    assert builder.search(DATA, 1)[1][:, 0].tolist() == IDS.tolist()


def test_nothing_stays_on_the_device(devices, tmp_path):
    builder = fill(on_device("OPQ4_16,IVF16,PQ4np"))
    gc.collect()
    assert (len(devices.live), devices.leaked) == (1, 0)
    builder.save(tmp_path / "index")
    builder.close()
    assert (devices.live, devices.leaked) == ([], 0)


@pytest.mark.parametrize("stage", ["train", "add"])
def test_nothing_stays_on_the_device_after_an_error(devices, stage):
    builder = on_device("IVF16,PQ4np")
    if stage == "train":
        with pytest.raises(UsageError, match="cannot be trained on 10 rows"):
            builder.train(DATA[:10])
    else:
        fill(builder, blocks=(100,))
        assert len(devices.live) == 1
        with pytest.raises(AssertionError):
            builder.add(DATA[:5, :7], IDS[:5])  # FAISS's wrapper asserts the dim
    gc.collect()
    assert (devices.live, devices.leaked) == ([], 0)


def test_an_error_of_the_device_that_is_not_about_memory_is_told(devices, monkeypatch):
    builder = fill(on_device("IVF16,PQ4np"), blocks=(100,))

    def fail(*_):
        raise RuntimeError("Error in f at /project/f.cu:1: CUDA error 700 an illegal memory access was encountered")

    monkeypatch.setattr(type(builder._lists._on_device), "add_with_ids", fail)
    with pytest.raises(ResourceError, match=r"^cuda:0: CUDA error 700 an illegal memory access"):
        builder.add(DATA[:5], IDS[:5])
    gc.collect()
    assert devices.live == []


def test_rows_that_do_not_come_back_are_noticed(devices, tmp_path):
    builder = fill(on_device("IVF16,PQ4np"))
    devices.lose_a_row = True
    with pytest.raises(ResourceError, match="the index there holds 1,199 rows, 1,200 were added"):
        builder.save(tmp_path / "index")


class OnDevice(InterfaceArray):
    """Rows that say they lie on a device, and can be sliced."""

    def __getitem__(self, part):
        return OnDevice(self.array[part])


def fill_where_they_lie(builder, array=InterfaceArray, blocks=BLOCKS):
    """Add all rows from one buffer on the device, which gets other rows as soon as the builder returns."""
    builder.train(DATA)
    buffer = np.empty((max(blocks), DIM), np.float32)
    start, taken = 0, []
    for count in blocks:
        rows, ids = DATA[start : start + count], IDS[start : start + count]
        buffer[:count] = rows
        taken.append(builder.add_device_rows(array(buffer[:count]), ids))
        buffer[:] = np.nan
        if taken[-1] < count:
            builder.add(rows[taken[-1] :], ids[taken[-1] :])
        start += count
    return taken


def test_rows_on_the_device_are_added_where_they_lie(devices, tmp_path):
    builder = on_device("IVF16,PQ4np", memory=memory_for(550, 4))
    assert builder.takes_device_rows
    assert fill_where_they_lie(builder) == list(BLOCKS)
    assert saved(builder, tmp_path / "device") == cpu_file("IVF16,PQ4np")
    assert builder.placement == {"train": "cuda:0", "add": "cuda:0", "rows": "cuda:0"}


def test_blocks_on_the_device_larger_than_the_index_there_are_cut(devices, tmp_path):
    builder = on_device("IVF16,PQ4np", memory=memory_for(100, 4))
    assert fill_where_they_lie(builder, lambda rows: FinishedRows(rows.ctypes.data, *rows.shape), (1200,)) == [1200]
    assert saved(builder, tmp_path / "device") == cpu_file("IVF16,PQ4np")


def test_what_fills_the_rows_comes_first(devices):
    builder = fill(on_device("IVF16,Flat"), ())
    rows = DlpackArray(DATA[:100])
    assert builder.add_device_rows(rows, IDS[:100]) == 100
    assert rows.streams == [STREAM]


def test_rows_on_the_device_that_do_not_fit_are_left_to_the_cpu(devices, tmp_path):
    builder = on_device("IVF16,PQ4np")
    builder.train(DATA)
    devices.memory = LIST_BYTES + 450 * 12
    assert fill_where_they_lie(builder, blocks=(300, 200, 600, 100)) == [300, 200, 0, 0]
    assert saved(builder, tmp_path / "device") == cpu_file("IVF16,PQ4np")
    assert builder.placement == {
        "train": "cuda:0",
        "add": "cpu",
        "rows": "cuda:0",
        "reason": "cuda:0 is too full for 600 rows",
    }
    assert not builder.takes_device_rows


def test_a_device_that_others_fill_meanwhile_takes_the_first_rows_of_a_block(devices, tmp_path, monkeypatch):
    builder = on_device("IVF16,PQ4np", memory=memory_for(100, 4))
    builder.train(DATA)
    parts = iter(range(3))

    def take(size):
        if next(parts, None) is None:
            raise RuntimeError(OUT_OF_MEMORY)

    builder.add_device_rows(OnDevice(DATA[:0]), IDS[:0])  # the empty lists are there before
    monkeypatch.setattr(devices, "take", take)
    assert builder.add_device_rows(OnDevice(DATA), IDS) == 300
    builder.add(DATA[300:], IDS[300:])
    assert saved(builder, tmp_path / "device") == cpu_file("IVF16,PQ4np")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (OnDevice(DATA.astype(np.float16)), "rows are float16, wanted float32 on cuda:0"),
        (DlpackArray(DATA, device_number=1), "rows are float32 on cuda:1, wanted float32 on cuda:0"),
        (OnDevice(DATA[:, :8].copy()), r"rows is a float32 array of shape \(1200, 8\), wanted .* \(n, 16\)"),
        (OnDevice(DATA[:, :16:2]), "rows is a float32"),
        (DATA.tolist(), "rows is a list"),
    ],
)
def test_rows_on_the_device_that_are_not_as_wanted(devices, rows, words):
    builder = fill(on_device("IVF16,Flat"), (100,))
    with pytest.raises(ArrayError, match=words):
        builder.add_device_rows(rows, IDS)
    assert builder.rows == 100
    builder.add(DATA[100:], IDS[100:])
    assert builder.rows == ROWS


@pytest.mark.parametrize("factory", ["HNSW16", "PCA14,IVF16,SQ8"])
def test_rows_on_the_device_that_the_cpu_has_to_work_on_are_left_to_it(devices, factory):
    builder = fill(on_device(factory), ())
    assert not builder.takes_device_rows
    assert builder.add_device_rows(OnDevice(DATA), IDS) == builder.rows == 0
    assert not IndexBuilder(factory, DIM, "l2", 1).takes_device_rows


@pytest.mark.parametrize(("memory", "temporary"), [(0, 1536 << 20), (1 << 30, 1 << 28), (64 << 30, 1536 << 20)])
def test_the_memory_given_bounds_that_for_work_in_progress(devices, memory, temporary):
    gpu = find_gpu("cuda", memory)
    assert devices.temporary_bytes == temporary
    assert gpu.room() == (memory - temporary if memory else None)


def test_which_device(devices):
    devices.count = 2
    assert find_gpu("cpu") is None
    names = {device: find_gpu(device).name for device in ("auto", "cuda", "cuda:1", "cuda:1,cuda:0")}
    assert names == {"auto": "cuda:0", "cuda": "cuda:0", "cuda:1": "cuda:1", "cuda:1,cuda:0": "cuda:1"}
    with pytest.raises(UnsupportedError, match="an index on cuda:2: FAISS finds 2 CUDA devices on this machine"):
        find_gpu("cuda:2")
    devices.count = 0
    with pytest.raises(UnsupportedError, match="an index on cuda: FAISS finds no CUDA device on this machine"):
        find_gpu("cuda")
    assert find_gpu("auto") is None
    with pytest.raises(UsageError, match="device 'gpu' does not exist"):
        find_gpu("gpu")


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has its GPU part")
def test_a_faiss_without_gpu_names_the_package(tmp_path):
    plan = describe_index("IVF16,Flat", DIM, ROWS, "l2")
    with pytest.raises(
        UnsupportedError, match=r"an index on cuda:0: .* install faiss-gpu or faiss-gpu-cuvs in place of faiss-cpu"
    ):
        make_builder(plan, 1, "cuda:0")
    for builder in (make_builder(plan, 1, "auto"), make_builder(plan, 1, "cuda:0", required=False)):
        assert not isinstance(builder, GpuIndexBuilder)
        assert builder.placement["add"] == "cpu"
        assert "built without CUDA" in builder.placement["reason"]
    assert make_builder(plan, 1).placement == {"train": "cpu", "add": "cpu"}
