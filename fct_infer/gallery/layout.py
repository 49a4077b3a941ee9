"""A gallery on disk: aligned folders of ``.npy`` shards.

GALLERY/embeddings/000000.npy ...        (n_i, d_old) float32 | float16
        side_information/000000.npy ...  same names, same rows; may be absent
        ids/000000.npy ...               int64 or fixed-width bytes/str; may be absent
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GalleryError
from fct_infer.gallery.npy import NpyHeader, read_npy_header
from fct_infer.storage import ReadFile

_PIECE = 4 << 10
_PIECES = 16


@dataclass(frozen=True)
class Shard:
    """One file of a gallery and those aligned with it; ``first_row`` counts over all shards."""

    name: str
    rows: int
    first_row: int
    embeddings: Path
    side_information: Path | None
    ids: Path | None


@dataclass(frozen=True)
class Gallery:
    """A checked gallery. Dims are numbers of columns; None where the folder is absent."""

    path: Path
    shards: tuple[Shard, ...]
    rows: int
    old_dim: int
    side_dim: int | None
    embedding_dtype: np.dtype[Any]
    side_dtype: np.dtype[Any] | None
    id_dtype: np.dtype[Any] | None

    @classmethod
    def open(cls, path: str | Path) -> Gallery:
        """Check every header of a gallery.

        Raises:
            GalleryError: anything missing, misshapen, misaligned or truncated; names the file.
        """
        path = Path(path)
        embeddings = _open_folder(path / "embeddings")
        side = _open_aligned(path / "side_information", embeddings)
        ids = _open_aligned(path / "ids", embeddings)
        for file, header in [*embeddings.items(), *side.items()]:
            _check_vectors(file, header)
        for file, header in ids.items():
            if (header.dtype.kind not in "SU" and header.dtype != np.int64) or len(header.shape) != 1:
                raise GalleryError(f"{file}: is {header.dtype} {header.shape}, wanted (n,) int64, bytes or str")
        for files in (embeddings, side):
            _check_alike(files, lambda header: (header.shape[1], header.dtype.name))
        _check_alike(ids, lambda header: header.dtype.kind)
        shards, first_row = [], 0
        for file, header in embeddings.items():
            aligned = [
                folder / file.name if files else None
                for folder, files in ((path / "side_information", side), (path / "ids", ids))
            ]
            shards.append(Shard(file.stem, header.shape[0], first_row, file, *aligned))
            first_row += header.shape[0]
        first = next(iter(embeddings.values()))
        first_side = next(iter(side.values()), None)
        return cls(
            path,
            tuple(shards),
            first_row,
            first.shape[1],
            first_side.shape[1] if first_side else None,
            first.dtype,
            first_side.dtype if first_side else None,
            max((header.dtype for header in ids.values()), key=lambda d: d.itemsize, default=None),
        )

    def read_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return (embeddings, side_information) of some rows, given as sorted numbers over all shards."""
        old = np.empty((len(rows), self.old_dim), self.embedding_dtype)
        side = np.empty((len(rows), self.side_dim), self.side_dtype) if self.side_dim else None
        starts = [shard.first_row for shard in self.shards]
        done = 0
        while done < len(rows):
            shard = self.shards[bisect_right(starts, int(rows[done])) - 1]
            end = int(np.searchsorted(rows, shard.first_row + shard.rows))
            with ShardReader(shard) as reader:
                for first, stop in _runs(rows[done:end]):
                    here = slice(done + first, done + stop)
                    begin = int(rows[done + first]) - shard.first_row
                    reader.read_into(begin, begin + stop - first, old[here], None if side is None else side[here])
            done = end
        return old, side

    def fingerprint(self) -> dict[str, Any]:
        """Return a cheap identity of every file, by relative name: size, time of change, digest of sampled pieces."""
        files = [
            file for shard in self.shards for file in (shard.embeddings, shard.side_information, shard.ids) if file
        ]
        return {file.relative_to(self.path).as_posix(): fingerprint(file) for file in files}


