"""FAISS: build, checked save and load, recall."""

from fct_infer.index.builder import IndexBuilder, load_index_file, save_index_file
from fct_infer.index.device_builder import DeviceIndexBuilder
from fct_infer.index.estimate import IndexSeconds, index_seconds
from fct_infer.index.factory import IndexPlan, default_factory, describe_index, inverted_lists
from fct_infer.index.gallery_index import GalleryIndex, index_infos, load_index
from fct_infer.index.gpu_builder import GpuIndexBuilder, make_builder
from fct_infer.index.gpu_faiss import require_gpu
from fct_infer.index.old_lists import OldLists, read_old_lists
from fct_infer.index.recall import ExactNeighbours, ExactSearch, exact_neighbours, measure_recall, tune_nprobe
from fct_infer.index.warm_start import WarmStart

__all__ = [
    "DeviceIndexBuilder",
    "ExactNeighbours",
    "ExactSearch",
    "GalleryIndex",
    "GpuIndexBuilder",
    "IndexBuilder",
    "IndexPlan",
    "IndexSeconds",
    "OldLists",
    "WarmStart",
    "default_factory",
    "describe_index",
    "exact_neighbours",
    "index_infos",
    "index_seconds",
    "inverted_lists",
    "load_index",
    "load_index_file",
    "make_builder",
    "measure_recall",
    "read_old_lists",
    "require_gpu",
    "save_index_file",
    "tune_nprobe",
]
