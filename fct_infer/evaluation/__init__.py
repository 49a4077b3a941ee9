"""How good a compatible model is: retrieval figures, compatibility, backfilling curves, reports and a verdict."""

from fct_infer.connectors.ids import read_truth
from fct_infer.evaluation.backfilling import BackfillingCurve, backfilling_curves
from fct_infer.evaluation.checks import METRICS, Metric, SearchOptions, StoredEmbeddings
from fct_infer.evaluation.compatibility import (
    CompatibilityRow,
    CompatibilityTable,
    criterion,
    gap_closed,
)
from fct_infer.evaluation.flips import Flips, flips
from fct_infer.evaluation.inputs import (
    labels_like,
    read_ids,
    read_labels,
    read_study_inputs,
    read_uncertainty,
)
from fct_infer.evaluation.matrix import (
    CompatibilityMatrix,
    average_accuracy,
    average_compatibility,
    compatibility_matrix,
)
from fct_infer.evaluation.neighbours import nearest
from fct_infer.evaluation.orders import class_mean_order, oracle_order, random_order, row_benefit, uncertainty_order
from fct_infer.evaluation.overlap import NeighbourOverlap, neighbour_overlap
from fct_infer.evaluation.pictures import ImageFile, retrieved_html
from fct_infer.evaluation.reading import name_embeddings, read_embeddings
from fct_infer.evaluation.relevance import Exclusions
from fct_infer.evaluation.report import figures, write_report
from fct_infer.evaluation.retrieval import (
    FIGURES,
    Figure,
    QueryRanks,
    RetrievalMetrics,
    rank_queries,
    retrieval_metrics,
)
from fct_infer.evaluation.retrieved import RetrievedRow, retrieved_rows
from fct_infer.evaluation.study import Settings, Study, StudyInputs, study
from fct_infer.evaluation.verdict import Verdict, judge

__all__ = [
    "FIGURES",
    "METRICS",
    "BackfillingCurve",
    "CompatibilityMatrix",
    "CompatibilityRow",
    "CompatibilityTable",
    "Exclusions",
    "Figure",
    "Flips",
    "ImageFile",
    "Metric",
    "NeighbourOverlap",
    "QueryRanks",
    "RetrievalMetrics",
    "RetrievedRow",
    "SearchOptions",
    "Settings",
    "StoredEmbeddings",
    "Study",
    "StudyInputs",
    "Verdict",
    "average_accuracy",
    "average_compatibility",
    "backfilling_curves",
    "class_mean_order",
    "compatibility_matrix",
    "criterion",
    "figures",
    "flips",
    "gap_closed",
    "judge",
    "labels_like",
    "name_embeddings",
    "nearest",
    "neighbour_overlap",
    "oracle_order",
    "random_order",
    "rank_queries",
    "read_embeddings",
    "read_ids",
    "read_labels",
    "read_study_inputs",
    "read_truth",
    "read_uncertainty",
    "retrieval_metrics",
    "retrieved_html",
    "retrieved_rows",
    "row_benefit",
    "study",
    "uncertainty_order",
    "write_report",
]
