"""One gallery of which a growing part is re-embedded, searched in one space throughout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, UnsupportedError, UsageError
from fct_infer.gallery.source import Source
from fct_infer.index.gallery_index import check_search
from fct_infer.serving.delta import DeltaView, delta_of
from fct_infer.serving.loading import fresh_segment, published_segment, source_segment
from fct_infer.serving.rows import Bools, Ids, checked_ids, checked_rows, distances_of, nearest_of
from fct_infer.serving.segment import Segment
from fct_infer.serving.spaces import NewSpace, Space
from fct_infer.transformation import Float32Array, Transformation

Model: TypeAlias = Literal["old", "new"]


class Found(NamedTuple):
    """What a search found, for each query.

    Attributes:
        distances: (m, k) float32 in the new space, as FAISS gives them (squared for l2, larger is nearer for ip and
            cosine).
        ids: (m, k); -1, or an empty text, where there are fewer than k rows.
        is_new: (m, k) whether the new model embedded the row; False for what h transformed.
    """

    distances: Float32Array
    ids: Ids
    is_new: Bools


@dataclass(frozen=True)
class MixedProgress:
    """How far the re-embedding is.

    Attributes:
        rows: in the gallery.
        new: of these, embedded by the new model.
        changed: rows that lie in the delta, beside the big index; :meth:`MixedGallery.compact` folds them in.
    """

    rows: int
    new: int
    changed: int

    @property
    def share(self) -> float:
        """Of the rows that the new model embedded, 0 to 1."""
        return self.new / self.rows if self.rows else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as strict JSON."""
        return {"rows": self.rows, "new": self.new, "changed": self.changed, "share": self.share}


@dataclass(frozen=True)
class State:
    """All rows at one moment: each id is in one segment, or in the delta, or nowhere. Never changed."""

    segments: tuple[Segment, ...]
    delta: DeltaView


