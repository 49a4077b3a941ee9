"""Which index, and what it will cost: refused early where it cannot work, estimated close to what is saved."""

from __future__ import annotations

import sys
import time

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer.errors import MissingExtraError, UsageError
from fct_infer.index import IndexBuilder, default_factory, describe_index
from fct_infer.index.factory import make_index
from fct_infer.index.faiss_module import faiss as faiss_module
from fct_infer.transformation import Transformation
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.settings import Settings

ROWS, DIM = 1500, 16


@pytest.mark.parametrize(
    ("rows", "dim", "factory"),
    [
        (1, 128, "Flat"),
        (49_999, 128, "Flat"),
        (50_000, 128, "IVF1024,Flat"),
        (1_000_000, 128, "IVF4096,Flat"),
        (2_000_000, 128, "IVF4096,PQ64"),
        (10_000_000, 160, "IVF16384,PQ40"),
        (10_000_000, 127, "IVF16384,SQ8"),
        (300_000_000, 768, "IVF65536_HNSW32,PQ64"),
    ],
)
def test_the_default_rule(rows, dim, factory):
    assert default_factory(rows, dim) == factory


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5_000_000), dim=st.integers(1, 300))
def test_the_default_is_always_an_index_that_can_be_built(rows, dim):
    plan = describe_index(default_factory(rows, dim), dim, rows, "l2")
    assert 0 < plan.bytes_per_row <= 4 * dim + 8
    assert plan.training_rows <= rows


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(
    "factory",
    ["Flat", "IVF16,Flat", "IVF16,PQ4x4np", "HNSW16", "HNSW8,SQ8", "PCA8,IVF16,SQ8", "IDMap2,SQ8", "IVF16,SQ8,RFlat"],
)
def test_the_estimate_is_close_to_the_saved_file(tmp_path, factory, metric):
    rows = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    builder = IndexBuilder(factory, DIM, metric, threads=1)
    if builder.needs_training:
        builder.train(rows)
    builder.add(rows, np.arange(ROWS))
    saved = builder.save(tmp_path / "index.faiss").size
    plan = describe_index(factory, DIM, ROWS, metric)
    assert plan.estimated_bytes == pytest.approx(saved, rel=0.15)
    assert (plan.factory, plan.metric, plan.dim) == (factory, metric, DIM)


@pytest.mark.parametrize(
    ("factory", "rows", "training_rows"),
    [("Flat", 10**6, 0), ("HNSW32", 10**6, 0), ("IVF16,Flat", 1000, 1000), ("IVF4096,Flat", 10**6, 64 * 4096)],
)
def test_rows_worth_training_on(factory, rows, training_rows):
    assert describe_index(factory, 32, rows, "l2").training_rows == training_rows


