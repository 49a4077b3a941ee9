"""Rows are cut into parts from the file alone, and parts that follow each other are read without beginning again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import vector_files as files

from fct_infer.connectors import open_source, parquet, parted
from fct_infer.connectors.parted import Forward, cut
from fct_infer.errors import GalleryError
from fct_infer.gallery import SourceReader

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_parts_are_groups_together_or_ranges_of_one(groups, most):
    parts = cut(groups, most)
    assert sum(part.rows for part in parts) == sum(groups)
    assert all(0 < part.rows <= most for part in parts)
    ends = np.cumsum([part.rows for part in parts])
    assert [part.first_row for part in parts] == [0, *ends[:-1].tolist()]
    assert [part.name for part in parts] == sorted(part.name for part in parts)
    borders = set(np.cumsum(groups).tolist())
    for group, end in zip(groups, np.cumsum(groups).tolist(), strict=True):
        inner = [part for part in parts if end - group < part.first_row < end]
        assert group > most or not inner  # what is small enough is not cut
    before, after = parts[:-1], parts[1:]
    for one, other in zip(before, after, strict=True):  # no two neighbours that would have been one
        assert other.first_row not in borders or one.rows + other.rows > most or max(groups) > most


def test_names_stay_sorted_when_there_are_many():
    parts = cut([1] * 3, 1)
    assert [part.name for part in parts] == ["000000", "000001", "000002"]


def test_a_row_group_cut_into_parts_is_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parted, "PART_BYTES", 40 * 12 * 4)
    pa.parquet.write_table(pa.table({"v": files.lists(VECTORS)}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    decoded = []
    batches = parquet._batches

    def counted(*arguments):
        for group, batch, done in batches(*arguments):
            decoded.append(batch.num_rows)
            yield group, batch, done

    monkeypatch.setattr(parquet, "_batches", counted)
    assert len(source.parts()) == 6
    with SourceReader(source) as reader:
        for part in source.parts():
            old = np.empty((part.rows, 12), np.float32)
            reader.at(part).read_into(0, part.rows, old, None)
            assert (old == VECTORS[part.first_row : part.first_row + part.rows]).all()
    assert sum(decoded) == 230


def forward(begun):
    """Five groups of ten numbers, in batches of four."""

    def batches(group):
        begun.append(group)
        for first in range(10 * group, 50, 10):
            for start in range(first, first + 10, 4):
                yield np.arange(start, min(start + 4, first + 10))

    return Forward(batches, range(0, 50, 10), 50, "numbers")


def test_reading_jumps_to_the_beginning_of_a_group():
    begun = []
    column = forward(begun)
    for start, stop, wanted in [
        (3, 17, [0]),
        (17, 22, [0]),
        (38, 45, [0, 3]),
        (39, 41, [0, 3, 3]),
        (2, 3, [0, 3, 3, 0]),
    ]:
        assert column.read(start, stop).tolist() == list(range(start, stop))
        assert begun == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 49), st.integers(1, 50)), max_size=12))
def test_any_rows_in_any_order(runs):
    column = forward([])
    for start, count in runs:
        stop = min(50, start + count)
        out = np.empty(stop - start, np.int64)
        column.read_into(start, stop, out)
        assert out.tolist() == list(range(start, stop))


def test_less_rows_than_announced_are_an_error():
    column = Forward(lambda _: iter([np.arange(3)]), [0], 5, "numbers")
    with pytest.raises(GalleryError, match="numbers: ends after 3 rows, 5 were announced"):
        column.read(2, 5)
