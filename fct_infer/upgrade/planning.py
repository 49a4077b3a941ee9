"""From what is given to a plan of it: opened, checked, and what was left open decided."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.artifacts.precisions import CALIBRATION_ROWS
from fct_infer.connectors import open_destination, opened_source
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery import Source, sample_rows
from fct_infer.gallery.destination import Destination
from fct_infer.identity import check_same_model
from fct_infer.index import (
    IndexPlan,
    OldLists,
    default_factory,
    describe_index,
    inverted_lists,
    read_old_lists,
    require_gpu,
)
from fct_infer.index.parts import PartBuilder
from fct_infer.storage import RemotePath, check_text
from fct_infer.transformation import Transformation
from fct_infer.upgrade.calibration import calibrate
from fct_infer.upgrade.folder import FolderDestination
from fct_infer.upgrade.lance_work import LanceDestination, lance_column
from fct_infer.upgrade.plan import SEED, Plan, device_kind
from fct_infer.upgrade.predecessor import published_inputs
from fct_infer.upgrade.probe import Known, Probe, read_probe
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.url_work import UrlDestination

BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 128 << 20}  # a device is done with less before the next block is read
MOST_BLOCK_PARTS = 4  # with several shards at once blocks are smaller, but no smaller than that
MOST_BLOCK_ROWS = {"cpu": 1 << 16, "cuda": 1 << 18}  # that are taken unasked
MOST_SHARDS_AT_ONCE = 8  # that are taken unasked
THREADS_PER_SHARD = 2  # while one is upgraded: one reads, one hashes and writes


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
    if index is not None or device_kind(h) == "cpu":
        return 1
    return max(1, min(MOST_SHARDS_AT_ONCE, h.threads // THREADS_PER_SHARD))


def default_block_rows(h: Transformation, shards_at_once: int = 1) -> int:
    """Return the power of two from 1,024 on that makes a block of float32 rows as large as suits the device."""
    kind = device_kind(h)
    rows = BLOCK_BYTES[kind] // min(shards_at_once, MOST_BLOCK_PARTS) // (4 * (h.old_dim + h.side_dim + h.new_dim))
    return int(min(MOST_BLOCK_ROWS[kind], max(1024, 1 << max(rows, 1).bit_length() - 1)))