@pytest.mark.parametrize(
    ("factory", "metric", "words"),
    [
        ("", "l2", "wanted a FAISS factory string"),
        ("NoSuchIndex", "l2", "could not parse index string NoSuchIndex$"),
        ("IVF16", "l2", "could not parse"),
        ("IVF-3,Flat", "l2", "could not parse"),
        ("PQ7", "l2", "should be a multiple"),
        ("IVF16,PQ7", "cosine", "multiple"),
        ("LSH", "ip", "METRIC_L2"),
        ("HNSW8,PQ4", "ip", "does not support metric ip"),
        ("HNSW8,PQ4", "cosine", "does not support metric cosine"),
        ("NSG16", "l2", "cannot be filled block by block"),
        ("IDMap,NSG16", "l2", "cannot be filled block by block"),
        ("IVF0,Flat", "l2", "'IVF0' is zero of something, wanted at least 1"),
        ("IVF1001,Flat", "l2", "has 1001 inverted lists, wanted 1 to 1000"),
        ("IVF1k,Flat", "l2", "has 1024 inverted lists"),
        ("IVF16,PQ4x10", "l2", "needs 1024 rows to be trained, the gallery has 1000"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(factory, metric, words):
    with pytest.raises(UsageError, match=words) as caught:
        describe_index(factory, DIM, 1000, metric)
    assert "\n" not in str(caught.value)
    assert "/project/" not in str(caught.value)


@pytest.mark.parametrize(
    "factory",
    [
        "IVF99999999999999999999,Flat",
        "IVF2000000000,Flat",
        "IVF60000M,Flat",
        "IMI2x40,Flat",
        "PQ8x30",
        "IVF16,PQ8x28",
        "IVF" + "9" * 5000 + ",Flat",
        "PCA8," * 100_000 + "Flat",
    ],
)
def test_absurd_numbers_cost_neither_time_nor_memory(factory):
    start = time.perf_counter()
    with pytest.raises(UsageError):
        describe_index(factory, DIM, 1000, "l2")
    assert time.perf_counter() - start < 60


def test_a_missing_faiss_names_the_extra(monkeypatch):
    faiss_module.cache_clear()
    monkeypatch.setitem(sys.modules, "faiss", None)
    try:
        with pytest.raises(MissingExtraError, match=r"faiss is not installed; run: pip install 'fct-infer\[cpu\]'"):
            describe_index("Flat", DIM, 10, "l2")
    finally:
        monkeypatch.undo()
        faiss_module.cache_clear()
    assert faiss_module() is faiss


@pytest.mark.parametrize(
    "factory",
    [
        "HNSW0",
        "HNSW1",
        "HNSW00",
        "HNSW0,Flat",
        "HNSW1,SQ8",
        "HNSW0_PQ4",
        "IVF4_HNSW0,Flat",
        "IVF4_HNSW1,Flat",
        "IVF4(HNSW0),Flat",
        "IDMap2,HNSW0",
        "Flat,Refine(HNSW0)",
        "PCA4,HNSW1",
        "PQ4x0",
        "PQ0",
        "IVF4,PQ4x0",
        "PQ4x4fs_0",
        "OPQ4_0,PQ4",
        "RR0,Flat",
        "RQ2x0",
        "LSQ0x4",
        "PRQ2x0x4",
        "IVF4,ITQ0,SH",
        "ZnLattice0x4_2",
        "NSG0",
        "IVF0k,Flat",
        "LSH999999999",
        "PCA999999999,Flat",
        "HNSW999999999",
        "IVF4,RQ999999999x8",
        "IVF4(" * 60 + "Flat",
        "Flat\0",
        "Flat\n",
        "IVF４,Flat",
    ],
)
def test_what_faiss_does_not_survive_never_reaches_it(factory):
    for make in (lambda: describe_index(factory, DIM, 1000, "l2"), lambda: make_index(factory, DIM, "l2")):
        with pytest.raises(UsageError, match="index "):
            make()


def test_what_fails_only_when_rows_are_added_or_searched_is_typed():
    rows = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    builder = IndexBuilder("IVF16,Flat", DIM, "l2", threads=1)
    with pytest.raises(UsageError, match="index 'IVF16,Flat' cannot be filled: "):
        builder.add(rows, np.arange(300))
    with pytest.raises(UsageError, match="index 'IVF16,Flat' cannot be searched: "):
        builder.search(rows[:, :3].copy(), 3)


@pytest.mark.parametrize(
    ("factory", "depends"),
    [("IVF16,PQ8", False), ("PQ8", False), ("HNSW8", True), ("OPQ8_32,IVF16,PQ8", True), ("PCA32,IVF8,SQ8", True)],
)
def test_work_is_resumed_with_the_same_blocks_where_bytes_depend_on_them(tmp_path, factory, depends):
    write_gallery(tmp_path / "g", (300,), old_dim=6, side_dim=None)
    h = Transformation(linear_map(6, 64), precision="fp32")
    plans = [make_plan(tmp_path / "g", h, tmp_path / "d", Settings(index=factory, block_rows=rows)) for rows in (7, 8)]
    assert (plans[0].identity() != plans[1].identity()) == depends
