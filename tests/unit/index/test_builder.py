"""Building, saving and loading an index: ids are kept, files repeat, and damage is noticed."""

from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.faults import FailNth, FullDisk, ShortTransfers, ShrinkingFile

from fct_infer.errors import ArtifactError, ResourceError, UsageError
from fct_infer.index import IndexBuilder, load_index_file
from fct_infer.index.faiss_module import inner_indexes
from fct_infer.storage import sha256_of_file, use_filesystem

ROWS, DIM = 1200, 16
DATA = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
IDS = np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 5 + (1 << 40)
# Exact enough that a row's nearest neighbour under l2 is the row itself.
FACTORIES = [
    "Flat",
    "IDMap,Flat",
    "Flat,IDMap2",
    "IVF16,Flat",
    "IDMap2,IVF16,Flat",
    "IVF16_HNSW8,SQ8",
    "IMI2x3,Flat",
    "HNSW16",
    "SQ8",
    "IVF16,PQ8x4np,RFlat",
    "IVF16,SQ4,Refine(SQ8)",
    "PCA14,IVF16,SQ8",
    "L2norm,Flat",
    "OPQ4_16,IDMap,IVF8,SQ8",
    "IDMap,PCA14,IVF16,SQ8",
]


def build(factory, metric="l2", threads=1, blocks=(500, 1, 699), data=DATA):
    builder = IndexBuilder(factory, DIM, metric, threads)
    if builder.needs_training:
        builder.train(data)
    start = 0
    for count in blocks:
        builder.add(data[start : start + count], IDS[start : start + count])
        start += count
    return builder


@pytest.mark.parametrize("factory", FACTORIES)
def test_each_row_is_found_under_its_own_id(tmp_path, factory):
    builder = build(factory)
    assert builder.rows == ROWS
    written = builder.save(tmp_path / "index.faiss")
    loaded = load_index_file(tmp_path / "index.faiss", written.sha256)
    assert loaded.ntotal == ROWS
    for index in (builder, loaded):
        distances, found = index.search(DATA, 3)
        assert (found[:, 0] == IDS).mean() > 0.99
        assert np.isin(found[found >= 0], IDS).all()
        assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "HNSW16"])
def test_inner_product(factory, metric):
    unit = DATA / np.linalg.norm(DATA, axis=1, keepdims=True)
    builder = build(factory, metric, data=unit)
    distances, found = builder.search(unit, 2)
    assert (found[:, 0] == IDS).mean() > 0.99
    assert distances[:, 0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("factory", "threads"),
    [
        ("Flat", 2),
        ("IVF16,Flat", 1),
        ("IVF16,PQ4x4np", 1),
        ("IVF16,PQ4np", 2),
        ("PQ4np", 2),
        ("PCA8,IVF8,SQ8", 1),
        ("PCA8,IVF8,SQ8", 2),
        ("HNSW16", 1),
        ("HNSW16", 2),
        ("IVF8_HNSW8,SQ8", 1),
    ],
)
def test_the_same_rows_in_the_same_order_give_the_same_file(tmp_path, factory, threads):
    """How the rows are cut into blocks matters to a graph only; what was trained may depend on the thread count."""
    files = []
    trained = build(factory, threads=threads, blocks=()).save(tmp_path / "trained.faiss")
    for number, blocks in enumerate(((500, 1, 699), (1200,), (37,) * 32 + (16,))):
        builder = IndexBuilder(factory, DIM, "l2", threads)
        if builder.needs_training:
            builder.train(DATA)
        assert builder.save(tmp_path / "again.faiss") == trained
        start = 0
        for count in blocks:
            builder.add(DATA[start : start + count], IDS[start : start + count])
            start += count
        path = tmp_path / f"{number}.faiss"
        builder.save(path)
        files.append(path.read_bytes())
    if factory != "HNSW16":
        assert files[0] == files[1] == files[2]
    assert build(factory, threads=threads).save(tmp_path / "last.faiss").sha256 == sha256_of_file(tmp_path / "0.faiss")


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,PQ4x4np", "IVF16,PQ4np", "IVF8_HNSW8,SQ8", "HNSW16"])
def test_adding_does_not_depend_on_the_thread_count(tmp_path, factory):
    trained = build(factory, blocks=()).save(tmp_path / "trained.faiss")
    written = set()
    for threads in (1, 2, 3):
        builder = IndexBuilder(factory, DIM, "l2", threads)
        builder.load_trained(tmp_path / "trained.faiss", trained.sha256)
        builder.add(DATA, IDS)
        written.add(builder.save(tmp_path / "index.faiss").sha256)
    assert len(written) == 1


def test_training_is_what_faiss_itself_would_do(tmp_path, capfd):
    """Keeping FAISS quiet about small samples changes nothing but its output, where the core has no kernel."""
    builder = IndexBuilder("PCA16,IDMap,PQ4x4np", DIM, "l2", threads=1)
    builder.train(DATA[:300])
    assert capfd.readouterr().err == ""
    own = faiss.index_factory(DIM, "PCA16,IDMap,PQ4x4np")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    own.train(DATA[:300])
    faiss.omp_set_num_threads(before)
    faiss.write_index(own, str(tmp_path / "own.faiss"))
    assert builder.save(tmp_path / "index.faiss").sha256 == sha256_of_file(tmp_path / "own.faiss")


