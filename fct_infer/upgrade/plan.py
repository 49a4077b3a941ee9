"""Everything decided before the first row is read: settings, identity, sizes and estimates."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.artifacts.precisions import CALIBRATION_ROWS, LIMITS
from fct_infer.connectors import SINKS, open_sink, open_source
from fct_infer.cuda import card_numbers, device_text
from fct_infer.errors import GalleryError, ResourceError, UsageError
from fct_infer.gallery import Sink, Source, sample_rows
from fct_infer.gallery.versions import versions_bytes
from fct_infer.index import IndexPlan, default_factory, describe_index, require_gpu
from fct_infer.machine import usable_memory
from fct_infer.storage import can_exchange, check_place, check_text, work_folder
from fct_infer.transformation import Transformation
from fct_infer.upgrade.calibration import calibrate

METRICS = ("l2", "ip", "cosine")
DTYPES = ("float32", "float16")
BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 128 << 20}  # a card is done with less before the next block is read
MOST_BLOCK_PARTS = 4  # with several shards at once blocks are smaller, but no smaller than that
MOST_BLOCK_ROWS = {"cpu": 1 << 16, "cuda": 1 << 18}  # that are taken unasked
BLOCKS_IN_FLIGHT = {"cpu": 4, "cuda": 5}
MAX_BLOCK_ROWS = 1 << 20
MOST_SHARDS_AT_ONCE = 8  # that are taken unasked
MAX_SHARDS_AT_ONCE = 64
THREADS_PER_SHARD = 2  # while one is upgraded: one reads, one hashes and writes
SEED = 20211202  # samples for training and verification: any fixed number makes runs repeatable


@dataclass(frozen=True)
class Settings:
    """What the user may choose. The first four decide the bytes of the result and are part of its identity.

    Attributes:
        index: FAISS factory string, ``auto`` or ``none``.
        metric: ``l2``, ``ip``, or ``cosine`` (rows are L2-normalised on their way into the index).
        normalize: L2-normalise the new embeddings themselves; see also
            :func:`~fct_infer.backends.loading.load_transformation`.
        dtype: ``float32`` or ``float16`` of the new embeddings; None keeps the gallery's.
        verify_rows: rows recomputed in float64 before publishing.
        min_cosine: lowest cosine allowed between those and the published rows; None takes that of
            :data:`fct_infer.artifacts.precisions.LIMITS`.
        min_recall: lowest recall@10 allowed for the index; None reports it and allows any.
        block_rows: rows processed at once; None takes about 16 MiB a block, up to 128 MiB on a card.
        shards_at_once: shards upgraded at the same time, each read, hashed and written by threads of its own; None
            takes one, or, where a card would outrun those, as many as there are threads for. With an index, which
            takes rows in order, one.
        keep: versions of what is replaced that are kept for :func:`fct_infer.gallery.versions.rollback`; 0 drops all.
        format: of what is published: ``npy``, or ``parquet`` with all other columns of a Parquet source.
        index_device: where the index is built: ``cpu``, ``cuda:N``, or ``auto``: on the transformation's card if FAISS
            can use it, else on the CPU.
    """

    index: str = "auto"
    metric: str = "l2"
    normalize: bool = False
    dtype: str | None = None
    verify_rows: int = 1024
    min_cosine: float | None = None
    min_recall: float | None = None
    block_rows: int | None = None
    shards_at_once: int | None = None
    index_device: str = "auto"
    format: str = "npy"
    keep: int = 1

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"metric is {self.metric!r}, wanted one of {', '.join(METRICS)}")
        if self.dtype not in (None, *DTYPES):
            raise UsageError(f"dtype is {self.dtype!r}, wanted one of {', '.join(DTYPES)}")
        if self.format not in SINKS:
            raise UsageError(f"format is {self.format!r}, wanted one of {', '.join(SINKS)}")
        if self.keep < 0:
            raise UsageError(f"keep is {self.keep}, wanted 0 or more")
        if self.index_device != "auto":
            card_numbers(self.index_device)
        for name, most in (
            ("verify_rows", MAX_BLOCK_ROWS),
            ("block_rows", MAX_BLOCK_ROWS),
            ("shards_at_once", MAX_SHARDS_AT_ONCE),
        ):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{name} is {value}, wanted 1 to {most:,}")
        if self.index != "none" and (self.shards_at_once or 1) > 1:
            raise UsageError(
                f"shards_at_once is {self.shards_at_once}, but an index takes rows in order: wanted 1, or index none"
            )
        for name in ("min_cosine", "min_recall"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}, wanted a number from 0 to 1")


@dataclass(frozen=True)
class Plan:
    """An upgrade about to run: checked inputs and all that follows from them."""

    gallery: Source
    transformation: Transformation
    dest: Path
    settings: Settings
    index: IndexPlan | None
    dtype: np.dtype[Any]
    block_rows: int
    shards_at_once: int
    side_is_old: bool
    fingerprint: dict[str, dict[str, Any]]  # of the gallery's files, when the upgrade was planned
    is_replaced_in_one_step: bool = True  # what is at dest now; some file systems cannot

    @property
    def new_dim(self) -> int:
        """Width of the new embeddings."""
        return self.transformation.new_dim

    @property
    def index_device(self) -> str:
        """Where the index is built, if FAISS can."""
        return self.transformation.device if self.settings.index_device == "auto" else self.settings.index_device

    @property
    def index_memory(self) -> int:
        """Most bytes of its card that the index may take; 0 leaves it to FAISS.

        ``device_memory`` is one budget for both. Of a card that both use the index gets what the transformation leaves,
        with the new rows that wait there for the index.
        """
        h = self.transformation
        is_shared = set(card_numbers(self.index_device)[:1]) & set(card_numbers(h.device))
        if not h.device_memory or not is_shared:
            return h.device_memory
        left = h.device_memory - h.executable.device_bytes
        return max(1, left - self.kept_bytes)

    @property
    def kept_bytes(self) -> int:
        """Bytes of new rows that wait on the card for an index there; 0 where they would take most of what is left."""
        h = self.transformation
        rows = BLOCKS_IN_FLIGHT["cuda"] * self.block_rows * self.new_dim * 4
        return rows if not h.device_memory or 2 * rows <= h.device_memory - h.executable.device_bytes else 0

    @property
    def device_kind(self) -> str:
        """``cpu`` or ``cuda``: between the two, results differ in the last bits."""
        return _device_kind(self.transformation)

    @property
    def device(self) -> str:
        """Where the transformation runs, for people: ``cuda:0 (NVIDIA H200)``; ``cpu (cuda:0 has too little ...)``."""
        h = self.transformation
        return device_text(h.device) + (f" ({h.no_card})" if h.no_card else "")

    @property
    def min_cosine(self) -> float:
        """The gate in force."""
        if self.settings.min_cosine is not None:
            return self.settings.min_cosine
        return LIMITS[self.transformation.precision].min_cosine

    @property
    def output_bytes(self) -> int:
        """Bytes of all that will be published: rows, ids, index."""
        index = self.index.estimated_bytes if self.index else 0
        carried = self.bytes_read if self.settings.format == "parquet" else 0
        rows = self.gallery.schema.rows * self.new_dim * self.dtype.itemsize
        return int(rows + self._ids_bytes + carried + index)

    @property
    def predecessor_bytes(self) -> int:
        """Bytes of what is replaced, which lies on the disk beside the new gallery, and stays there if it is kept."""
        return sum(file.stat().st_size for file in self.dest.rglob("*") if file.is_file()) if self.dest.is_dir() else 0

    @property
    def bytes_read(self) -> int:
        """Bytes of all files of the gallery."""
        return sum(file.stat().st_size for file in self.gallery.files.values())

    @property
    def _ids_bytes(self) -> int:
        """Bytes of the ids; of text whose width is not known before it is read about 32 a row."""
        dtype = self.gallery.schema.id_dtype
        if dtype is None:
            return 0
        files = [self.gallery.ids_file(part) for part in self.gallery.parts()]
        if all(files):
            return sum(file.stat().st_size for file in files if file)
        return self.gallery.schema.rows * (dtype.itemsize or 32)

    @property
    def memory_bytes(self) -> int:
        """Estimated peak of this process: blocks in flight, training sample, index."""
        row = (self.transformation.old_dim + self.transformation.side_dim + 2 * self.new_dim) * 4
        sample = self.index.training_rows * (row + 4 * self.new_dim) if self.index else 0
        blocks = self.shards_at_once * BLOCKS_IN_FLIGHT[self.device_kind] * self.block_rows * row
        return max(blocks, sample) + 2 * (self.index.estimated_bytes if self.index else 0) + (200 << 20)

    def open_sink(self, folder: Path) -> Sink:
        """Return what writes the new rows into a folder, and reads them from there."""
        return open_sink(self.settings.format, folder, self.gallery, self.new_dim, self.dtype)

    def result_settings(self) -> dict[str, Any]:
        """Return the choices that decide the bytes of the result."""
        return {
            "backend": self.transformation.backend,
            "device": self.device_kind,
            "precision": self.transformation.precision,
            "dtype": self.dtype.name,
            "normalize": self.settings.normalize,
            "index": self.index.factory if self.index else None,
            "metric": self.settings.metric,
            "side_information": "old" if self.side_is_old else "given" if self.transformation.side_dim else None,
            **({"format": self.settings.format} if self.settings.format != "npy" else {}),
        }

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for unfinished work to be resumed."""
        settings = self.result_settings()
        if self.index and "HNSW" in self.index.factory:
            settings["block_rows"] = self.block_rows  # a graph depends on how its rows were cut into blocks
        identity = {
            "transformation": self.transformation.digest,
            "settings": settings,
            "gallery": self.fingerprint,
        }
        return identity | ({"ranges": self.transformation.ranges} if self.transformation.ranges else {})

    def check_unchanged(self) -> None:
        """Raise GalleryError if a file is no longer what it was when the upgrade was planned, or one has come."""
        if added := self.gallery.added_files():
            raise GalleryError(f"{added[0]}: was added while the gallery was upgraded; begin again with --restart")
        now = self.gallery.fingerprint()
        changed = [name for name, before in self.fingerprint.items() if now[name] != before]
        if changed:
            raise GalleryError(
                f"{self.gallery.files[changed[0]]}: was changed while the gallery was upgraded"
                + (f", and {len(changed) - 1} more files" if len(changed) > 1 else "")
            )

    def check_resources(self) -> None:
        """Raise ResourceError if the output cannot fit on the disk or the index in memory."""
        parent = next(folder for folder in self.dest.absolute().parents if folder.exists())
        partial = work_folder(self.dest)
        written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.exists() else 0
        free = shutil.disk_usage(parent).free + written
        if free < self.output_bytes:
            kept = versions_bytes(self.dest)
            way_out = f"; fct-gallery versions --keep 0 drops kept versions of {size_text(kept)}" if kept else ""
            raise ResourceError(
                f"{parent}: {size_text(free)} free, about {size_text(self.output_bytes)} needed{way_out}"
            )
        available = usable_memory()
        if available < self.memory_bytes:
            raise ResourceError(
                f"about {size_text(self.memory_bytes)} of memory needed, {size_text(available)} available; "
                "choose a smaller --index (for example IVF4096,PQ32) or --block-rows"
            )


