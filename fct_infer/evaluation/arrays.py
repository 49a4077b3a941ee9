"""Evaluation of arrays in memory, or of files: what ``fct-evaluate`` does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import UsageError
from fct_infer.evaluation.checks import StoredEmbeddings
from fct_infer.evaluation.inputs import read_input
from fct_infer.evaluation.study import Settings, StageProgress, Study, StudyInputs, study
from fct_infer.gallery.jobs import Workers
from fct_infer.notebook import shows_progress

Given: TypeAlias = NDArray[Any] | str | os.PathLike[str]
"""An array, or the file or folder it is read from."""


class Compared(TypedDict, total=False):
    """What else is known: see the attributes of :class:`fct_infer.evaluation.StudyInputs`."""

    old_queries: Given
    old_gallery: Given
    new_gallery: Given
    uncertainty: Given
    query_cameras: Given
    gallery_cameras: Given
    query_groups: Given
    gallery_groups: Given


@shows_progress
def evaluate(
    queries: Given,
    gallery: Given,
    query_labels: Given,
    gallery_labels: Given,
    *,
    settings: Settings | None = None,
    progress: StageProgress | None = None,
    executor: Workers | None = None,
    **compared: Unpack[Compared],
) -> Study:
    """Say how good a search is, and, with the old model's queries or the gallery re-embedded, what an upgrade is worth.

    Args:
        queries: (n_q, dim) by the new model.
        gallery: (n_g, dim) what is searched; a published gallery, or vectors in any format.
        query_labels: (n_q,), or (n_q, t) such as the ids of the right rows.
        gallery_labels: (n_g,), comparable with them.
        settings: metric, figures, ranks; see :class:`fct_infer.evaluation.Settings`.
        progress: called as ``progress(stage, done, whole)``.
        executor: who ranks, such as a :class:`~fct_infer.distributed.ray_executor.RayExecutor`; by default this
            process. Embeddings are read there, so they are files that all see; what is found is the same.
        compared: what the attributes of :class:`fct_infer.evaluation.StudyInputs` of these names say.

    Raises:
        ArrayError: dtypes, shapes or widths do not fit, or a row holds NaN or infinity.
        GalleryError, ArtifactError: a file is missing, malformed or damaged; names it.
        UsageError: an argument that does not exist, or settings make no sense.
        UnsupportedError: workers elsewhere cannot read an array.
    """
    given: dict[str, Any] = {
        "queries": queries,
        "gallery": gallery,
        "query_labels": query_labels,
        "gallery_labels": gallery_labels,
        **compared,
    }
    if unknown := set(compared) - set(Compared.__annotations__):
        raise UsageError(f"evaluate has no {', '.join(sorted(unknown))}; it has {', '.join(Compared.__annotations__)}")
    named = executor is not None
    read: dict[str, Any] = {name: _array(name, value, named) for name, value in given.items() if value is not None}
    return study(StudyInputs(**read), settings or Settings(), progress, executor)


def _array(name: str, value: Given, named: bool) -> NDArray[Any] | StoredEmbeddings:
    if isinstance(value, str | os.PathLike):
        return read_input(name, Path(value), named=named)
    return np.asarray(value)
