"""Indexes filled by the core are those that FAISS fills."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from fct_infer import _core
from fct_infer.errors import ArrayError, NonFiniteError
from fct_infer.index.filling import filler_of

ROWS, DIM = 700, 24
DATA = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32) + 1
IDS = np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 5 + (1 << 40)
METRICS = (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT)


def trained(factory, metric):
    index = faiss.index_factory(DIM, factory, metric)
    for part in (index, getattr(index, "index", None)):
        if part is not None and hasattr(faiss.downcast_index(part), "do_polysemous_training"):
            faiss.downcast_index(part).do_polysemous_training = False
    index.train(DATA)
    return index


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "factory", ["IVF16,Flat", "IVF16,SQfp16", "IVF16,PQ4", "IVF16,PQ6", "PCA12,IVF8,PQ3", "IDMap,PQ4"]
)
def test_the_file_is_the_one_faiss_gives(factory, metric):
    theirs = trained(factory, metric)
    ours = faiss.clone_index(theirs)
    fill = filler_of(ours)
    start = 0
    for count in (300, 1, 399):
        fill(DATA[start : start + count], IDS[start : start + count], 1 + count % 3)
        start += count
    theirs.add_with_ids(DATA, IDS)
    assert np.array_equal(faiss.serialize_index(ours), faiss.serialize_index(theirs))
    assert np.array_equal(ours.search(DATA[:9], 3)[1], theirs.search(DATA[:9], 3)[1])


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IMI2x3,Flat", "IDMap2,PQ4"])
def test_what_there_is_no_kernel_for_is_left_to_faiss(factory):
    assert filler_of(trained(factory, METRICS[0])) is None


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("codes", ["Flat", "PQ4"])
def test_with_a_graph_over_the_lists_rows_get_the_nearest_list(codes, metric):
    index = trained(f"IVF32_HNSW4,{codes}", metric)
    centroids = faiss.downcast_index(index.quantizer).reconstruct_n(0, 32)
    filler_of(index)(DATA, IDS, 2)
    flat = faiss.IndexFlat(DIM, metric)
    flat.add(centroids)
    for number, row in zip(flat.search(DATA, 1)[1][:, 0].tolist(), IDS, strict=True):
        assert row in faiss.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number))
    assert type(faiss.downcast_index(index.quantizer)) is faiss.IndexHNSWFlat


def test_the_lowest_list_wins_among_equals():
    centroids = np.repeat(DATA[:3], 40, axis=0)
    lists, codes = _core.Assigner(centroids, None).assign(DATA[:3], 2)
    assert lists.tolist() == [0, 40, 80] and codes is None


def test_bad_input_is_refused():
    assigner = _core.Assigner(DATA[:4], None)
    rows = DATA[:300].copy()
    rows[140, 2] = np.nan
    with pytest.raises(NonFiniteError, match="row 140"):
        assigner.assign(rows, 2)
    with pytest.raises(ArrayError, match="wanted"):
        assigner.assign(DATA[:, :5].copy(), 1)
    with pytest.raises(ArrayError, match="entries"):
        _core.Assigner(DATA[:4], np.zeros((4, 16, 6), np.float32))
