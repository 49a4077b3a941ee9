"""The last files of an upgrade: the index, what was done (``upgrade_infos.json``), what the result is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from fct_infer import __version__, _core
from fct_infer.cuda import cuda_status
from fct_infer.gallery import GalleryManifest
from fct_infer.gallery.destination import Work
from fct_infer.index import IndexBuilder, index_infos
from fct_infer.storage import DigestedFile, write_json
from fct_infer.transformation import Float32Array
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.report import Meaning, UpgradeReport, Verification
from fct_infer.upgrade.work import FolderWork

SAME_BYTES_ON = {  # elsewhere results differ in the last bits
    "cpu": "CPUs with the same instruction set",
    "cuda": "devices of the same model, with the same cuBLASLt; not on a CPU",
}


@dataclass(frozen=True)
class Outcome:
    """What a run found on its way.

    Attributes:
        verification, meaning: of the result.
        builder: of the index, with all rows; None without one.
        queries: (n, new_dim) the index was tried with.
        resumed_rows: rows that an earlier run had done.
        timings: seconds by stage.
        executor: who ran the parts.
    """

    verification: Verification
    meaning: tuple[Meaning, ...] = ()
    builder: IndexBuilder | None = None
    queries: Float32Array = field(default_factory=lambda: np.empty((0, 0), np.float32))
    resumed_rows: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    executor: str = "threads"


def finish(plan: Plan, work: Work, outcome: Outcome) -> UpgradeReport:
    """Write index, infos and manifest; after this only the last step is missing.

    What the report gives as seconds of ``finish`` ends where it is written itself.

    Raises:
        GalleryError: a file of the gallery is no longer what it was when the upgrade was planned.
        ResourceError: the disk is full or fails.
    """
    started = time.perf_counter()
    plan.check_unchanged()
    done, builder = work.finished, outcome.builder
    files = {
        name: DigestedFile(**file) for part in plan.gallery.parts() for name, file in done[part.name]["files"].items()
    }
    index = None
    if builder is not None:
        assert isinstance(work, FolderWork)
        written = builder.publish(work.gallery)
        index = index_infos(builder, written, outcome.queries, outcome.verification.recall_at_10 or 0.0)
        files |= written
        files["index_infos.json"] = write_json(work.gallery / "index_infos.json", index)
    report = UpgradeReport(
        dest=plan.dest,
        rows=plan.gallery.schema.rows,
        shards=len(plan.gallery.parts()),
        resumed_rows=outcome.resumed_rows,
        settings=plan.result_settings(),
        timings={**outcome.timings, "finish": time.perf_counter() - started},
        verification=outcome.verification,
        meaning=outcome.meaning,
        models=plan.models,
        index=index,
        device=plan.device,
        index_placement=builder.placement if builder else None,
        precision_choice=plan.transformation.choice,
        duplicate_ids=plan.gallery.id_facts.duplicates,
    )
    manifest = GalleryManifest(
        rows=plan.gallery.schema.rows,
        dim=plan.new_dim,
        dtype=plan.dtype.name,
        metric=plan.metric,
        transformation=plan.transformation.digest,
        ids=plan.gallery.id_facts.use,
        indexed_rows=builder.rows - builder.left_out if builder else None,
        files=files,
        model=plan.new_model,
        old_model=plan.old_model,
    )
    work.finish(_infos(plan, report, outcome.executor), manifest)
    return report


def _infos(plan: Plan, report: UpgradeReport, executor: str) -> dict[str, Any]:
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **report.as_dict(),
        "limits": {
            "min_cosine": plan.min_cosine,
            "min_recall": plan.settings.min_recall,
            "min_probe": plan.settings.min_probe,
        },
        "execution": {
            "executor": executor,
            "threads": plan.transformation.threads,
            "block_rows": plan.block_rows,
            "shards_at_once": plan.shards_at_once,
            "kernels": plan.transformation.executable.description,
            "device_memory": plan.transformation.device_memory,
            "same_bytes_on": SAME_BYTES_ON[plan.device_kind],
        },
        "inputs": plan.identity(),
        "versions": _versions(plan.device_kind),
    }


def _versions(device_kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"fct_infer": __version__, "onednn": _core.onednn_version, "cpus": os.cpu_count()}
    found["cpu_instruction_set"] = _core.cpu_instruction_set()
    if device_kind == "cuda":
        status = cuda_status()
        found |= {"driver": status.driver, "cublaslt": status.cublaslt}
    for package in ("numpy", "faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "nvidia-cublas"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