class ShardReader:
    """Reads rows of one shard and of the files aligned with it. Safe to use from one thread at a time."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._files: dict[Path, tuple[ReadFile, NpyHeader]] = {}

    def read_into(self, start: int, stop: int, old: NDArray[Any], side: NDArray[Any] | None) -> None:
        """Fill C-contiguous ``old`` and ``side`` with rows ``start`` to ``stop``, in the stored dtype."""
        self._fill(self.shard.embeddings, start, old)
        if side is not None and self.shard.side_information is not None:
            self._fill(self.shard.side_information, start, side)

    def read_ids(self, start: int, stop: int) -> NDArray[Any]:
        """Return the ids of rows ``start`` to ``stop`` in their stored dtype.

        Raises:
            GalleryError: the gallery has no ids.
        """
        path = self.shard.ids
        if path is None:
            raise GalleryError(f"{self.shard.embeddings}: there are no ids beside it")
        ids = np.empty(stop - start, self._open(path)[1].dtype)
        self._fill(path, start, ids)
        return ids

    def _open(self, path: Path) -> tuple[ReadFile, NpyHeader]:
        if path not in self._files:
            file = ReadFile(path)
            try:
                header = read_npy_header(file)
                if header.shape[0] != self.shard.rows:
                    raise GalleryError(f"{path}: has {header.shape[0]} rows now, had {self.shard.rows} before")
            except BaseException:
                file.close()
                raise
            self._files[path] = file, header
        return self._files[path]

    def _fill(self, path: Path, start: int, out: NDArray[Any]) -> None:
        file, header = self._open(path)
        if out.dtype != header.dtype or out.shape[1:] != header.shape[1:]:
            raise GalleryError(f"{path}: is {header.dtype} {header.shape} now; it changed since it was checked")
        if out.size:
            file.read_into(
                out.view(np.uint8) if out.dtype.kind in "SU" else out, header.data_offset + start * header.row_bytes
            )

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fingerprint(path: Path) -> dict[str, Any]:
    """Return size, time of last change (ns) and SHA-256 over the file's ends and 16 pieces between."""
    digest = hashlib.sha256()
    with ReadFile(path) as file:
        size = file.size
        last = max(0, size - _PIECE)
        for offset in sorted({last * piece // (_PIECES + 1) for piece in range(_PIECES + 2)}):
            digest.update(file.read(min(_PIECE, size - offset), offset))
    return {"size": size, "mtime_ns": path.stat().st_mtime_ns, "sha256_of_pieces": digest.hexdigest()}


def _open_folder(folder: Path) -> dict[Path, NpyHeader]:
    if not folder.is_dir():
        raise GalleryError(f"{folder}: is not a folder; a gallery is GALLERY/embeddings/*.npy")
    headers: dict[Path, NpyHeader] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix != ".npy" or not path.is_file():
            raise GalleryError(f"{path}: is not a .npy shard")
        with ReadFile(path) as file:
            headers[path] = read_npy_header(file)
        if not headers[path].shape or headers[path].shape[0] == 0:
            raise GalleryError(f"{path}: has no rows")
    if not headers:
        raise GalleryError(f"{folder}: holds no .npy shards")
    return headers


def _open_aligned(folder: Path, embeddings: dict[Path, NpyHeader]) -> dict[Path, NpyHeader]:
    """Open a folder that must have the same names and row counts as ``embeddings/``; empty if it is absent."""
    if not folder.exists():
        return {}
    headers = _open_folder(folder)
    names, wanted = {path.name for path in headers}, {path.name for path in embeddings}
    for name in sorted(names ^ wanted):
        where, other_folder = ("embeddings", folder.name) if name in names else (folder.name, "embeddings")
        raise GalleryError(f"{folder.parent / where / name}: is missing, {other_folder}/{name} exists")
    for path, (other_path, other) in zip(headers, embeddings.items(), strict=True):
        if headers[path].shape[0] != other.shape[0]:
            raise GalleryError(f"{path}: has {headers[path].shape[0]} rows, {other_path} has {other.shape[0]}")
    return headers


def _check_vectors(path: Path, header: NpyHeader) -> None:
    if header.dtype.name not in ("float32", "float16"):
        raise GalleryError(f"{path}: is {header.dtype.name}, wanted float32 or float16")
    if len(header.shape) != 2 or header.shape[1] == 0:
        raise GalleryError(f"{path}: has shape {header.shape}, wanted (rows, dim)")


def _check_alike(headers: dict[Path, NpyHeader], trait: Callable[[NpyHeader], Any]) -> None:
    """Check that a trait is the same in every shard, naming the first that differs from the first of all."""
    items = list(headers.items())
    for path, header in items[1:]:
        if trait(header) != trait(items[0][1]):
            first_path, first = items[0]
            raise GalleryError(
                f"{path}: is {header.dtype} {header.shape}, but {first_path.name} is {first.dtype} {first.shape}"
            )


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) positions of stretches of consecutive row numbers."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    yield from zip([0, *breaks.tolist()], [*breaks.tolist(), len(rows)], strict=True)
