"""Indexes trained by the core are as good as those that FAISS trains, and the same whatever the threads."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from fct_infer import _core
from fct_infer.errors import ArrayError, NonFiniteError
from fct_infer.index.training import train_index

ROWS, DIM = 3000, 16
METRICS = (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT)


def mixture(rows=ROWS):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, DIM)) * 3
    return (centres[rng.integers(0, 20, rows)] + rng.standard_normal((rows, DIM))).astype(np.float32)


DATA = mixture()


def empty(factory, metric=faiss.METRIC_L2):
    index = faiss.index_factory(DIM, factory, metric)
    for part in (index, getattr(index, "index", None)):
        if part is not None and hasattr(faiss.downcast_index(part), "do_polysemous_training"):
            faiss.downcast_index(part).do_polysemous_training = False
    return index


def trained(factory, metric=faiss.METRIC_L2, threads=1, data=DATA):
    index = empty(factory, metric)
    train_index(index, data, threads)
    assert index.is_trained
    return index


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "factory", ["IVF24,Flat", "IVF24,SQ8", "IVF24,PQ4", "IVF24_HNSW8,PQ4", "PCA12,IVF8,PQ3", "PQ4"]
)
def test_the_same_index_whatever_the_threads(factory, metric):
    one, three = (faiss.serialize_index(trained(factory, metric, threads)) for threads in (1, 3))
    assert np.array_equal(one, three)


@pytest.mark.parametrize("metric", METRICS)
def test_lists_are_as_tight_as_those_faiss_trains(metric):
    """Of one cloud: of many, luck decides which of them share a list."""
    cloud = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    ours, theirs = trained("IVF64,Flat", metric, data=cloud), empty("IVF64,Flat", metric)
    theirs.train(cloud)
    near = [index.quantizer.search(cloud, 1)[0].sum() for index in (ours, theirs)]
    if metric == faiss.METRIC_L2:
        assert near[0] <= 1.03 * near[1]
    else:
        assert near[0] >= 0.97 * near[1]
        centroids = faiss.downcast_index(ours.quantizer).reconstruct_n(0, 64)
        assert np.linalg.norm(centroids, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("factory", ["IVF16,PQ4", "IVF16,PQ8", "PQ4", "IDMap,PQ4"])
def test_codes_are_as_near_as_those_faiss_trains(factory):
    ours, theirs = trained(factory), empty(factory)
    if factory.startswith("IVF"):  # the same lists, or luck would decide
        theirs.quantizer.add(faiss.downcast_index(ours.quantizer).reconstruct_n(0, 16))
    theirs.train(DATA)
    fresh = mixture(2 * ROWS)[ROWS:]
    errors = []
    for index in (ours, theirs):
        inner = faiss.downcast_index(index.index) if factory.startswith("IDMap") else index
        errors.append(((inner.sa_decode(inner.sa_encode(fresh)) - fresh) ** 2).sum())
    assert errors[0] <= 1.08 * errors[1]  # of other random rows to start from either differs by 2 %


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["IVF16,SQ8", "IVF16,SQ4", "PCA12,IVF16,SQ8"])
def test_scalar_quantizers_are_those_faiss_trains_without_its_finding_lists_again(factory, metric, monkeypatch):
    left_to_faiss = []
    train = faiss.IndexIVFScalarQuantizer.train
    monkeypatch.setattr(faiss.IndexIVFScalarQuantizer, "train", lambda *_: left_to_faiss.append("lists"))
    monkeypatch.setattr(faiss.IndexPreTransform, "train", lambda *_: left_to_faiss.append("lists"))
    ours = trained(factory, metric)
    assert not left_to_faiss
    inner, rows = ours, DATA
    if factory.startswith("PCA"):
        inner, rows = faiss.downcast_index(ours.index), ours.chain.at(0).apply(DATA)
    theirs = faiss.clone_index(inner)
    theirs.is_trained = False
    train(theirs, rows)
    np.testing.assert_array_equal(*(faiss.vector_to_array(each.sq.trained) for each in (inner, theirs)))


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IMI2x3,PQ4", "PQ4x4", "PCA12,HNSW8"])
def test_what_there_is_no_kernel_for_is_trained_by_faiss(factory):
    ours, theirs = trained(factory), empty(factory)
    theirs.train(DATA)
    assert np.array_equal(faiss.serialize_index(ours), faiss.serialize_index(theirs))


def test_refining_indexes_get_lists_by_the_core_and_the_rest_by_faiss():
    index = trained("IVF16,PQ4np,RFlat")
    index.add(DATA)
    assert (index.search(DATA[:50], 1)[1][:, 0] == np.arange(50)).mean() > 0.9


def test_a_sample_of_a_few_rows_many_times_over():
    index = trained("IVF16,PQ4", data=np.repeat(DATA[:10], 40, axis=0))
    index.add(DATA)
    assert index.ntotal == ROWS


def test_more_rows_than_are_worth_it_are_thinned_out_evenly():
    ordered = np.sort(DATA, axis=0).repeat(2, axis=0)  # 256 rows are enough for one list
    index = trained("IVF2,Flat", data=ordered)
    first, second = faiss.downcast_index(index.quantizer).reconstruct_n(0, 2)
    halves = ordered[:ROWS].mean(axis=0), ordered[ROWS:].mean(axis=0)
    assert min(np.abs(first - half).max() for half in halves) < 1
    assert min(np.abs(second - half).max() for half in halves) < 1
    assert np.abs(first - second).max() > 2


def test_bad_rows_are_refused():
    rows = DATA.copy()
    rows[700, 3] = np.inf
    for factory in ("IVF16,Flat", "PQ4"):
        with pytest.raises(NonFiniteError, match="row 700"):
            trained(factory, data=rows)
    with pytest.raises(ArrayError, match="wanted"):
        _core.refine_centroids(DATA, DATA[:4, :5].copy(), metric="l2", spherical=False, iterations=1, threads=1)
