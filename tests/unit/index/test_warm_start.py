"""Training that begins with the old index's lists: kept where they are as good, dropped where they are not."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from fct_infer.errors import ArtifactError, UsageError
from fct_infer.index import IndexBuilder, WarmStart, read_old_lists

ROWS, OLD, NEW, LISTS = 12_000, 16, 24, 128


def surface(rows=ROWS, seed=0):
    """The same items by two models: rows near one surface, seen from two sides."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((rows, 8)) + 3 * rng.standard_normal((40, 8))[rng.integers(0, 40, rows)]
    views = (latent @ rng.standard_normal((8, dim)) + 0.1 * rng.standard_normal((rows, dim)) for dim in (OLD, NEW))
    return [np.ascontiguousarray(view, np.float32) for view in views]


OLD_ROWS, NEW_ROWS = surface()


def old_index(path, factory=f"IVF{LISTS},Flat", ids=None, rows=OLD_ROWS):
    index = faiss.index_factory(rows.shape[1], factory)
    index.train(rows)
    index.add_with_ids(rows, np.arange(len(rows)) if ids is None else ids)
    faiss.write_index(index, str(path))
    return index


def lists_of(index, rows):
    return index.quantizer.search(rows, 1)[1][:, 0]


@pytest.mark.parametrize(
    "factory", [f"IVF{LISTS},Flat", f"IVF{LISTS},SQ8", f"IVF{LISTS},PQ4x4np", f"IDMap,IVF{LISTS},Flat"]
)
def test_every_row_is_in_the_list_it_was_in(tmp_path, factory):
    ids = np.random.default_rng(1).permutation(ROWS) * 3 + 7
    index = old_index(tmp_path / "old.faiss", factory, ids)
    old = read_old_lists(tmp_path / "old.faiss", ROWS)
    ivf = faiss.downcast_index(index.index) if factory.startswith("IDMap") else index
    rows = np.arange(0, ROWS, 7)
    assert old.count == LISTS
    assert np.array_equal(old.of(rows, ids[rows]), lists_of(ivf, OLD_ROWS[rows]))


def test_an_index_that_knows_row_numbers_serves_a_gallery_with_ids(tmp_path):
    index = old_index(tmp_path / "old.faiss")
    rows = np.arange(5, ROWS, 11)
    old = read_old_lists(tmp_path / "old.faiss", ROWS)
    assert np.array_equal(old.of(rows, rows + ROWS), lists_of(index, OLD_ROWS[rows]))


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "old.faiss"
    old_index(path, ids=np.arange(ROWS) * 2)
    with pytest.raises(UsageError, match=r"holds 12,000 rows, the gallery 12,001"):
        read_old_lists(path, ROWS + 1)
    with pytest.raises(UsageError, match=r"does not hold id 3 of the gallery"):
        read_old_lists(path, ROWS).of(np.array([1]), np.array([3]))
    faiss.write_index(faiss.IndexFlatL2(4), str(path))
    with pytest.raises(UsageError, match=r"IndexFlatL?2?, which has no inverted lists"):
        read_old_lists(path, ROWS)
    old_index(path, ids=np.zeros(ROWS, np.int64))
    with pytest.raises(UsageError, match=r"12,000 rows under 1 ids"):
        read_old_lists(path, ROWS)
    path.write_bytes(b"IwFl" + bytes(50))
    with pytest.raises(ArtifactError, match=r"old\.faiss"):
        read_old_lists(path, ROWS)


def trained(factory, warm=None, threads=1):
    builder = IndexBuilder(factory, NEW, "l2", threads)
    builder.train(NEW_ROWS, warm)
    return builder


def recall(builder):
    builder.add(NEW_ROWS, np.arange(ROWS))
    builder.nprobe = 4
    queries = NEW_ROWS[::40]
    exact = faiss.knn(queries, NEW_ROWS, 10)[1]
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, builder.search(queries, 10)[1], strict=True)])


@pytest.fixture(scope="module")
def old_lists():
    index = faiss.index_factory(OLD, f"IVF{LISTS},Flat")
    index.train(OLD_ROWS)
    return lists_of(index, OLD_ROWS)


@pytest.mark.parametrize("factory", [f"IVF{LISTS},{codes}" for codes in ("Flat", "SQ8", "PQ12")])
def test_lists_of_the_same_items_are_kept_and_lose_no_recall(old_lists, factory):
    warm = WarmStart(old_lists, LISTS)
    builder = trained(factory, warm)
    assert builder.placement["lists"].startswith("lists began as the old index's")
    assert recall(builder) >= recall(trained(factory)) - 0.02


def test_lists_of_other_items_are_dropped(old_lists):
    """A wrong file of ids, for instance: the result is that of training from scratch, byte for byte."""
    mixed = WarmStart(np.random.default_rng(2).permutation(old_lists), LISTS)
    builder = trained(f"IVF{LISTS},Flat", mixed)
    assert builder.placement["lists"].startswith("lists were trained from scratch")
    scratch = trained(f"IVF{LISTS},Flat")
    assert np.array_equal(faiss.serialize_index(builder.index), faiss.serialize_index(scratch.index))


def test_all_rows_in_one_list_are_no_start():
    builder = trained(f"IVF{LISTS},Flat", WarmStart(np.zeros(ROWS, np.int64), LISTS))
    assert builder.placement["lists"].startswith("lists were trained from scratch")


def test_the_same_whatever_the_threads(old_lists):
    one, three = (trained(f"IVF{LISTS},PQ4", WarmStart(old_lists, LISTS), threads) for threads in (1, 3))
    assert np.array_equal(faiss.serialize_index(one.index), faiss.serialize_index(three.index))


def test_what_faiss_trains_alone_says_so(old_lists):
    builder = IndexBuilder("IMI2x3,PQ4", NEW, "l2", 1)
    builder.train(NEW_ROWS, WarmStart(old_lists, LISTS))
    assert "by FAISS" in builder.placement["lists"]
