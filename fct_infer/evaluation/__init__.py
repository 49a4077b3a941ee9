"""How good a compatible model is: CMC, mAP, compatibility criterion, tables and pictures."""

from fct_infer.evaluation.checks import METRICS, Metric
from fct_infer.evaluation.compatibility import (
    CompatibilityRow,
    CompatibilityTable,
    criterion,
    gap_closed,
    update_gain,
)
from fct_infer.evaluation.inputs import read_embeddings, read_labels
from fct_infer.evaluation.neighbours import nearest
from fct_infer.evaluation.report import figures, html_page, html_properties, write_report
from fct_infer.evaluation.retrieval import QueryRanks, RetrievalMetrics, rank_queries, retrieval_metrics

__all__ = [
    "METRICS",
    "CompatibilityRow",
    "CompatibilityTable",
    "Metric",
    "QueryRanks",
    "RetrievalMetrics",
    "criterion",
    "figures",
    "gap_closed",
    "html_page",
    "html_properties",
    "nearest",
    "rank_queries",
    "read_embeddings",
    "read_labels",
    "retrieval_metrics",
    "update_gain",
    "write_report",
]
