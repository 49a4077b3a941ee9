"""Slices of Arrow columns: their rows, not their neighbours', and null rows that hide numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support import vector_files as files

from fct_infer.connectors import arrow_arrays
from fct_infer.errors import GalleryError

VECTORS = np.arange(60, dtype=np.float32).reshape(20, 3)


class Vector(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.list_(pa.float32(), 3), "test.vector")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage, _serialized):
        return cls()


COLUMNS = {
    "fixed": files.fixed_size(VECTORS),
    "list": files.lists(VECTORS),
    "large": pa.array(list(VECTORS), pa.large_list(pa.float32())),
    "extension": pa.ExtensionArray.from_storage(Vector(), files.fixed_size(VECTORS)),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize(("start", "rows"), [(0, 20), (7, 5), (19, 1)])
def test_a_slice_is_its_own_rows(kind, start, rows):
    column = COLUMNS[kind]
    assert arrow_arrays.is_vector(column.type) and arrow_arrays.stored_dtype(column.type) == np.float32
    found = arrow_arrays.vectors(column.slice(start, rows), 3, "x", start, Path("x"))
    assert (found == VECTORS[start : start + rows]).all() and not found.flags.writeable


def test_a_null_row_does_not_shift_the_rest():
    rows = [list(map(float, row)) for row in VECTORS]
    rows[8] = None
    for kind in (pa.list_(pa.float32(), 3), pa.list_(pa.float32())):
        column = pa.array(rows, kind)
        with pytest.raises(GalleryError, match="x, row 108: is null"):
            arrow_arrays.vectors(column.slice(5, 10), 3, "x", 105, Path("x"))
        assert (arrow_arrays.vectors(column.slice(9, 4), 3, "x", 9, Path("x")) == VECTORS[9:13]).all()


VIEWS = {
    "text": (["a", "bc", "def"], pa.string_view()),
    "bytes": ([b"a", b"bc", b"\xff"], pa.binary_view()),
}


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_ids_that_lie_as_views_are_ids(kind, is_dictionary):  # Polars writes text so
    values, view = VIEWS[kind]
    column = pa.array(values, view)
    if is_dictionary:
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.uint32()), column)
    assert arrow_arrays.is_id(column.type) and arrow_arrays.id_dtype(column.type).kind == (
        "U" if kind == "text" else "S"
    )
    assert arrow_arrays.ids(column.slice(1), "x", 1, Path("x")).tolist() == values[1:]
    nulls = pa.array([values[0], None], view)
    with pytest.raises(GalleryError, match=r"x, row 1: has no id \(null\)"):
        arrow_arrays.ids(nulls, "x", 0, Path("x"))