class MixedGallery:
    """A gallery that answers while it is re-embedded, in the new model's space from the first query to the last.

    Rows that the new model has not embedded yet are found through h (see :mod:`fct_infer.serving.spaces`), so that a
    distance means the same whoever made the row. Rows that change go to a small delta, searched exactly beside the big
    index, and their earlier versions are found no more.

    All methods may be called from any thread. A search sees the gallery as it was at one moment, so every row once and
    whole; searches wait for nobody. Changes wait for each other.

    Args:
        space: the rows as they are now.
        ids: (n,) integers or text, of every row; in the order of its rows where an index knows them by their numbers.
        h: for rows of the old model that arrive later; None if there will be none.
        is_new: (n,) whether the new model embedded a row, or one value for all.

    Raises:
        GalleryError: an id is there twice.
        UnsupportedError: ids are bytes with NULs at their end, which are not told apart.
    """

    def __init__(
        self, space: Space, ids: NDArray[Any], h: Transformation | None = None, is_new: bool | Bools = False
    ) -> None:
        labels = None
        if isinstance(space, NewSpace) and space.index.stored_ids is None:
            labels = ids.astype(np.int64)
        self._start([Segment.of(space, ids, is_new, labels)], h)

    def _start(self, segments: Sequence[Segment], h: Transformation | None) -> None:
        space = segments[0].space
        self.metric, self.dim = space.metric, space.dim
        if h is not None and h.new_dim != self.dim:
            raise UsageError(f"h gives rows of {h.new_dim}, the gallery's are of {self.dim}")
        if segments[0].ids.dtype.kind not in "iuUS":
            raise UnsupportedError(f"ids of {segments[0].ids.dtype} cannot be told apart; wanted integers or text")
        self._h = h
        self._id_dtype = segments[0].ids.dtype
        self._delta = delta_of(self.dim, self._id_dtype, ())
        self._state = State(tuple(segments), self._delta.view())
        self._changes, self._compacting = Lock(), Lock()
        self._touched: list[Ids] | None = None  # ids changed since a compaction began

    @classmethod
    def open(
        cls,
        source: str | Path | Source,
        h: Transformation,
        *,
        metric: str = "l2",
        index: str = "auto",
        threads: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> MixedGallery:
        """Open a gallery of the old model with h on read: all rows are transformed once and indexed, in memory.

        Args:
            source: whatever :func:`fct_infer.open_source` opens.
            h: from the old model to the new one.
            metric: ``l2``, ``ip`` or ``cosine``, of the new space.
            index: FAISS factory string; ``auto`` is the default rule of an upgrade.
            threads: for FAISS; h has its own.
            progress: called as ``progress("transform", rows_done, rows)``.

        Raises:
            GalleryError: it cannot be read, or an id is there twice.
            ArrayError: it does not fit h, or a row holds NaN or infinity.
        """
        gallery = cls.__new__(cls)
        gallery._start([source_segment(source, h, metric, index, threads, progress)], h)
        return gallery

    @classmethod
    def published(cls, dest: str | Path, h: Transformation | None = None) -> MixedGallery:
        """Open what ``fct-upgrade-gallery`` published, with its index.

        Raises:
            ArtifactError: it is not such a folder, has no index, or a file is damaged.
        """
        gallery = cls.__new__(cls)
        gallery._start([published_segment(Path(dest))], h)
        return gallery

    @classmethod
    def load(cls, path: str | Path, h: Transformation | None = None, space: Space | None = None) -> MixedGallery:
        """Open what :meth:`save` wrote.

        Args:
            path: the folder.
            h: as of the class.
            space: where rows are searched that stay in the old space; needed if there were such.

        Raises:
            ArtifactError: it is no such folder, or a file is missing or damaged.
            UsageError: ``space`` is needed, or is not.
        """
        from fct_infer.serving.saved import load_state

        segments, changed = load_state(Path(path), space)
        gallery = cls.__new__(cls)
        gallery._start(segments, h)
        gallery._delta = delta_of(gallery.dim, gallery._id_dtype, [changed])
        gallery._state = replace(gallery._state, delta=gallery._delta.view())
        return gallery

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Save all rows as they are at this moment as a folder, in one step; changes and searches go on meanwhile.

        Args:
            path: folder to make.
            force: replace what an earlier save made.

        Raises:
            OutputError: ``path`` exists and is not to be replaced, or another process writes it.
            ResourceError: disk full or another I/O error; what was there is still there.
        """
        from fct_infer.serving.saved import save_state

        save_state(self._state, Path(path), force=force)

    @property
    def progress(self) -> MixedProgress:
        """How far the re-embedding is."""
        state = self._state
        rows = sum(segment.count for segment in state.segments) + state.delta.count
        new = sum(segment.new_count for segment in state.segments)
        new += int((state.delta.is_new & state.delta.alive).sum())
        return MixedProgress(rows, new, state.delta.count)

    @property
    def is_one_space(self) -> bool:
        """Whether all distances are of the new space; False only over a :class:`~.spaces.CalibratedSpace`."""
        return all(segment.space.is_exact_space for segment in self._state.segments)

    def search(self, queries: Float32Array, k: int, old_queries: Float32Array | None = None) -> Found:
        """Return the k nearest rows of each query.

        Args:
            queries: (m, dim) float32, embeddings of the new model; normalised here for the cosine metric.
            k: neighbours wanted.
            old_queries: (m, old_dim) float32, the same queries by the old model, where rows stay in the old space.

        Raises:
            ArrayError: queries are not finite, C-contiguous float32 (m, dim), or k is no integer above zero.
            UsageError: ``old_queries`` is needed.
        """
        queries, k = check_search(queries, k, self.dim, self.metric)
        state = self._state
        found = [segment.nearest(queries, k, old_queries) for segment in state.segments]
        costs, ids, is_new = nearest_of([*found, state.delta.nearest(queries, k, self.metric)], k)
        return Found(distances_of(costs, self.metric), ids, is_new)

    def model_of(self, ids: Any) -> NDArray[np.str_]:
        """Return which model embedded each row (n,): ``"new"``, ``"old"`` (through h), or ``""`` if it is not there."""
        ids = checked_ids(ids, self._id_dtype)
        with self._changes:
            return self._models(ids)

    def _models(self, ids: Ids) -> NDArray[np.str_]:
        found = np.full(len(ids), "", "U3")
        state = self._state
        for places, is_new in (
            *((segment.places(ids), segment.is_new) for segment in state.segments),
            (self._delta.find(ids), state.delta.is_new),
        ):
            here = places >= 0
            found[here] = np.where(is_new[places[here]], "new", "old")
        return found

    def upsert(
        self,
        ids: Any,
        vectors: Float32Array,
        side: Float32Array | None = None,
        *,
        model: Model = "new",
        replacing: Model | None = None,
    ) -> int:
        """Add rows, or replace those of the same ids; a search that begins afterwards finds them.

        Args:
            ids: (n,) of the gallery's kind, each once.
            vectors: (n, dim) float32 of the new model, or (n, old_dim) of the old one, which h transforms.
            side: (n, side_dim), the side-information that h takes.
            model: which one embedded them.
            replacing: only where the row is there and is this model's: what re-embeds in the background neither
                undoes a change that came meanwhile nor brings back what was deleted.

        Returns:
            rows written.

        Raises:
            ArrayError: wrong dtype or shape, NaN or infinity, an id twice or of another kind; nothing is changed.
            UsageError: rows of the old model, and no h.
        """
        ids = checked_ids(ids, self._id_dtype)
        if len(ids) != len(vectors):
            raise ArrayError(f"ids has {len(ids)} entries for {len(vectors)} vectors")
        if not len(ids):
            return 0
        rows = self._new_rows(vectors, side, model)
        with self._changes:
            if replacing is not None:
                chosen = self._models(ids) == replacing
                ids, rows = ids[chosen], rows[chosen]
            self._delta.put(ids, rows, model == "new")
            self._changed(ids)
        return len(ids)

    def _new_rows(self, vectors: Float32Array, side: Float32Array | None, model: Model) -> Float32Array:
        if model not in ("old", "new"):
            raise UsageError(f"model is {model!r}, wanted 'old' or 'new'")
        if model == "new":
            return checked_rows("vectors", vectors, self.dim, self.metric)
        if self._h is None:
            raise UsageError("rows of the old model need h, which this gallery was not given")
        return checked_rows("h of vectors", self._h(vectors, side), self.dim, self.metric)

    def delete(self, ids: Any) -> int:
        """Delete rows and return how many of them were there.

        Raises:
            ArrayError: an id is there twice, or of another kind.
        """
        ids = checked_ids(ids, self._id_dtype)
        with self._changes:
            there = int((self._models(ids) != "").sum())
            self._delta.drop(ids)
            self._changed(ids)
        return there

    def _changed(self, ids: Ids) -> None:
        """Let readers see the delta, and these ids nowhere else."""
        if self._touched is not None:
            self._touched.append(ids)
        segments = tuple(segment.without(ids) for segment in self._state.segments)
        self._state = State(segments, self._delta.view())

    def compact(self) -> None:
        """Fold the delta into the big index; searches and changes go on meanwhile, which takes a second index's memory.

        Where the index lets no row go (a graph), or rows stay in the old space, the delta becomes an index beside it.

        Raises:
            ResourceError: not enough memory; nothing has changed.
        """
        with self._compacting:
            with self._changes:
                state, self._touched = self._state, []
            try:
                segments = _folded(state, self.metric)
                with self._changes:
                    touched = np.unique(np.concatenate([np.empty(0, self._id_dtype), *self._touched]))
                    self._delta = delta_of(self.dim, self._id_dtype, [self._delta.take(touched)])
                    segments = tuple(segment.without(touched) for segment in segments)
                    self._state = State(segments, self._delta.view())
            finally:
                self._touched = None


def _folded(state: State, metric: str) -> tuple[Segment, ...]:
    """Return segments that hold all rows of a moment, their deleted and replaced ones left out where it is possible."""
    ids, rows, is_new = state.delta.kept()
    *before, last = state.segments
    if isinstance(last.space, NewSpace):
        gone = last.places(last.ids) < 0
        try:
            index, labels = last.space.index.exchanged(last.labels[gone], rows, ids)
        except UnsupportedError:
            pass
        else:
            whole = (
                np.concatenate([last.ids[~gone], ids]),
                np.concatenate([last.is_new[~gone], is_new]),
                np.concatenate([last.labels[~gone], labels]),
            )
            return (*before, Segment.of(NewSpace(index), *whole))
    return (*state.segments, fresh_segment(ids, rows, is_new, metric)) if len(ids) else state.segments
