"""What an upgrade does to every row, wherever it is done: in this process, or by a worker elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, FctError, GalleryError, NonFiniteError
from fct_infer.gallery import Source
from fct_infer.transformation import Transformation

Rows: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Computation:
    """Rows of a gallery, and what becomes of each.

    Attributes:
        gallery: what is upgraded.
        transformation: calibrated, ready to run.
        dtype: of the published rows.
        block_rows: rows read, transformed and written at once.
        side_is_old: the old embeddings stand for side-information that the gallery has not.
        metric: of the index.
    """

    gallery: Source
    transformation: Transformation
    dtype: np.dtype[Any]
    block_rows: int
    side_is_old: bool
    metric: str

    @property
    def reads_side(self) -> bool:
        """Whether the transformation takes the gallery's side-information."""
        return self.transformation.side_dim > 0 and not self.side_is_old

    @property
    def new_dim(self) -> int:
        """Width of the new embeddings."""
        return self.transformation.new_dim

    def transform(self, old: Rows, side: Rows | None) -> Rows:
        """Return the published values (n, new_dim) of some rows, in the published dtype.

        Raises:
            NonFiniteError: a row, or its result, is not finite.
        """
        new = np.empty((len(old), self.new_dim), self.dtype)
        self.transformation.apply_into(old, old if self.side_is_old else side, new)
        return new

    def transform_rows(self, rows: NDArray[np.int64]) -> Rows:
        """Like :meth:`transform`, of rows of the gallery by their sorted numbers over all parts.

        Raises:
            GalleryError: a row, or its result, is not finite; names file and row.
        """
        try:
            return self.transform(*self.gallery.read_rows(rows, with_side=self.reads_side))
        except NonFiniteError as error:
            raise self.non_finite_row(error, int(rows[error.row])) from error

    def non_finite_row(self, error: NonFiniteError, row: int) -> FctError:
        """Return the error that names file and row instead of a place in a block."""
        if error.array == "result":
            return GalleryError(
                f"{self.gallery.where(row)}: its transformed value does not fit {self.dtype.name}; "
                "try --dtype float32, or --normalize"
            )
        role = {"old": "embedding", "side": "side"}.get(error.array)
        if role is None:
            return ArrayError(str(error))
        if role == "side" and self.side_is_old:
            role = "embedding"
        return GalleryError(f"{self.gallery.where(row, role)} holds NaN or infinity")
