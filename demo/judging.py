"""What the upgrade was worth, measured: retrieval before and after, and time against re-embedding."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from stages import Reporter
from steps import Steps, gallery_ids
from torch.utils.flop_counter import FlopCounterMode

import fct_infer
from fct_infer.evaluation import (
    CompatibilityRow,
    CompatibilityTable,
    RetrievalMetrics,
    backfilling_curves,
    nearest,
    retrieval_metrics,
)
from fct_infer.gallery.layout import Gallery
from fct_infer.storage import write_json
from fct_infer.training.data.images import to_batch
from fct_infer.training.features.embedding import embed
from fct_infer.training.models.base import Backbone
from fct_infer.upgrade.report import UpgradeReport

QUERIES_SHOWN = 8
NEIGHBOURS_SHOWN = 6
_REPEATS = 5
_CURVE_POINTS = 11


@dataclass(frozen=True)
class Figures:
    """Everything the table and the report show.

    Attributes:
        rows: per pair of models: query model, gallery model, note, metrics.
        index_cmc_1: CMC-1 of new-model queries through the published index instead of an exact search, 0 to 1.
        costs: what was measured of speed, by name.
        queries: (q,) gallery rows shown as queries.
        neighbours: per search, (q, k) gallery rows found.
        curve: shares of the rows re-embedded after the upgrade, in random order, and the mAP at each.
    """

    rows: list[dict[str, Any]]
    index_cmc_1: float
    costs: dict[str, float]
    queries: list[int]
    neighbours: dict[str, list[list[int]]]
    curve: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Figures:
        """Read back what :meth:`Judge.judge` wrote."""
        return cls(**json.loads(path.read_text()))

    def table(self) -> CompatibilityTable:
        """Return the retrieval figures as a table that judges each pair of models."""
        return CompatibilityTable(tuple(_compatibility_row(row) for row in self.rows))

    def merit(self, name: str) -> float:
        """Return the mAP, 0 to 1, of a pair such as ``new/old after``."""
        (row,) = [row for row in self.table().rows if row.name == name]
        return row.metrics.mean_average_precision


class Judge:
    """Measures, from what lies in the work folder."""

    def __init__(self, work: Path, steps: Steps) -> None:
        self.work, self._steps = work, steps

    def judge(self, folder: Path, report: Reporter) -> str:
        """Search before and after, time transforming and re-embedding, and write ``figures.json``."""
        data, new_model = self._steps.images("test"), self._steps.backbone("new_model")
        old, side = _stored(self.work / "old_gallery")
        new, after = embed(new_model, data.images), _transformed(self.work / "upgraded" / "gallery")
        pairs = (
            ("old", "old", "", old, old),
            ("new", "old", "before", new, old),
            ("new", "old", "after", new, after),
            ("new", "new", "", new, new),
        )
        rows = []
        for number, (query_model, gallery_model, note, queries, gallery) in enumerate(pairs):
            report(number / 7, f"{query_model}/{gallery_model} {note}")
            metrics = retrieval_metrics(queries, gallery, data.labels, data.labels, exclude_self=True)
            names = {"query_model": query_model, "gallery_model": gallery_model, "note": note}
            rows.append({**names, "metrics": metrics.as_dict()})
        found = self._search_index(new)
        shown = np.random.default_rng(2).choice(len(new), QUERIES_SHOWN, replace=False)
        neighbours = {"old/old": _neighbours(old, old, shown), "new/old before": _neighbours(new, old, shown)}
        neighbours["new/old after"] = found[shown, :NEIGHBOURS_SHOWN].tolist()
        report(5 / 7, "backfilling")
        curve = _curve(new, after, data.labels)
        report(6 / 7, "speed")
        costs = self._costs(new_model, data.images, old, side)
        index_cmc_1 = float((data.labels[found[:, 0]] == data.labels).mean())
        figures = Figures(rows, index_cmc_1, costs, shown.tolist(), neighbours, curve)
        write_json(folder / "figures.json", vars(figures))
        return f"{len(new):,} queries against {len(old):,} rows, each without itself"

    def _search_index(self, queries: NDArray[np.float32]) -> NDArray[np.int64]:
        """Search the published index as an application does; (n, k) gallery rows, the query itself left out."""
        row_of = {int(item): row for row, item in enumerate(gallery_ids(len(queries)))}
        index = fct_infer.load_index(self.work / "upgraded" / "gallery")
        _, ids = index.search(queries, NEIGHBOURS_SHOWN + 1)
        found = [[row_of[int(item)] for item in items] for items in ids]
        others = [[row for row in rows if row != query][:NEIGHBOURS_SHOWN] for query, rows in enumerate(found)]
        return np.array(others)

    def _costs(
        self, new_model: Backbone, images: NDArray[np.uint8], old: NDArray[np.float32], side: NDArray[np.float32]
    ) -> dict[str, float]:
        h = fct_infer.load_transformation(self.work / "bundles" / "transformation")
        session = onnxruntime.InferenceSession(self.work / "bundles" / "new_model" / "model.onnx")
        batches = [
            np.ascontiguousarray(part)
            for part in np.array_split(to_batch(torch.from_numpy(images)).numpy(), len(images) // 256)
        ]
        by_torch = _seconds(lambda: embed(new_model, images))
        by_onnx = _seconds(lambda: [session.run(None, {session.get_inputs()[0].name: batch}) for batch in batches])
        upgraded = UpgradeReport.load(self.work / "upgraded" / "gallery" / "upgrade_infos.json")
        command = json.loads((self.work / "upgraded" / "command.json").read_text())
        with FlopCounterMode(display=False) as counter:
            new_model(torch.zeros(1, *batches[0].shape[1:]))
        return {
            "transformed rows/s": len(old) / _seconds(lambda: h(old, side)),
            "re-embedded images/s": len(images) / min(by_torch, by_onnx),
            "upgrade rows/s": upgraded.rows_per_second,
            "command seconds": command["seconds"],
            "transformation MFLOP": h.program.flops_per_row / 1e6,
            "new model MFLOP": counter.get_total_flops() / 1e6,
        }


def _curve(new: NDArray[np.float32], after: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, list[float]]:
    """Measure the search while transformed rows are replaced by re-embedded ones; begins and ends as the table says."""
    order = {"random": [np.random.default_rng(3).permutation(len(new))]}
    found = backfilling_curves(new, after, new, labels, labels, order, points=_CURVE_POINTS, exclude_self=True)[
        "random"
    ]
    return {"shares": list(found.shares), "mAP": list(found.mean_average_precision)}


def _compatibility_row(row: dict[str, Any]) -> CompatibilityRow:
    metrics = RetrievalMetrics.from_dict(row["metrics"])
    return CompatibilityRow(row["query_model"], row["gallery_model"], metrics, row["note"])


def _stored(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read all embeddings and side-information of a gallery."""
    gallery = Gallery.open(path)
    old, side = gallery.read_rows(np.arange(gallery.rows))
    assert side is not None
    return old, side


def _transformed(path: Path) -> NDArray[np.float32]:
    """Read all new embeddings of an upgraded gallery."""
    return np.concatenate([np.load(shard) for shard in sorted((path / "embeddings").iterdir())])


def _neighbours(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], shown: NDArray[np.int64]
) -> list[list[int]]:
    """Gallery rows nearest to the queries shown, each without itself."""
    rows: list[list[int]] = nearest(queries, gallery, NEIGHBOURS_SHOWN, exclude_self=True)[1][shown].tolist()
    return rows


def _seconds(work: Callable[[], object]) -> float:
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
