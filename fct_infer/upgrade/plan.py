"""Everything decided before the first row is read: settings, identity, sizes and estimates."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from fct_infer.artifacts.precisions import CALIBRATION_ROWS, LIMITS
from fct_infer.connectors import open_destination, opened_source
from fct_infer.cuda import device_numbers, device_text
from fct_infer.errors import GalleryError, ResourceError, UsageError
from fct_infer.gallery import Source, sample_rows
from fct_infer.gallery.destination import Destination
from fct_infer.identity import ModelId, check_same_model
from fct_infer.index import (
    IndexPlan,
    OldLists,
    default_factory,
    describe_index,
    inverted_lists,
    read_old_lists,
    require_gpu,
)
from fct_infer.index.parts import PartBuilder, stays_on_disk
from fct_infer.machine import size_text, usable_memory
from fct_infer.storage import RemotePath, check_text
from fct_infer.transformation import Transformation
from fct_infer.upgrade.calibration import calibrate
from fct_infer.upgrade.computation import Computation
from fct_infer.upgrade.folder import FolderDestination
from fct_infer.upgrade.lance_work import LanceDestination, lance_column
from fct_infer.upgrade.predecessor import published_inputs
from fct_infer.upgrade.probe import Known, Probe, read_probe
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.url_work import UrlDestination

BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 128 << 20}  # a device is done with less before the next block is read
MOST_BLOCK_PARTS = 4  # with several shards at once blocks are smaller, but no smaller than that
MOST_BLOCK_ROWS = {"cpu": 1 << 16, "cuda": 1 << 18}  # that are taken unasked
BLOCKS_IN_FLIGHT = {"cpu": 4, "cuda": 5}
MOST_SHARDS_AT_ONCE = 8  # that are taken unasked
THREADS_PER_SHARD = 2  # while one is upgraded: one reads, one hashes and writes
SEED = 20211202  # samples for training and verification: any fixed number makes runs repeatable


@dataclass(frozen=True)
class Plan(Computation):
    """An upgrade about to run: checked inputs and all that follows from them. A context manager.

    When it ends, a source is closed that was opened for it, or that is upgraded in place; another one stays open.
    """

    destination: Destination
    settings: Settings
    index: IndexPlan | None
    shards_at_once: int
    fingerprint: Mapping[str, dict[str, Any]]  # of the gallery's files, when the upgrade was planned
    known: tuple[Known, ...] = ()  # of the new model, to probe the result
    old_lists: OldLists | None = None  # to begin training with
    held: ExitStack = field(default_factory=ExitStack, compare=False)  # what is closed with it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.held.close()

    @property
    def dest(self) -> Path | str:
        """The folder, or the URL without a password."""
        return self.destination.name

    @property
    def is_in_order(self) -> bool:
        """Whether rows are taken in order, as an index does."""
        return self.index is not None

    @property
    def index_wanted(self) -> tuple[str, str]:
        """The index and the metric as the user wrote them."""
        return self.settings.index, self.settings.metric

    @property
    def no_device(self) -> str | None:
        """Why it runs on the CPU although a device was looked for."""
        return self.transformation.no_device

    @property
    def index_device(self) -> str:
        """Where the index is built, if FAISS can."""
        return self.transformation.device if self.settings.index_device == "auto" else self.settings.index_device

    @property
    def index_memory(self) -> int:
        """Most bytes of its device that the index may take; 0 leaves it to FAISS.

        ``device_memory`` is one budget for both. Of a device that both use the index gets what the transformation
        leaves, with the new rows that wait there for the index.
        """
        h = self.transformation
        is_shared = set(device_numbers(self.index_device)[:1]) & set(device_numbers(h.device))
        if not h.device_memory or not is_shared:
            return h.device_memory
        left = h.device_memory - h.executable.device_bytes
        return max(1, left - self.kept_bytes)

    @property
    def kept_bytes(self) -> int:
        """Bytes of new rows that wait on the device for an index there; 0 where they would take most of the rest."""
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
        return device_text(h.device) + (f" ({h.no_device})" if h.no_device else "")

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
    def bytes_read(self) -> int:
        """Bytes of all files of the gallery; in a database those of its vectors."""
        files = sum(file.stat().st_size for file in self.gallery.files.values())
        return files or self.gallery.schema.rows * self.gallery.schema.row_bytes

    @property
    def _ids_bytes(self) -> int:
        """Bytes of the ids; of text whose width is not known before it is read about 32 a row."""
        dtype = self.gallery.schema.id_dtype
        if dtype is None:
            return 0
        found = 0
        for part in self.gallery.parts():
            if (file := self.gallery.ids_file(part)) is None:
                return self.gallery.schema.rows * (dtype.itemsize or 32)
            found += file.stat().st_size
        return found

    @property
    def memory_bytes(self) -> int:
        """Estimated peak of this process: blocks in flight, training sample, index."""
        row = (self.transformation.old_dim + self.transformation.side_dim + 2 * self.new_dim) * 4
        sample = self.index.training_rows * (row + 4 * self.new_dim) if self.index else 0
        blocks = self.shards_at_once * BLOCKS_IN_FLIGHT[self.device_kind] * self.block_rows * row
        index = self.index.estimated_bytes if self.index else 0
        if self.settings.sharded_index and self.index and stays_on_disk(self.index):
            index = index * max(part.rows for part in self.gallery.parts()) // self.gallery.schema.rows
        return max(blocks, sample) + 2 * index + (200 << 20)

    @property
    def old_model(self) -> ModelId | None:
        """Whose vectors are upgraded, as the gallery says, or else the transformation."""
        return self.gallery.model or self.transformation.old_model

    @property
    def new_model(self) -> ModelId | None:
        """Whose vectors the new rows are, if the transformation says so."""
        model, program = self.transformation.new_model, self.transformation.program
        are_unit = self.settings.normalize or (program is not None and program.with_normalization() is program)
        return replace(model, unit_length=True) if model is not None and are_unit else model

    @property
    def models(self) -> dict[str, Any]:
        """Return both, as far as they are known, as strict JSON."""
        known = {"old": self.old_model, "new": self.new_model}
        return {name: model.as_dict() for name, model in known.items() if model is not None}

    def result_settings(self) -> dict[str, Any]:
        """Return the choices that decide the bytes of the result."""
        bits = self.transformation.int8_weight_bits  # other CPUs' rows differ by more than their last bits
        return {
            "backend": self.transformation.backend,
            "device": self.device_kind,
            "precision": self.transformation.precision,
            "dtype": self.dtype.name,
            "normalize": self.settings.normalize,
            "index": self.index.factory if self.index else None,
            "metric": self.settings.metric,
            "side_information": "old" if self.side_is_old else "given" if self.transformation.side_dim else None,
            **({"old_index": self.old_lists.sha256} if self.old_lists else {}),
            **({"sharded_index": True} if self.settings.sharded_index else {}),
            **({"format": self.settings.format} if self.settings.format != "npy" else {}),
            **({"int8_weight_bits": bits} if bits else {}),
        }

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for unfinished work to be resumed."""
        settings = self.result_settings()
        if self.index and self.index.depends_on_blocks:
            settings["block_rows"] = self.block_rows
        identity: dict[str, Any] = {
            "transformation": self.transformation.digest,
            "settings": settings,
            "gallery": self.fingerprint,
        }
        if self.settings.format == "parquet" and self.new_model is not None:
            identity["model"] = self.new_model.as_dict()  # its files say it
        return identity | ({"ranges": self.transformation.ranges} if self.transformation.ranges else {})

    def check_unchanged(self) -> None:
        """Raise GalleryError if a file is no longer what it was when the upgrade was planned, or one has come."""
        if added := self.gallery.added_files():
            raise GalleryError(f"{added[0]}: was added while the gallery was upgraded; begin again with --restart")
        now = self.gallery.fingerprint()
        changed = [name for name, before in self.fingerprint.items() if now[name] != before]
        if changed:
            raise GalleryError(
                f"{self.gallery.files.get(changed[0], self.gallery.path)}: was changed while the gallery was upgraded"
                + (f", and {len(changed) - 1} more files" if len(changed) > 1 else "")
            )

    def check_resources(self) -> None:
        """Raise ResourceError if the output cannot fit on the disk or the index in memory."""
        self.destination.check_room(self.output_bytes)
        available = usable_memory()
        if available < self.memory_bytes:
            raise ResourceError(
                f"about {size_text(self.memory_bytes)} of memory needed, {size_text(available)} available; "
                "choose a smaller --index (for example IVF4096,PQ32) or --block-rows, or publish it by --sharded-index"
            )


