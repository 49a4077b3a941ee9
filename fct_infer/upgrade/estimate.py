"""What a dry run says of an upgrade: what was found, and what it will take."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from fct_infer.gallery import sample_rows
from fct_infer.index import index_seconds
from fct_infer.machine import usable_cpus
from fct_infer.transformation import Float32Array, Transformation
from fct_infer.upgrade.meaning import check_before_work
from fct_infer.upgrade.plan import SEED, Plan
from fct_infer.upgrade.stream import index_rows

_TIMED_ROWS = 4096
_ID_KINDS = {"i": "integers", "u": "integers", "S": "bytes", "U": "text"}


def estimate(plan: Plan) -> dict[str, Any]:
    """Return what ``--dry-run`` shows; times the transformation on random rows for a moment, and the index on some
    of the gallery's.

    Raises:
        GateError: the rows that the probe knows are no better than chance.
        GalleryError: one of the rows that are looked at holds NaN or infinity.
    """
    speed, gallery, schema = rows_per_second(plan.transformation, plan.block_rows), plan.gallery, plan.gallery.schema
    return {
        "gallery": str(gallery.path),
        "dest": str(plan.dest),
        "rows": schema.rows,
        "shards": len(gallery.parts()),
        "models": plan.models,
        "columns": schema.columns,
        "left_out": list(schema.other_columns),
        "ids": None if schema.id_dtype is None else _ID_KINDS[schema.id_dtype.kind],
        "dims": {"old": schema.old_dim, "side_information": schema.side_dim, "new": plan.new_dim},
        "settings": plan.result_settings(),
        "index": vars(plan.index) if plan.index else None,
        "device": plan.device,
        "promises": plan.destination.promises(plan),
        "precision_choice": plan.transformation.choice,
        "duplicate_ids": gallery.id_facts.duplicates,
        "probe": [vars(found) for found in check_before_work(plan)],
        "block_rows": plan.block_rows,
        "shards_at_once": plan.shards_at_once,
        "bytes_read": plan.bytes_read,
        "readings": _readings(plan),
        "bytes_written": plan.output_bytes,
        "memory_bytes": plan.memory_bytes,
        "transformation_rows_per_second": speed,
        "transformation_seconds": schema.rows / speed,
        "index_seconds": _index_seconds(plan),
    }


def _index_seconds(plan: Plan) -> dict[str, float] | None:
    """Return the seconds of training and of adding; None without an index, or where they cannot be told."""
    if plan.index is None or plan.index_device != "cpu":
        return None
    rows, threads = plan.gallery.schema.rows, min(plan.transformation.threads, usable_cpus())

    def draw(count: int) -> Float32Array:
        are_near = "random_rows" in plan.gallery.capabilities  # else the first ones, or all before the last is read
        chosen = sample_rows(rows, count, SEED) if are_near else np.arange(min(count, rows))
        return index_rows(plan.transform_rows(chosen), plan.metric)

    found = index_seconds(plan.index, rows, threads, draw)
    return None if found is None else asdict(found)


def _readings(plan: Plan) -> int:
    """Return how often the source is read, about: for the samples as well, where rows cannot be had at random."""
    if "random_rows" in plan.gallery.capabilities:
        return 1
    return 2 + (plan.index is not None and plan.index.training_rows > 0)


def rows_per_second(h: Transformation, block_rows: int = _TIMED_ROWS) -> float:
    """Return how many random rows ``h`` transforms a second, here and now; takes a third of a second."""
    rng, rows = np.random.default_rng(SEED), min(block_rows, _TIMED_ROWS)
    old = rng.standard_normal((rows, h.old_dim), np.float32)
    side = rng.standard_normal((rows, h.side_dim), np.float32) if h.side_dim else None
    h(old, side)
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < 0.3:
        h(old, side)
        done += rows
    return done / (time.perf_counter() - start)
