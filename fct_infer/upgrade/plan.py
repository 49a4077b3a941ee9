"""An upgrade as it is decided before the first row is read: settings, identity, sizes and estimates."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from fct_infer.artifacts.precisions import LIMITS
from fct_infer.cuda import device_numbers, device_text
from fct_infer.errors import GalleryError, ResourceError
from fct_infer.gallery.destination import Destination
from fct_infer.identity import ModelId
from fct_infer.index import IndexPlan, OldLists
from fct_infer.index.parts import stays_on_disk
from fct_infer.machine import size_text, usable_memory
from fct_infer.transformation import Transformation
from fct_infer.upgrade.computation import Computation
from fct_infer.upgrade.probe import Known
from fct_infer.upgrade.settings import Settings

BLOCKS_IN_FLIGHT = {"cpu": 4, "cuda": 5}
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
        """Where the transformation runs: see :func:`device_kind`."""
        return device_kind(self.transformation)

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


def device_kind(h: Transformation) -> str:
    """Return ``cpu`` or ``cuda``: between the two, results differ in the last bits."""
    return "cuda" if device_numbers(h.device) else "cpu"
