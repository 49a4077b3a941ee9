"""FAISS: build, checked save and load, recall."""

from fct_infer.index.builder import IndexBuilder, load_index_file
from fct_infer.index.factory import IndexPlan, default_factory, describe_index
from fct_infer.index.gallery_index import GalleryIndex, index_infos, load_index
from fct_infer.index.recall import ExactNeighbours, exact_neighbours, measure_recall, tune_nprobe

__all__ = [
    "ExactNeighbours",
    "GalleryIndex",
    "IndexBuilder",
    "IndexPlan",
    "default_factory",
    "describe_index",
    "exact_neighbours",
    "index_infos",
    "load_index",
    "load_index_file",
    "measure_recall",
    "tune_nprobe",
]
