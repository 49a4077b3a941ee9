"""Cached embeddings of a training set on disk: what a transformation is trained on without any image.

OLD/*.npy     (n_i, old_dim) float32 | float16; the old model's embeddings, shards in the order of their names
NEW/*.npy     same names, same rows, (n_i, new_dim): the new model's embeddings of the same items
SIDE/*.npy    optional, same names, same rows, (n_i, side_dim): their side-information; several are set side by side
LABELS/*.npy  optional, same names, same rows, (n_i,) integers: their classes
GROUPS/*.npy  optional, same names, same rows, (n_i,) integers: which image a row is a view of

Each of them may also be a single ``.npy`` file. Rows are read when they are needed, never mapped, and every row that is
read is checked for NaN and infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery.layout import Shards, check_vectors, read_headers, read_shards
from fct_infer.gallery.reader import RowFile, read_npy

BLOCK_ROWS = 16_384

Columns: TypeAlias = dict[str, NDArray[Any]]
"""Rows of some items: ``old``, ``new`` and, where there are any, ``side`` (n, dim) as stored, ``labels`` (n,) int64."""

Mask: TypeAlias = Callable[[int, int], NDArray[np.bool_]]
"""Which of the rows ``first`` to ``last``, numbered over all shards, are wanted: (last - first,) bool."""


@dataclass(frozen=True)
class FeatureShard:
    """Some rows of every column: its files, set side by side, by name, and the number of the first row over all."""

    rows: int
    first_row: int
    files: dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class RowRange:
    """Rows ``start`` to ``stop`` of one shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Features:
    """Cached embeddings whose every file was opened and found to fit the others; no row is in memory.

    Attributes:
        shards: in the order of their rows.
        rows: over all shards.
        old_dim, side_dim, new_dim: widths; ``side_dim`` is 0 without side-information.
        has_labels: whether ``labels`` is among the columns.
        groups: (rows,) int64, equal where rows are views of one image; None where every row is of its own.
    """

    shards: tuple[FeatureShard, ...]
    rows: int
    old_dim: int
    side_dim: int
    new_dim: int
    has_labels: bool
    groups: NDArray[np.int64] | None = None

    @classmethod
    def open(
        cls,
        old: str | Path,
        new: str | Path,
        side: str | Path | Sequence[str | Path] | None = None,
        labels: str | Path | None = None,
        groups: str | Path | None = None,
    ) -> Features:
        """Open folders of shards, or single files, and check all headers.

        Raises:
            GalleryError: a file is missing, unexpected, truncated or malformed, or does not fit the others.
        """
        given = {"old": old, "new": new, "side": side, "labels": labels, "groups": groups}
        columns: dict[str, list[Shards]] = {}
        for name, paths in given.items():
            counterpart = columns["old"][0] if columns else None
            listed = [] if paths is None else [paths] if isinstance(paths, str | Path) else paths
            columns[name] = [_open_column(Path(path), counterpart) for path in listed]
        dims = {name: sum(check_vectors(each)[0] for each in columns[name]) for name in ("old", "side", "new")}
        for integers in (*columns["labels"], *columns["groups"]):
            _check_integers(integers)
        shards, first_row = [], 0
        for shard_name, (_, header) in columns["old"][0].items():
            files = {
                name: tuple(part[shard_name][0] for part in parts)
                for name, parts in columns.items()
                if parts and name != "groups"
            }
            shards.append(FeatureShard(header.shape[0], first_row, files))
            first_row += header.shape[0]
        numbers = [read_npy(file) for part in columns["groups"] for file, _ in part.values()]
        found = np.concatenate(numbers).astype(np.int64) if numbers else None
        return cls(tuple(shards), first_row, dims["old"], dims["side"], dims["new"], bool(columns["labels"]), found)

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        """Return several sets as one: a mixture, such as the rows that different old models left in one gallery.

        Labels are kept if every part has them. Equal groups are one image, whatever the part.

        Raises:
            UsageError: nothing to join, or the parts differ in a width.
        """
        if not parts:
            raise UsageError("no features to join")
        dims = sorted({(part.old_dim, part.side_dim, part.new_dim) for part in parts})
        if len(dims) > 1:
            raise UsageError(f"features of different (old, side, new) widths cannot be joined: {dims}")
        has_labels = all(part.has_labels for part in parts)
        shards, first_row = [], 0
        for shard in (shard for part in parts for shard in part.shards):
            files = {name: file for name, file in shard.files.items() if has_labels or name != "labels"}
            shards.append(replace(shard, first_row=first_row, files=files))
            first_row += shard.rows
        return cls(tuple(shards), first_row, *dims[0], has_labels, _joined_groups(parts))

    def viewed(self, views: int) -> Features:
        """Return the set as one whose rows ``i``, ``i + n``, ``i + 2 n`` ... are views of one of ``n`` images.

        Raises:
            UsageError: the rows are no multiple of ``views``, or the set tells its groups already.
        """
        if views == 1:
            return self
        if self.groups is not None:
            raise UsageError("views and groups both say which rows are of one image; give one of them")
        if views < 1 or self.rows % views:
            raise UsageError(f"views: {self.rows} rows cannot be {views} views of each image")
        return replace(self, groups=np.tile(np.arange(self.rows // views), views))

    def ranges(self, rows: int) -> list[RowRange]:
        """Return all rows as ranges of ``rows``, the last of every shard shorter."""
        return [
            RowRange(index, start, min(start + rows, shard.rows))
            for index, shard in enumerate(self.shards)
            for start in range(0, shard.rows, rows)
        ]

    def read(self, ranges: Iterable[RowRange], mask: Mask | None = None) -> list[Columns]:
        """Return the wanted rows of some ranges, in the order of the ranges, each file opened once if they are sorted.

        Raises:
            GalleryError: a file cannot be read or has changed, or a row holds NaN or infinity; names file and row.
        """
        return list(self._iterate(ranges, mask))

    def blocks(self, mask: Mask | None = None) -> Iterator[Columns]:
        """Yield all wanted rows in their order, at most :data:`BLOCK_ROWS` at once; errors as :meth:`read`."""
        return self._iterate(self.ranges(BLOCK_ROWS), mask)

    def _iterate(self, ranges: Iterable[RowRange], mask: Mask | None) -> Iterator[Columns]:
        for index, group in groupby(ranges, key=lambda each: each.shard):
            shard = self.shards[index]
            with ExitStack() as stack:
                readers = {
                    name: [stack.enter_context(RowFile(file, shard.rows)) for file in files]
                    for name, files in shard.files.items()
                }
                for rows in group:
                    columns = {name: _read(each, name, rows) for name, each in readers.items()}
                    if mask is not None:
                        wanted = mask(shard.first_row + rows.start, shard.first_row + rows.stop)
                        columns = {name: column[wanted] for name, column in columns.items()}
                    yield columns


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Return the rows of all parts, of which there is at least one, together."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _open_column(path: Path, counterpart: Shards | None) -> Shards:
    if path.is_dir():
        shards = read_shards(path, counterpart)
        assert shards is not None
        return shards
    is_single = counterpart is not None and len(counterpart) == 1
    name = next(iter(counterpart)) if counterpart is not None and is_single else path.name
    return read_headers({name: path}, counterpart)


def _joined_groups(parts: Sequence[Features]) -> NDArray[np.int64] | None:
    told = [part.groups for part in parts if part.groups is not None]
    if not told:
        return None
    free = 1 + max(int(groups.max()) for groups in told)  # rows without a group are images of their own
    joined = []
    for part in parts:
        joined.append(np.arange(free, free + part.rows) if part.groups is None else part.groups)
        free += part.rows
    return np.concatenate(joined)


def _check_integers(shards: Shards) -> None:
    for file, header in shards.values():
        if len(header.shape) != 1 or header.dtype.kind not in "iu":
            raise GalleryError(f"{file}: is {header.dtype} {header.shape}, wanted (rows,) integers")


def _read(readers: Sequence[RowFile], name: str, rows: RowRange) -> NDArray[Any]:
    if name == "labels":
        return readers[0].read(rows.start, rows.stop).astype(np.int64)
    parts = [_read_vectors(reader, rows) for reader in readers]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _read_vectors(reader: RowFile, rows: RowRange) -> NDArray[Any]:
    values = reader.read(rows.start, rows.stop)
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        row = rows.start + int(np.argmin(is_finite))
        raise GalleryError(f"{reader.path}: row {row} holds NaN or infinity")
    return values
