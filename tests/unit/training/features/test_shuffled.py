from __future__ import annotations

import tracemalloc
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.features import write_columns

from fct_infer.errors import ArrayError, UsageError
from fct_infer.training.data.splits import Split
from fct_infer.training.features import shuffled
from fct_infer.training.features.cached import Features
from fct_infer.training.features.shuffled import FeatureBatches


def numbered(path, shards: tuple[int, ...]) -> Features:
    """Features whose old[:, 0] is the row number, and new[:, 0] its negative."""
    rows = np.arange(sum(shards), dtype=np.float32)[:, None]
    columns = {"old": np.repeat(rows, 2, axis=1), "new": -rows, "labels": np.arange(sum(shards))}
    return Features.open(**write_columns(path, columns, shards))


def epoch(batches: FeatureBatches) -> list[list[int]]:
    """Row numbers by batch; all columns must be of the same row."""
    numbers = []
    for old, side, new, labels in batches:
        assert (old.dtype, new.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
        assert torch.equal(old, side)
        assert torch.equal(old[:, 0], -new[:, 0])
        assert torch.equal(labels, old[:, 0].long())
        numbers.append(labels.tolist())
    return numbers


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    batch=st.integers(1, 20),
    chunk=st.integers(1, 9),
    chunks_in_buffer=st.integers(1, 5),
    share=st.sampled_from([0, 0.1, 0.5]),
    seed=st.integers(0, 9),
)
def test_an_epoch_visits_each_training_row_once(
    tmp_path_factory, monkeypatch, shards, batch, chunk, chunks_in_buffer, share, seed
):
    features = numbered(tmp_path_factory.mktemp("features"), tuple(shards))
    split = Split.draw(features.rows, share, seed)
    monkeypatch.setattr(shuffled, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(shuffled, "BUFFER_ROWS", chunk * chunks_in_buffer)
    if split.training_rows < 2:
        with pytest.raises(ArrayError, match="one batch"):
            FeatureBatches(features, split, batch, seed)
        return
    batches = FeatureBatches(features, split, batch, seed)
    visited = epoch(batches)
    rows = list(chain.from_iterable(visited))
    assert len(visited) == len(batches)
    assert {len(each) for each in visited[:-1]} <= {batch}
    assert min(batch, 2) <= len(visited[-1]) <= batch + 1  # batch norm wants two, so a single row joins the others
    assert len(set(rows)) == len(rows) == split.training_rows
    assert not set(rows) & set(split.held_out.tolist())


def test_every_epoch_has_its_own_order_and_a_seed_repeats_them_all(tmp_path):
    features = numbered(tmp_path, (300, 200))
    split = Split.draw(features.rows, 0.1, 0)
    first, again, other = (FeatureBatches(features, split, 32, seed) for seed in (1, 1, 2))
    one, two = epoch(first), epoch(first)
    assert [one, two] == [epoch(again), epoch(again)]
    assert one != two
    assert one != epoch(other)


def test_an_interrupted_run_goes_on_with_the_same_order(tmp_path):
    """What the loop keeps of the batches is the state of their generators."""
    features = numbered(tmp_path, (300,))
    split = Split.draw(features.rows, 0, 0)
    whole, resumed = (FeatureBatches(features, split, 32, seed=3) for _ in range(2))
    epoch(whole)
    state = whole.generators[0].get_state()
    expected = epoch(whole)
    resumed.generators[0].set_state(state)
    assert epoch(resumed) == expected


def test_batches_mix_rows_from_everywhere(tmp_path, monkeypatch):
    """Rows on disk in order of class, as image folders leave them: a batch must not be a few classes."""
    monkeypatch.setattr(shuffled, "CHUNK_ROWS", 16)
    monkeypatch.setattr(shuffled, "BUFFER_ROWS", 2048)
    features = numbered(tmp_path, (10_000,))
    for rows in epoch(FeatureBatches(features, Split.draw(10_000, 0, 0), 256, seed=0))[:-1]:
        classes = np.unique(np.array(rows) // 100)
        assert len(classes) > 60  # of 100; drawn from all rows it would be about 92
        assert np.abs(np.corrcoef(np.arange(256), rows)[0, 1]) < 0.3


def test_memory_is_a_few_buffers_whatever_the_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffled, "BUFFER_ROWS", 4096)
    rng = np.random.default_rng(0)
    columns = {name: rng.standard_normal((100_000, 32), np.float32).astype(np.float16) for name in ("old", "new")}
    features = Features.open(**write_columns(tmp_path, columns, (60_000, 40_000)))
    del columns
    batches = FeatureBatches(features, Split.draw(100_000, 0.01, 0), 512, seed=0)
    tracemalloc.start()
    rows = sum(len(old) for old, _, _ in batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 99_000
    assert peak < 4 * 4096 * 64 * 2  # the data is 24 buffers


def test_several_processes_share_each_batch(tmp_path):
    features = numbered(tmp_path, (100,))
    split = Split.draw(100, 0, 0)
    alone, first, second = (FeatureBatches(features, split, 20, seed=0) for _ in range(3))
    first.share(0, 2)
    second.share(1, 2)
    for together, one, two in zip(epoch(alone), epoch(first), epoch(second), strict=True):
        assert sorted(one + two) == sorted(together)
    with pytest.raises(UsageError, match="20 rows cannot be shared evenly by 3"):
        alone.share(0, 3)
