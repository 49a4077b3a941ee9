"""What one seed's models are worth: search figures of every pair, and backfilling areas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation.backfilling import backfilling_curves
from fct_infer.evaluation.compatibility import gap_closed
from fct_infer.evaluation.orders import random_order, uncertainty_order
from fct_infer.evaluation.retrieval import rank_queries
from fct_infer.training.checkpoints import load_checkpoint
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.folding import to_program, to_uncertainty_program
from fct_infer.transformation import Transformation

from .runs import Runs, embeddings

FIGURES = ("CMC-1", "CMC-5", "mAP")
RANDOM_ORDERS = 3


def judge(runs: Runs) -> dict[str, Any]:
    """Return the figures of one seed, shares of 1: rows by name, and backfilling areas in mAP by name."""
    test = runs.test_set()
    by = embeddings(runs, test.images)
    old, side, new = by["old"], by["side"], by["new"]
    without = _load(runs.folder / "h_without")(old)  # its second branch reads the old embedding itself
    with_side = _load(runs.folder / "h")(old, side)
    fastfill = _load(runs.folder / "fastfill")(old, side)

    def search(queries: NDArray[np.float32], gallery: NDArray[np.float32]) -> dict[str, float]:
        ranks = rank_queries(queries, gallery, test.labels, test.labels, exclude_self=True, ks=(1, 5))
        metrics = ranks.metrics()
        return {"CMC-1": metrics.cmc[1], "CMC-5": metrics.cmc[5], "mAP": metrics.mean_average_precision}

    rows = {
        "old/old": search(old, old),
        "new/new, independent": search(new, new),
        "new/old, independent": search(new, old),
        "BCT new/old": search(by["bct"], old),
        "BCT new/new": search(by["bct"], by["bct"]),
        "FCT new/old, without side-information": search(new, without),
        "FCT new/old, with side-information": search(new, with_side),
        "FastFill new/old": search(new, fastfill),
    }
    module, _ = load_checkpoint(runs.folder / "fastfill" / "checkpoint", TransformationModule)
    uncertainty = Transformation(to_uncertainty_program(module), "fp32")(old, side)[:, 0]
    orders = {"random": [random_order(len(new), seed) for seed in range(RANDOM_ORDERS)]}

    def areas(gallery: NDArray[np.float32], wanted: dict[str, Any]) -> dict[str, float]:
        curves = backfilling_curves(new, gallery, new, test.labels, test.labels, wanted, exclude_self=True)
        return {name: curve.area for name, curve in curves.items()}

    fct = areas(with_side, orders)
    fast = areas(fastfill, orders | {"uncertainty": [uncertainty_order(uncertainty)]})
    old_old, new_new = rows["old/old"]["mAP"], rows["new/new, independent"]["mAP"]
    return {
        "rows": rows,
        "areas": {
            "FCT with side-information, random": fct["random"],
            "FastFill, random": fast["random"],
            "FastFill, by uncertainty": fast["uncertainty"],
        },
        "gap_closed": gap_closed(rows["FCT new/old, with side-information"]["mAP"], old_old, new_new),
    }


def _load(folder: Path) -> Transformation:
    module, _ = load_checkpoint(folder / "checkpoint", TransformationModule)
    return Transformation(to_program(module), "fp32")
