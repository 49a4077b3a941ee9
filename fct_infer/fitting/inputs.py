"""What ``fct-fit`` is given on disk, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import SourceOptions, open_source
from fct_infer.connectors.joining import Progress, gather_rows
from fct_infer.connectors.options import integer_or_text
from fct_infer.errors import GalleryError, UsageError
from fct_infer.evaluation import read_embeddings, read_labels, read_truth
from fct_infer.fitting.compress import MAX_STORED, Stored
from fct_infer.fitting.pairs import MAX_PAIRS, Pairs, read_pairs
from fct_infer.fitting.queries import Queries
from fct_infer.gallery import sample_rows
from fct_infer.gallery.source import Source


def read_inputs(
    inputs: Mapping[str, Any], *, max_pairs: int = MAX_PAIRS, seed: int = 0, progress: Progress | None = None
) -> tuple[Pairs, Queries | None]:
    """Read pairs and the user's queries.

    Args:
        inputs: ``old``, ``new`` and, each optional, ``side``, ``old_ids``, ``new_ids``, ``labels``, ``queries``,
            ``truth``, ``old_queries`` (paths), ``old_embedding_column``, ``new_embedding_column``, ``id_column``
            (names), ``allow_cast``, ``old_model``,
            ``new_model`` (names of models).
        max_pairs: sample of pairs that is read; the rows that queries look for are among them as far as they are there.
        seed: of the sample.
        progress: see :func:`read_pairs`.

    Raises:
        UsageError: queries without truth or truth without queries, or sources that do not fit together.
        GalleryError: a file is missing or malformed, or as :func:`read_pairs`.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    if ("queries" in given) != ("truth" in given):
        raise UsageError("--queries and --truth go together")
    if "old_queries" in given and "queries" not in given:
        raise UsageError("--old-queries wants --queries, the same by the new model")
    labels = read_labels(given["labels"]) if "labels" in given else None
    truth = integer_or_text(read_truth(given["truth"]), str(given["truth"])) if "truth" in given else None
    wanted = None if truth is None else np.unique(truth)
    with _open(given, "old") as old, _open(given, "new") as new, _open_side(given) as side:
        pairs = read_pairs(
            old, new, side, labels=labels, wanted=wanted, max_pairs=max_pairs, seed=seed, progress=progress
        )
    return pairs, None if truth is None else _queries(given, truth, pairs)


def read_stored(inputs: Mapping[str, Any], pairs: Pairs, *, seed: int = 0) -> Stored:
    """Read a sample of rows that h will transform: of ``gallery``, or else of the rows of ``old`` that no pair has.

    Args:
        inputs: as of :func:`read_inputs`, and ``gallery``: any source of old embeddings, with its side-information
            where the pairs have some.
        pairs: what :func:`read_inputs` returned.
        seed: of the sample.

    Raises:
        UsageError: a gallery of another width.
        GalleryError: a file is missing or malformed, or a row holds NaN or infinity.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    if "gallery" in given:
        options = SourceOptions(
            embedding_column=given.get("old_embedding_column"),
            id_column=given.get("id_column"),
            allow_cast=bool(given.get("allow_cast")),
        )
        with open_source(given["gallery"], options) as source:
            old, side = _gathered(source, None, sample_rows(source.schema.rows, MAX_STORED, seed), pairs)
    else:
        with _open(given, "old") as source, _open_side(given) as beside:
            assert pairs.old_rows is not None
            rows = np.setdiff1d(np.arange(source.schema.rows), pairs.old_rows)
            if not len(rows):
                return Stored(pairs.old[:0], None if pairs.side is None else pairs.side[:0])
            old, side = _gathered(source, beside, rows[sample_rows(len(rows), MAX_STORED, seed)], pairs)
    for name, found, wanted in (("", old, pairs.old), ("side-information ", side, pairs.side)):
        if wanted is not None and (found is None or found.shape[1] != wanted.shape[1]):
            width = "none" if found is None else found.shape[1]
            raise UsageError(f"--gallery: its {name}rows are {width} wide, those of OLD {wanted.shape[1]}")
    return Stored(old, side if pairs.side is not None else None)


def _gathered(
    source: Source, beside: Source | None, rows: NDArray[np.int64], pairs: Pairs
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return embeddings, and where the pairs have side-information that of the rows, maybe from a source beside."""
    old, side = gather_rows(source, rows, with_side=pairs.side is not None and beside is None)
    return old, side if beside is None else gather_rows(beside, rows, with_side=False)[0]


def _open_side(given: Mapping[str, Any]) -> AbstractContextManager[Source | None]:
    if "side" not in given:
        return nullcontext()
    return open_source(given["side"], SourceOptions(allow_cast=bool(given.get("allow_cast"))))


def _open(given: Mapping[str, Any], name: str) -> Source:
    options = SourceOptions(
        embedding_column=given.get(f"{name}_embedding_column"),
        id_column=given.get("id_column"),
        ids=given.get(f"{name}_ids"),
        allow_cast=bool(given.get("allow_cast")),
        model=given.get(f"{name}_model"),
    )
    return open_source(given[name], options)


def _queries(given: Mapping[str, Path], truth: NDArray[Any], pairs: Pairs) -> Queries:
    new = read_embeddings(given["queries"])
    old = read_embeddings(given["old_queries"]) if "old_queries" in given else None
    for name, found in (("--truth", len(truth)), ("--old-queries", None if old is None else len(old))):
        if found is not None and found != len(new):
            raise GalleryError(f"{name} has {found:,} rows, --queries {len(new):,}")
    places = _places(truth, pairs.ids)
    if not (places >= 0).any():
        raise GalleryError("--truth names no item that both OLD and NEW have")
    return Queries(new.astype(np.float32), places, None if old is None else old.astype(np.float32))


def _places(truth: NDArray[Any], ids: NDArray[Any]) -> NDArray[np.int64]:
    """Return where in ``ids`` each id of ``truth`` (q, t) is; -1 for those that are not."""
    if (truth.dtype.kind in "iu") != (ids.dtype.kind in "iu"):
        raise UsageError(f"--truth names {truth.dtype} ids, those of the pairs are {ids.dtype}")
    if ids.dtype.kind in "iu" and (truth == -1).any() and (ids == -1).any():
        raise UsageError("--truth holds -1, which is an id here; fill up shorter lines by repeating an id")
    order = np.argsort(ids, kind="stable")
    found = np.minimum(np.searchsorted(ids[order], truth), len(ids) - 1)
    places = order[found]
    return np.where(ids[places] == truth, places, -1)
