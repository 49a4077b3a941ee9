"""How long an index will take: for the known kinds a figure that grows as the work does, for others none."""

from __future__ import annotations

import pytest

from fct_infer.index import describe_index, index_seconds


@pytest.mark.parametrize(
    "factory", ["Flat", "SQ8", "PQ8", "HNSW16", "IVF64,Flat", "IVF64,SQ8", "IVF64,PQ8", "IVF64_HNSW16,PQ8"]
)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_known_kinds(factory, metric):
    found = index_seconds(describe_index(factory, 32, 100_000, metric), 100_000, 2)
    assert found is not None
    assert found.adding > 0
    assert (found.training > 0) == ("IVF" in factory or factory == "PQ8")


@pytest.mark.parametrize("factory", ["OPQ8,IVF64,PQ8", "PCA16,Flat", "IVF64,PQ8x4", "IVF64,Flat,RFlat"])
def test_of_kinds_that_are_not_known_nothing_is_said(factory):
    assert index_seconds(describe_index(factory, 32, 100_000, "l2"), 100_000, 2) is None


def test_more_lists_and_more_rows_take_longer():
    """By factors that no busy machine turns round."""
    few, many = (
        index_seconds(describe_index(factory, 32, rows, "l2"), rows, 1)
        for factory, rows in (("IVF16,Flat", 10_000), ("IVF16384,Flat", 2_000_000))
    )
    assert few is not None and many is not None
    assert many.training > few.training and many.adding > few.adding
