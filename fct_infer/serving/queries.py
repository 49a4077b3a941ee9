"""Queries from wherever they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation.reading import read_source
from fct_infer.gallery import Source, SourceReader
from fct_infer.transformation import Float32Array


def read_queries(source: Source) -> tuple[Float32Array, NDArray[Any]]:
    """Return the vectors of a source, (m, dim) float32, and their ids, or row numbers if it has none.

    Raises:
        GalleryError: a row cannot be read, or holds NaN or infinity; names file and row.
    """
    rows = read_source(source, None).astype(np.float32, copy=False)
    if source.schema.id_dtype is None:
        return rows, np.arange(len(rows))
    with SourceReader(source) as reader:
        return rows, np.concatenate([reader.at(part).read_ids(0, part.rows) for part in source.parts()])
