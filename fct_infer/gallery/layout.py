"""The gallery on disk, and everything that is checked about it before any work begins.

GALLERY/  embeddings/*.npy         (n_i, old_dim) float32 | float16; shards in the order of their names as text
          side_information/*.npy   same names, same rows, (n_i, side_dim) float32 | float16; absent = none
          ids/*.npy                same names, (n_i,) integers or fixed-width bytes or str; absent = row number
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np

from fct_infer.errors import ArtifactError, GalleryError
from fct_infer.gallery.lazy_mapping import LazyMapping
from fct_infer.gallery.manifest import own_manifest
from fct_infer.gallery.model_file import model_of
from fct_infer.gallery.source import Part, PartReader, Schema, Source
from fct_infer.identity import ModelId
from fct_infer.storage import NpyHeader, ReadFile, location, read_npy_header

FOLDERS = {"embedding": "embeddings", "side": "side_information", "id": "ids"}
EMBEDDING_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))


@dataclass(frozen=True, slots=True)
class Shard(Part):
    """One file of a gallery: ``rows`` rows, the first of them number ``first_row`` over all shards.

    Of many thousands the paths would take most memory, so each is made when it is asked for.

    Attributes:
        gallery: the folder.
        has_side, has_ids: what lies there of these rows besides embeddings.
    """

    gallery: Path
    has_side: bool
    has_ids: bool

    @property
    def embeddings(self) -> Path:
        """Where the vectors lie."""
        return self._in("embedding")

    @property
    def side_information(self) -> Path | None:
        """Where the side-information lies, if there is any."""
        return self._in("side") if self.has_side else None

    @property
    def ids(self) -> Path | None:
        """Where the ids lie, if there are any."""
        return self._in("id") if self.has_ids else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names inside the gallery of the files this shard consists of."""
        there = {"embedding": True, "side": self.has_side, "id": self.has_ids}
        return tuple(f"{FOLDERS[role]}/{self.name}.npy" for role, is_there in there.items() if is_there)

    def _in(self, role: str) -> Path:
        return self.gallery / FOLDERS[role] / f"{self.name}.npy"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files this shard consists of."""
        return tuple(path for path in (self.embeddings, self.side_information, self.ids) if path is not None)


@dataclass(frozen=True, repr=False)
class Gallery(Source):
    """A gallery whose every file was opened and found to fit the others.

    Attributes:
        path: the folder.
        shards: in the order of their rows.
        rows: over all shards.
        old_dim, side_dim: widths; ``side_dim`` is None without side-information.
        embedding_dtype, side_dtype: float32 or float16.
        id_dtype: int64 (uint64 if a shard holds that), or bytes/str as wide as the widest shard's; None without ids.
    """

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
        """Open a gallery and check all of its headers; no row is read.

        Raises:
            GalleryError: a folder or file is missing, unexpected, truncated or malformed, or does not fit the others.
        """
        root = location(path)
        if not root.is_dir():
            raise GalleryError(f"{root}: is not a folder")
        embeddings = read_shards(root / "embeddings", None)
        if embeddings is None:
            raise GalleryError(f"{root}: has no embeddings/ folder")
        old_dim, embedding_dtype = check_vectors(embeddings)
        side = read_shards(root / "side_information", embeddings)
        side_dim, side_dtype = check_vectors(side) if side else (None, None)
        ids = read_shards(root / "ids", embeddings)
        id_dtype = _check_ids(ids) if ids else None
        shards, first_row = [], 0
        for name, (_, header) in embeddings.items():
            shards.append(Shard(name.removesuffix(".npy"), header.shape[0], first_row, root, bool(side), bool(ids)))
            first_row += header.shape[0]
        return cls(root, tuple(shards), first_row, old_dim, side_dim, embedding_dtype, side_dtype, id_dtype)

    @cached_property
    def schema(self) -> Schema:
        """See :class:`~fct_infer.gallery.source.Source`."""
        roles = {"embedding": True, "side": self.side_dim is not None, "id": self.id_dtype is not None}
        columns = {role: FOLDERS[role] for role, is_there in roles.items() if is_there}
        side = (self.side_dim, self.side_dtype)
        return Schema(self.rows, self.old_dim, self.embedding_dtype, *side, self.id_dtype, columns)

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """Every file, by its name inside the gallery."""
        return _Files(self.path, self.shards)

    @cached_property
    def model(self) -> ModelId | None:
        """As ``manifest.json`` or ``model.json`` says."""
        return model_of(self.path)

    def added_files(self) -> list[Path]:
        """See :class:`~fct_infer.gallery.source.Source`."""
        there = (self.path / "embeddings").glob("[!.]*.npy")
        return sorted(file for file in there if file.name.removesuffix(".npy") not in self._shards)

    def parts(self) -> tuple[Shard, ...]:
        """The shards."""
        return self.shards

    def open_part(self, part: Part) -> PartReader:
        """See :class:`~fct_infer.gallery.source.Source`."""
        from fct_infer.gallery.reader import ShardReader

        return ShardReader(self._shard(part))

    def ids_file(self, part: Part) -> Path | None:
        """The shard's own."""
        return self._shard(part).ids

    def where(self, row: int, role: str = "embedding") -> str:
        """Return file and row: ``GALLERY/embeddings/000002.npy: row 777``."""
        shard = self._shard(self.part_of(row))
        file = {"embedding": shard.embeddings, "side": shard.side_information, "id": shard.ids}[role]
        return f"{file}: row {row - shard.first_row}"

    def column(self, role: str) -> str:
        """Return the folder that is read in a role."""
        return f"{self.path}/{FOLDERS[role]}"

    def _shard(self, part: Part) -> Shard:
        return part if isinstance(part, Shard) else self._shards[part.name]

    @cached_property
    def _shards(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def _reading(self) -> dict[str, dict[str, Any]]:
        return {}  # files decide everything

    def check_upgradable(self, indexed: bool) -> None:
        """Check what only an upgrade needs: that row numbers are what the user takes them for, and ids can be told.

        Args:
            indexed: whether an index is built, whose searches say "nothing found" by an id.

        Raises:
            GalleryError: without ids, the order of the shards' names as text is not that of the numbers in them; or
                an id means "nothing found": -1, or an empty text.
            ArtifactError: it was published, and its manifest was altered or names other sizes than its files have.
        """
        manifest = own_manifest(self.path)
        if manifest is not None:
            for name, damage in manifest.damaged_sizes(self.path).items():
                if name.startswith(("embeddings/", "ids/")):
                    raise ArtifactError(f"{self.path / name}: is damaged: {damage}")
        elif self.id_dtype is None:  # where it was published, rows have these numbers already
            _check_order([shard.name for shard in self.shards], self.path / "embeddings")
        super().check_upgradable(indexed)


class _Files(Mapping[str, Path]):
    """The files of a gallery by name, made when they are asked for."""

    def __init__(self, gallery: Path, shards: Sequence[Shard]) -> None:
        self._gallery, self._shards = gallery, shards

    def __iter__(self) -> Iterator[str]:
        return (name for shard in self._shards for name in shard.names)

    def __len__(self) -> int:
        return sum(len(shard.names) for shard in self._shards)

    def __getitem__(self, name: str) -> Path:
        shard = self._by_name.get(PurePosixPath(name).stem)
        if shard is None or name not in shard.names:
            raise KeyError(name)
        return self._gallery / name

    @cached_property
    def _by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self._shards}


