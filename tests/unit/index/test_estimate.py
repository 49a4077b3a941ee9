"""How long an index will take: for the known kinds a figure that grows as the work does, for others none."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer.index import describe_index, estimate, filling, index_seconds
from fct_infer.index.clustering import Clustering
from fct_infer.index.leading_directions import LeadingDirections
from fct_infer.index.training import train_transforms

RNG = np.random.default_rng(0)


def draw(count):
    return RNG.standard_normal((count, 32), np.float32)


@pytest.mark.parametrize(
    "factory", ["Flat", "SQ8", "PQ8", "HNSW16", "IVF64,Flat", "IVF64,SQ8", "IVF64,PQ8", "IVF64_HNSW16,PQ8"]
)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_known_kinds(factory, metric):
    found = index_seconds(describe_index(factory, 32, 100_000, metric), 100_000, 2, draw)
    assert found is not None
    assert found.adding > 0
    assert (found.training > 0) == ("IVF" in factory or factory == "PQ8")


@pytest.mark.parametrize("factory", ["OPQ8,IVF64,PQ8x4", "IVF64,PQ8x4", "IVF64,Flat,RFlat"])
def test_of_kinds_that_are_not_known_nothing_is_said(factory):
    assert index_seconds(describe_index(factory, 32, 100_000, "l2"), 100_000, 2, draw) is None


@pytest.mark.parametrize("factory", ["OPQ8_16,IVF64,PQ8", "PCA16,L2norm,Flat", "PCA16,HNSW8"])
def test_what_is_behind_transforms_takes_their_time_as_well(factory, monkeypatch):
    trained = []

    def train(index, rows):
        if not index.chain.at(0).is_trained:
            trained.append(len(rows))
        return train_transforms(index, rows)

    monkeypatch.setattr(estimate, "train_transforms", train)
    plan = describe_index(factory, 32, 100_000, "l2")
    found = index_seconds(plan, 100_000, 2, draw)
    assert found is not None and found.training > 0 and found.adding > 0
    assert trained == [plan.training_rows]  # as the run does it


def test_more_lists_and_more_rows_take_longer():
    """By factors that no busy machine turns round."""
    few, many = (
        index_seconds(describe_index(factory, 32, rows, "l2"), rows, 1, draw)
        for factory, rows in (("IVF16,Flat", 10_000), ("IVF16384,Flat", 2_000_000))
    )
    assert few is not None and many is not None
    assert many.training > few.training and many.adding > few.adding


def test_lists_are_found_as_the_run_finds_them(monkeypatch):
    """By scores along a few directions, where these are enough for the rows."""
    found = []

    class Watched(LeadingDirections):
        def enough(self, *args):
            found.append(super().enough(*args))
            return found[-1]

    monkeypatch.setattr(filling, "LeadingDirections", Watched)
    spread = np.where(np.arange(32) < 6, 1, 1e-3).astype(np.float32)
    for scale in (spread, np.ones(32, np.float32)):
        index_seconds(describe_index("IVF512,Flat", 32, 50_000, "l2"), 50_000, 1, lambda n, s=scale: draw(n) * s)
    few, none = found
    assert few is not None and len(few) == 16
    assert none is None


def test_ways_are_found_with_rows_that_no_list_was_trained_on(monkeypatch):
    """To the few it was trained on, a list looks nearer than to those of the run, and fewer directions enough."""
    seen = []

    class Watched(Clustering):
        def ways(self, *args):
            seen.append(self.rows)
            return super().ways(*args)

    monkeypatch.setattr(estimate, "Clustering", Watched)
    index_seconds(describe_index("IVF64,Flat", 32, 100_000, "l2"), 100_000, 1, draw)
    *while_trained, first, last = seen
    assert {len(rows) for rows in while_trained} == {4 * 64}
    assert len(first) == len(last) == 8192
    assert not (last[:, None, :4] == while_trained[0][:, :4]).all(axis=2).any()


@pytest.mark.parametrize(("rows", "drawn"), [(100_000, 4 * 64 + 8192), (1000, 1000)])
def test_seconds_are_those_of_as_many_rows_and_iterations_as_the_run_has(rows, drawn, monkeypatch):
    asked = []
    monkeypatch.setattr(estimate, "_seconds", lambda work: (work(), 1.0)[1])  # of a sample of any size
    monkeypatch.setattr(estimate, "filler_of", lambda index, threads: lambda rows, ids, threads: None)

    def drawing(count):
        asked.append(count)
        return draw(min(count, rows))

    sample = min(8192, drawn)
    found = index_seconds(describe_index("IVF64,PQ8", 32, rows, "l2"), rows, 1, drawing)
    assert asked == [4 * 64 + 8192]
    k_means = 10 * min(rows, 256 * 64) / sample
    assert found.training == pytest.approx(k_means + min(rows, 65_536) / sample + 14, abs=0.5)  # residuals, codebooks
    assert found.adding == pytest.approx(rows / sample, abs=1)  # and what precedes the first row