def make_plan(source: str | Path | Source, h: Transformation, dest: str | Path, settings: Settings) -> Plan:
    """Open and check everything the upgrade will need.

    Raises:
        GalleryError: the gallery is malformed, or its dims do not fit the transformation.
        UsageError: a setting makes no sense, or the FAISS factory string is refused.
    """
    gallery = source if isinstance(source, Source) else open_source(source)
    schema = gallery.schema
    check_text(gallery.path.absolute())
    for name in gallery.files:
        check_text(name)
    inputs = {"gallery": gallery.path} | ({"transformation": h.source} if h.source else {})
    beside = {name: file for name, file in gallery.files.items() if not file.is_relative_to(gallery.path)}
    dest = check_place(dest, inputs | beside)
    if schema.old_dim != h.old_dim:
        raise GalleryError(
            f"{gallery.column('embedding')}: rows are {schema.old_dim} wide, the transformation wants {h.old_dim}"
        )
    gallery.check_upgradable(indexed=settings.index != "none")
    side_is_old = h.side_dim > 0 and schema.side_dim is None
    if side_is_old and h.side_dim != h.old_dim:
        raise GalleryError(
            f"{gallery.path}: has no side-information, but the transformation wants it, {h.side_dim} wide"
        )
    if h.side_dim and schema.side_dim not in (None, h.side_dim):
        raise GalleryError(
            f"{gallery.column('side')}: rows are {schema.side_dim} wide, the transformation wants {h.side_dim}"
        )
    fingerprint = gallery.fingerprint()
    if settings.normalize:
        h = h.normalized()
    if not h.is_calibrated:
        rows = sample_rows(schema.rows, CALIBRATION_ROWS, SEED + 3)
        h = calibrate(h, gallery, fingerprint, dest, rows, settings.min_cosine)
    index = None
    if settings.index != "none":
        factory = default_factory(schema.rows, h.new_dim) if settings.index == "auto" else settings.index
        index = describe_index(factory, h.new_dim, schema.rows, settings.metric)
        require_gpu(settings.index_device)
    shards_at_once = settings.shards_at_once or default_shards_at_once(h, index)
    shards_at_once = min(shards_at_once, len(gallery.parts()))
    wanted_rows = settings.block_rows or default_block_rows(h, shards_at_once)
    open_sink(settings.format, dest, gallery, h.new_dim, np.dtype(np.float32)).close()  # refuses what it cannot carry
    return Plan(
        gallery=gallery,
        transformation=h,
        dest=dest,
        settings=settings,
        index=index,
        dtype=np.dtype(settings.dtype or schema.embedding_dtype),
        block_rows=min(wanted_rows, max(part.rows for part in gallery.parts())),
        shards_at_once=shards_at_once,
        side_is_old=side_is_old,
        fingerprint=fingerprint,
        is_replaced_in_one_step=not dest.is_dir() or can_exchange(dest.parent),
    )


def default_shards_at_once(h: Transformation, index: IndexPlan | None) -> int:
    """Return one, or on a card, without an index, as many shards as the threads suffice for."""
    if index is not None or _device_kind(h) == "cpu":
        return 1
    return max(1, min(MOST_SHARDS_AT_ONCE, h.threads // THREADS_PER_SHARD))


def default_block_rows(h: Transformation, shards_at_once: int = 1) -> int:
    """Return the power of two from 1,024 on that makes a block of float32 rows as large as suits the device."""
    kind = _device_kind(h)
    rows = BLOCK_BYTES[kind] // min(shards_at_once, MOST_BLOCK_PARTS) // (4 * (h.old_dim + h.side_dim + h.new_dim))
    return int(min(MOST_BLOCK_ROWS[kind], max(1024, 1 << max(rows, 1).bit_length() - 1)))


def _device_kind(h: Transformation) -> str:
    return "cuda" if card_numbers(h.device) else "cpu"


def size_text(count: float) -> str:
    """Return a byte count for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