def make_plan(
    source: str | Path | Source,
    h: Transformation,
    dest: str | Path | Destination,
    settings: Settings,
    *,
    append: bool = False,
) -> Plan:
    """Open and check everything the upgrade will need.

    Args:
        source, h, dest, settings: as :func:`fct_infer.upgrade_gallery` takes them.
        append: DEST is to grow: what depends on rows is as it was when DEST was made.

    Raises:
        GalleryError: the gallery is malformed, or its dims do not fit the transformation.
        UsageError: a setting makes no sense, or the FAISS factory string is refused.
    """
    with ExitStack() as held:
        given = held.enter_context(opened_source(source))
        destination = _open_destination(dest, settings, given, h)
        gallery = destination.adopt(given)
        if gallery is not given:
            held.enter_context(gallery)
        plan = _plan_of(gallery, h, destination, settings, append)
        return replace(plan, held=held.pop_all())


def _plan_of(gallery: Source, h: Transformation, destination: Destination, settings: Settings, append: bool) -> Plan:
    schema = gallery.schema
    if schema.old_dim != h.old_dim:
        raise GalleryError(
            f"{gallery.column('embedding')}: rows are {schema.old_dim} wide, the transformation wants {h.old_dim}"
        )
    is_indexed = settings.index != "none" and destination.holds_index
    gallery.check_upgradable(indexed=is_indexed)
    side_is_old = h.side_dim > 0 and schema.side_dim is None
    if side_is_old and h.side_dim != h.old_dim:
        raise GalleryError(
            f"{gallery.path}: has no side-information, but the transformation wants it, {h.side_dim} wide"
        )
    if h.side_dim and schema.side_dim not in (None, h.side_dim):
        raise GalleryError(
            f"{gallery.column('side')}: rows are {schema.side_dim} wide, the transformation wants {h.side_dim}"
        )
    check_same_model(
        (str(gallery.path), gallery.model),
        ("the transformation takes vectors", h.old_model),
        f"if they are of one model after all, say --model {h.old_model and h.old_model.text}",
    )
    fingerprint = gallery.fingerprint()
    known: tuple[Known, ...] = ()
    if settings.probe is not None:
        if not destination.holds_index:
            raise UsageError(f"{destination.name}: what is written there cannot be probed; a folder can")
        probe = settings.probe if isinstance(settings.probe, Probe) else Probe(settings.probe)
        known = read_probe(probe, gallery, h, SEED + 4, unit_length=settings.normalize)
    if settings.normalize:
        h = h.normalized()
    if not h.is_calibrated:
        rows = sample_rows(schema.rows, CALIBRATION_ROWS, SEED + 3)
        h = calibrate(h, gallery, fingerprint, _decided(destination, fingerprint, append), rows, settings.min_cosine)
    old_lists = _old_lists(settings, destination, schema.rows)
    index = None
    if is_indexed:
        index = _index_plan(settings, h.new_dim, schema.rows, old_lists)
        if settings.sharded_index:
            _check_shards(index, destination)
        require_gpu(settings.index_device)
    shards_at_once = settings.shards_at_once or default_shards_at_once(h, index)
    shards_at_once = min(shards_at_once, len(gallery.parts()))
    wanted_rows = settings.block_rows or default_block_rows(h, shards_at_once)
    dtype = np.dtype(settings.dtype or schema.embedding_dtype)
    destination.check(gallery, h.new_dim, dtype)
    return Plan(
        gallery=gallery,
        transformation=h,
        destination=destination,
        settings=settings,
        index=index,
        dtype=dtype,
        block_rows=min(wanted_rows, max(part.rows for part in gallery.parts())),
        shards_at_once=shards_at_once,
        side_is_old=side_is_old,
        metric=settings.metric,
        fingerprint=fingerprint,
        known=known,
        old_lists=old_lists,
    )


