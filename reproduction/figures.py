"""What one seed's models are worth: search figures of every pair, backfilling areas, and what the choices cost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation.backfilling import backfilling_curves
from fct_infer.evaluation.compatibility import gap_closed
from fct_infer.evaluation.matrix import average_compatibility
from fct_infer.evaluation.orders import random_order, uncertainty_order
from fct_infer.evaluation.retrieval import rank_queries
from fct_infer.maps.chains import compose
from fct_infer.training.models.folding import to_program
from fct_infer.transformation import Float32Array, Transformation

from .experiment import ACROSS, FASTFILL, LINKS, PSI, SIDE, SIZES, STEPS, VERSIONS, WITH, WITHOUT, size_link
from .runs import Runs

FIGURES = ("CMC-1", "CMC-5", "mAP")
RANDOM_ORDERS = 3


def judge(runs: Runs) -> dict[str, Any]:
    """Return the figures of one seed, shares of 1, as strict JSON."""
    return Judge(runs).figures()


class Judge:
    """Searches the test images of one seed, each as a query in the gallery of the others."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._labels = runs, runs.images("test").labels
        self._known: dict[tuple[str, str], dict[str, float]] = {}

    def figures(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "rows": self._rows(),
            "areas": self._areas(),
            "gap_closed": self._gap_closed(WITH),
            "psi": {"none": self._merit(WITHOUT)} | {psi: self._merit(self._with_psi(psi)) for psi in PSI},
            "sizes": self._sizes(),
            "across": {what: self._across(link) for what, link in ACROSS.items()},
            "sequence": self._sequence(),
        }

    def _rows(self) -> dict[str, dict[str, float]]:
        model = self._runs.embeddings
        return {
            "old/old": self._between("old", "old"),
            "new/new, independent": self._between("new", "new"),
            "new/old, independent": self._between("new", "old"),
            "BCT new/old": self._between("bct", "old"),
            "BCT new/new": self._between("bct", "bct"),
            "BCT, completed classifier, new/old": self._between("bct-completed", "old"),
            "BCT, completed classifier, new/new": self._between("bct-completed", "bct-completed"),
            "FCT new/old, without side-information": self._after(WITHOUT),
            "FCT new/old, with side-information": self._after(WITH),
            "FastFill new/old": self._search(model("new"), self._runs.transformed(FASTFILL)),
        }

    def _areas(self) -> dict[str, float]:
        orders = {"random": [random_order(len(self._labels), seed) for seed in range(RANDOM_ORDERS)]}
        by_uncertainty = {"by uncertainty": [uncertainty_order(self._runs.uncertainty(FASTFILL))]}
        fct, fastfill = self._curves(WITH, orders), self._curves(FASTFILL, orders | by_uncertainty)
        return {
            "FCT with side-information, random": fct["random"],
            "FastFill, random": fastfill["random"],
            "FastFill, by uncertainty": fastfill["by uncertainty"],
        }

    def _curves(self, link: str, orders: dict[str, Any]) -> dict[str, float]:
        new, old = self._runs.embeddings("new"), self._runs.transformed(link)
        curves = backfilling_curves(new, old, new, self._labels, self._labels, orders, exclude_self=True)
        return {name: curve.area for name, curve in curves.items()}

    def _sizes(self) -> dict[str, dict[str, float]]:
        links = {size_link(size): size for size in SIZES} | {WITH: "used above"}
        return {
            size: {
                "mflop": to_program(self._runs.transformation(link)).flops_per_row / 1e6,
                "mAP": self._merit(link),
            }
            for link, size in links.items()
        }

    def _across(self, name: str) -> dict[str, float]:
        link = LINKS[name]
        return {
            "old/old": self._between(link.old, link.old)["mAP"],
            "new/new": self._between(link.new, link.new)["mAP"],
            "FCT new/old": self._merit(name),
            "gap_closed": self._gap_closed(name),
        }

    def _sequence(self) -> dict[str, Any]:
        """Return mAP by (query model, gallery), each gallery brought to the query's version, and average compatibility.

        Galleries of the first version reach the third by the transformation between the two, or by both steps.
        """
        merits = np.full((len(VERSIONS), len(VERSIONS)), np.nan)
        for column, gallery in enumerate(VERSIONS):
            for row, query in enumerate(VERSIONS):
                if row == column:
                    merits[row, column] = self._between(query, gallery)["mAP"]
                elif (gallery, query) in STEPS:
                    merits[row, column] = self._merit(STEPS[gallery, query])
        first, second = (to_program(self._runs.transformation(STEPS[pair])) for pair in pairwise(VERSIONS))
        old, side = self._runs.embeddings(VERSIONS[0]), self._runs.embeddings(SIDE)
        chained = Transformation(compose(first, second), "fp32")(old, side)
        return {
            "merits": {
                f"{query}/{gallery}": merits[row, column]
                for row, query in enumerate(VERSIONS)
                for column, gallery in enumerate(VERSIONS[: row + 1])
            },
            "chained": self._search(self._runs.embeddings(VERSIONS[-1]), chained)["mAP"],
            "average_compatibility": average_compatibility(merits),
        }

    def _with_psi(self, psi: str) -> str:
        return WITH if psi == SIDE else f"psi {psi}"

    def _gap_closed(self, name: str) -> float:
        link = LINKS[name]
        old, new = (self._between(model, model)["mAP"] for model in (link.old, link.new))
        return gap_closed(self._merit(name), old, new)

    def _merit(self, name: str) -> float:
        return self._after(name)["mAP"]

    def _after(self, name: str) -> dict[str, float]:
        """Search the old gallery of a link, transformed, by the new model's queries."""
        key = LINKS[name].new, name
        if key not in self._known:
            self._known[key] = self._search(self._runs.embeddings(LINKS[name].new), self._runs.transformed(name))
        return self._known[key]

    def _between(self, query: str, gallery: str) -> dict[str, float]:
        if (query, gallery) not in self._known:
            embeddings = self._runs.embeddings
            self._known[query, gallery] = self._search(embeddings(query), embeddings(gallery))
        return self._known[query, gallery]

    def _search(self, queries: Float32Array, gallery: NDArray[np.float32]) -> dict[str, float]:
        ranks = rank_queries(queries, gallery, self._labels, self._labels, exclude_self=True, ks=(1, 5))
        metrics = ranks.metrics()
        return {"CMC-1": metrics.cmc[1], "CMC-5": metrics.cmc[5], "mAP": metrics.mean_average_precision}