def test_no_minutes_are_spent_on_polysemous_codes(tmp_path):
    plain, spelled_out = (build(factory).save(tmp_path / "x.faiss") for factory in ("IVF16,PQ4x6", "IVF16,PQ4x6np"))
    assert plain == spelled_out
    wrapped = inner_indexes(IndexBuilder("IDMap,PQ4", DIM, "l2", threads=1).index)[-1]
    assert not wrapped.do_polysemous_training


def test_the_thread_count_is_set_in_whichever_thread_calls_and_put_back(monkeypatch):
    seen = []
    real = faiss.IndexIDMap.add_with_ids

    def spy(self, rows, ids):
        seen.append(faiss.omp_get_max_threads())
        return real(self, rows, ids)

    builder = IndexBuilder("Flat", DIM, "l2", threads=3)
    monkeypatch.setattr(faiss.IndexIDMap, "add_with_ids", spy)
    before = faiss.omp_get_max_threads()
    builder.add(DATA[:5], IDS[:5])
    thread = threading.Thread(target=builder.add, args=(DATA[5:9], IDS[5:9]))
    thread.start()
    thread.join()
    assert seen == [3, 3]
    assert faiss.omp_get_max_threads() == before
    assert builder.rows == 9


def test_too_few_rows_to_train(tmp_path):
    builder = IndexBuilder("IVF64,Flat", DIM, "l2", threads=1)
    with pytest.raises(UsageError, match=r"index 'IVF64,Flat' cannot be trained on 10 rows: .*clusters"):
        builder.train(DATA[:10])


def test_fewer_rows_than_asked_for():
    builder = build("Flat", blocks=(3,))
    _, found = builder.search(DATA[:1], 5)
    assert sorted(found[0, :3]) == sorted(IDS[:3])
    assert found[0, 3:].tolist() == [-1, -1]


def test_nprobe_is_saved_with_the_index(tmp_path):
    builder = build("PCA8,IVF16,Flat")
    assert (builder.nprobe, builder.nlist) == (1, 16)
    builder.nprobe = 7
    written = builder.save(tmp_path / "index.faiss")
    other = IndexBuilder("PCA8,IVF16,Flat", DIM, "l2", threads=1)
    other.load_trained(tmp_path / "index.faiss", written.sha256)
    assert other.nprobe == 7
    assert (build("Flat").nprobe, build("Flat").nlist) == (None, 0)


@pytest.mark.parametrize("room", [0, 100, 50_000])
def test_a_full_disk_is_noticed_and_leaves_nothing(tmp_path, room):
    builder = build("Flat")
    with use_filesystem(FullDisk(room)), pytest.raises(ResourceError, match=r"index\.faiss: .*the disk is full"):
        builder.save(tmp_path / "index.faiss")
    assert list(tmp_path.iterdir()) == []
    builder.save(tmp_path / "index.faiss")  # the index itself is unharmed


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_any_failing_call_is_noticed(tmp_path, call):
    with use_filesystem(FailNth(call)), pytest.raises(ResourceError, match=r"index\.faiss"):
        build("Flat").save(tmp_path / "index.faiss")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_returns_other_bytes_is_noticed(tmp_path):
    class Rotting(ShortTransfers):
        def pread_into(self, fd, buffer, offset):
            count = super().pread_into(fd, buffer, offset)
            buffer[0] ^= 1
            return count

    with use_filesystem(Rotting(1 << 20)), pytest.raises(ResourceError, match="other bytes than were written"):
        build("Flat").save(tmp_path / "index.faiss")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "index.faiss"
    return path, build("IVF16,Flat", blocks=(60,)).save(path).sha256


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(saved, tmp_path_factory, place, bit):
    path, sha256 = saved
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    damaged = tmp_path_factory.mktemp("flip") / "index.faiss"
    damaged.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{damaged}: is damaged"):
        load_index_file(damaged, sha256)


@pytest.mark.parametrize("data", [b"", b"IxFI", b"not an index at all" * 100, b"\xff" * 4000])
def test_a_file_that_is_no_index(tmp_path, data):
    (tmp_path / "index.faiss").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"index\.faiss: cannot be read by this FAISS"):
        load_index_file(tmp_path / "index.faiss")
    with pytest.raises(ArtifactError, match=r"index\.faiss: is damaged"):
        load_index_file(tmp_path / "index.faiss", "0" * 64)


def test_a_truncated_index_without_a_digest_is_noticed(saved, tmp_path):
    data = saved[0].read_bytes()
    for size in (10, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "index.faiss").write_bytes(data[:size])
        with pytest.raises(ArtifactError, match=r"index\.faiss"):
            load_index_file(tmp_path / "index.faiss")


def test_a_missing_or_unreadable_index(saved, tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        load_index_file(tmp_path / "missing")
    for fault, kind in ((FailNth("pread_into"), ResourceError), (ShrinkingFile(0), ArtifactError)):
        with use_filesystem(fault), pytest.raises(kind, match=r"index\.faiss"):
            load_index_file(*saved)


def test_an_index_survives_short_reads_and_writes(tmp_path):
    with use_filesystem(ShortTransfers(4099)):
        written = build("Flat").save(tmp_path / "index.faiss")
        loaded = load_index_file(tmp_path / "index.faiss", written.sha256)
    assert loaded.search(DATA[:4], 1)[1][:, 0].tolist() == IDS[:4].tolist()