def _decided(destination: Destination, fingerprint: Mapping[str, Any], append: bool) -> dict[str, Any]:
    """Return the identity whose precision and ranges go on: that of DEST if it is to grow, or of unfinished work."""
    if append and (inputs := published_inputs(destination.name)):
        return {**inputs, "gallery": fingerprint}
    return destination.begun_with()


def _old_lists(settings: Settings, destination: Destination, rows: int) -> OldLists | None:
    if settings.old_index is None:
        return None
    if not destination.holds_index:
        raise UsageError(f"{destination.name}: its index is none of FAISS's, so old_index has no use")
    return read_old_lists(settings.old_index, rows)


def _check_shards(index: IndexPlan, destination: Destination) -> None:
    if not isinstance(destination, FolderDestination):
        raise UsageError(f"{destination.name}: an index in shards is searched where it lies, in a folder")
    PartBuilder(index.factory, index.dim, index.metric, threads=1)  # refuses what cannot be parted


def _index_plan(settings: Settings, dim: int, rows: int, old: OldLists | None) -> IndexPlan:
    factory = settings.index
    if factory == "auto":
        factory = default_factory(rows, dim, old.count if old else None)
    plan = describe_index(factory, dim, rows, settings.metric)
    if old is not None and max(inverted_lists(factory), default=0) != old.count:
        raise UsageError(
            f"{old.path}: has {old.count} lists, wanted as many as index {factory!r}; --index says how many"
        )
    return plan