Shards: TypeAlias = Mapping[str, tuple[Path, NpyHeader]]
"""Path and header of every shard by file name, in the order of the names."""


def read_shards(folder: Path, counterpart: Shards | None) -> Shards | None:
    """Return path and header of every shard of a folder by name; None if there is no such folder.

    Args:
        folder: holds ``.npy`` files only.
        counterpart: another folder's shards, whose names and rows must be matched.

    Raises:
        GalleryError: a file is missing, unexpected, truncated or malformed, or has other rows than its counterpart.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise GalleryError(f"{folder}: is not a folder")
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    files: Mapping[str, Path] = LazyMapping(dict.fromkeys(names), lambda name, _: folder / name)
    for file in files.values():
        if file.suffix != ".npy":
            raise GalleryError(f"{file}: is not a .npy file; a gallery's folders hold shards only")
    if not files:
        raise GalleryError(f"{folder}: holds no .npy files")
    return read_headers(files, counterpart)


def read_headers(files: Mapping[str, Path], counterpart: Shards | None) -> Shards:
    """Like :func:`read_shards`, of files listed by the caller."""
    if counterpart is not None:
        _check_names(files, counterpart)
    found: dict[str, NpyHeader] = {}
    known: dict[NpyHeader, NpyHeader] = {}
    for name, file in files.items():
        with ReadFile(file) as opened:
            header = read_npy_header(opened)
        if counterpart is not None and header.shape[:1] != counterpart[name][1].shape[:1]:
            raise GalleryError(
                f"{file}: holds {_rows(header)} rows, {counterpart[name][0]} holds {_rows(counterpart[name][1])}"
            )
        found[name] = known.setdefault(header, header)
    return LazyMapping(found, lambda name, header: (files[name], header))


def _rows(header: NpyHeader) -> str:
    return str(header.shape[0]) if header.shape else "no"


def _check_names(files: Mapping[str, Path], counterpart: Shards) -> None:
    missing, extra = sorted(set(counterpart) - set(files)), sorted(set(files) - set(counterpart))
    if missing:
        folder = next(iter(files.values())).parent
        raise GalleryError(f"{folder / missing[0]}: is missing; {counterpart[missing[0]][0]} exists")
    if extra:
        folder = next(iter(counterpart.values()))[0].parent
        raise GalleryError(f"{files[extra[0]]}: has no counterpart in {folder.name}/")


def _check_order(names: list[str], folder: Path) -> None:
    """Refuse names that differ in numbers only, in another order than the names as text, in which ``names`` are."""
    if len({re.sub(r"[0-9]+", "0", name) for name in names}) > 1:
        return
    by_number = sorted(names, key=_by_number)
    for name, expected in zip(names, by_number, strict=True):
        if name != expected:
            raise GalleryError(
                f"{folder}: {name}.npy comes before {expected}.npy, since names are sorted as text, and without ids/ "
                "rows are numbered in that order. Rename the shards with leading zeros (in all folders), or add ids/"
            )


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a key that orders the numbers in names by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def check_vectors(folder: Shards) -> tuple[int, np.dtype[Any]]:
    """Return dim and dtype, float32 or float16, which must be the same in every shard.

    Raises:
        GalleryError: they are not, or a shard is empty or not (rows, dim); names the file.
    """
    first_file, first = next(iter(folder.values()))
    for file, header in folder.values():
        if len(header.shape) != 2:
            raise GalleryError(f"{file}: has shape {header.shape}, wanted (rows, dim)")
        if header.dtype not in EMBEDDING_DTYPES:
            raise GalleryError(f"{file}: holds {header.dtype}, wanted float32 or float16")
        if 0 in header.shape:
            raise GalleryError(f"{file}: is empty, shape {header.shape}")
        if header.shape[1] != first.shape[1]:
            raise GalleryError(f"{file}: rows are {header.shape[1]} wide, {first_file} has {first.shape[1]}")
        if header.dtype != first.dtype:
            raise GalleryError(f"{file}: holds {header.dtype}, {first_file} holds {first.dtype}")
    return first.shape[1], first.dtype


def _check_ids(folder: Shards) -> np.dtype[Any]:
    """Return the dtype that holds the ids of every shard; strings may differ in width."""
    first_file, first = next(iter(folder.values()))
    for file, header in folder.values():
        if len(header.shape) != 1:
            raise GalleryError(f"{file}: has shape {header.shape}, wanted (rows,)")
        if header.dtype.kind not in "iuSU":
            raise GalleryError(f"{file}: holds {header.dtype}, wanted integers (int64) or fixed-width bytes or str")
        is_integer = header.dtype.kind in "iu"
        if header.dtype.kind != first.dtype.kind and not (is_integer and first.dtype.kind in "iu"):
            raise GalleryError(f"{file}: holds {header.dtype}, {first_file} holds {first.dtype}")
    dtypes = {header.dtype for _, header in folder.values()}
    if first.dtype.kind in "SU":
        return max(dtypes, key=lambda dtype: dtype.itemsize)
    if np.dtype(np.uint64) not in dtypes:
        return np.dtype(np.int64)
    if any(dtype.kind == "i" for dtype in dtypes):
        raise GalleryError(f"{first_file.parent}: holds uint64 and {first.dtype}; save all as int64 or all as uint64")
    return np.dtype(np.uint64)