def _open_destination(
    dest: str | Path | Destination, settings: Settings, gallery: Source, h: Transformation
) -> Destination:
    """Return where the result goes; a folder keeps apart from all that it is made from."""
    if isinstance(dest, str | Path):
        dest = open_destination(dest)
    if not isinstance(dest, Path):
        return dest
    inputs: dict[str, str | Path] = {"transformation": h.source} if h.source else {}
    if settings.old_index is not None:
        inputs["old index"] = settings.old_index
    for name, file in gallery.files.items():
        check_text(name)
        if not file.is_relative_to(gallery.path):
            inputs[name] = file
    if isinstance(gallery.path, Path):
        check_text(gallery.path.absolute())
        inputs["gallery"] = gallery.path
    if column := lance_column(dest):
        return LanceDestination(*column, {name: file for name, file in inputs.items() if name == "transformation"})
    if isinstance(dest, RemotePath):
        return UrlDestination(dest, settings.format, inputs, settings.keep)
    return FolderDestination(dest, settings.format, inputs, settings.keep)


def default_shards_at_once(h: Transformation, index: IndexPlan | None) -> int:
    """Return one, or on a device, without an index, as many shards as the threads suffice for."""
    if index is not None or _device_kind(h) == "cpu":
        return 1
    return max(1, min(MOST_SHARDS_AT_ONCE, h.threads // THREADS_PER_SHARD))


def default_block_rows(h: Transformation, shards_at_once: int = 1) -> int:
    """Return the power of two from 1,024 on that makes a block of float32 rows as large as suits the device."""
    kind = _device_kind(h)
    rows = BLOCK_BYTES[kind] // min(shards_at_once, MOST_BLOCK_PARTS) // (4 * (h.old_dim + h.side_dim + h.new_dim))
    return int(min(MOST_BLOCK_ROWS[kind], max(1024, 1 << max(rows, 1).bit_length() - 1)))


def _device_kind(h: Transformation) -> str:
    return "cuda" if device_numbers(h.device) else "cpu"
