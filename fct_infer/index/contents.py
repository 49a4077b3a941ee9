"""What lies in a FAISS index that is made of parts: ids, inverted lists, and how FAISS writes both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.index.builder import Ids
from fct_infer.index.faiss_module import faiss, inner_indexes

ID_SUM = (1 << 64) - 1  # what a sum of ids is taken by
_NO_LISTS = b"il00"  # what FAISS writes in place of inverted lists that are not there


def id_sum(ids: Ids) -> int:
    """Return a number that is the same for the same ids in any order, and adds up over parts modulo 2^64."""
    mixed = ids.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def last_inverted_file(index: Any) -> Any | None:
    """Return the inverted file that ends an index, and its file, and keeps the ids itself; None if there is none."""
    module = faiss()
    *outer, innermost = inner_indexes(index)
    known = (module.IndexIVFFlat, module.IndexIVFPQ, module.IndexIVFScalarQuantizer)
    is_last = type(innermost) in known and all(type(each) is module.IndexPreTransform for each in outer)
    return innermost if is_last else None


def merge(index: Any, part: Any, first: int = 0) -> None:
    """Move the rows of a part behind those of an index; ``first`` is added to ids that an inverted file keeps."""
    module = faiss()
    index, part = module.downcast_index(index), module.downcast_index(part)
    if isinstance(index, module.IndexPreTransform):
        merge(index.index, part.index, first)
        index.ntotal = index.index.ntotal
    elif isinstance(index, module.IndexIDMap | module.IndexIDMap2):
        # FAISS's own would leave the numbers that an inverted file under the map keeps as they are: all from 0.
        ids = np.concatenate([module.vector_to_array(each.id_map) for each in (index, part)])
        merge(index.index, part.index, int(index.ntotal))
        module.copy_array_to_vector(ids, index.id_map)
        index.ntotal = index.index.ntotal
        if isinstance(index, module.IndexIDMap2):
            index.construct_rev_map()
    else:
        index.merge_from(part, first if isinstance(index, module.IndexIVF) else 0)


def ids_of(index: Any) -> int:
    """Return the :func:`id_sum` of what an index holds."""
    module = faiss()
    index = module.downcast_index(index)
    if isinstance(index, module.IndexPreTransform):
        return ids_of(index.index)
    if isinstance(index, module.IndexIDMap | module.IndexIDMap2):
        return id_sum(module.vector_to_array(index.id_map))
    if isinstance(index, module.IndexIVF):
        return sum(id_sum(ids) for _, ids in lists_of(index)) & ID_SUM
    return id_sum(np.arange(index.ntotal, dtype=np.int64))


def lists_of(ivf: Any) -> Iterator[tuple[NDArray[np.uint8], Ids]]:
    """Yield codes and ids of each list that has any; they are valid until the next one."""
    module, lists = faiss(), ivf.invlists
    for number in np.flatnonzero(_sizes(ivf)).tolist():
        size = lists.list_size(number)
        codes, ids = lists.get_codes(number), lists.get_ids(number)
        try:
            yield module.rev_swig_ptr(codes, size * lists.code_size), module.rev_swig_ptr(ids, size)
        finally:  # what was put together for us, or is only looked at
            lists.release_codes(number, codes)
            lists.release_ids(number, ids)


def _sizes(ivf: Any) -> NDArray[np.int64]:
    lists = ivf.invlists
    return np.fromiter((lists.list_size(number) for number in range(ivf.nlist)), np.int64, ivf.nlist)


def without_lists(index: Any, ivf: Any) -> bytes:
    """Return what FAISS writes of an index before its inverted lists, with which the file ends."""
    lists = ivf.invlists
    ivf.replace_invlists(None, False)
    try:
        data: bytes = faiss().serialize_index(index).tobytes()
    finally:
        ivf.replace_invlists(lists, False)
    assert data.endswith(_NO_LISTS), "an index whose file does not end with its lists"
    return data.removesuffix(_NO_LISTS)


@contextmanager
def without_centroids(index: Any) -> Iterator[None]:
    """Have an inverted file forget where its lists lie: all parts would say it, at more bytes than their rows take."""
    ivf = last_inverted_file(index)
    if ivf is None:
        yield
        return
    quantizer, none = ivf.quantizer, faiss().IndexFlat(ivf.d, ivf.metric_type)
    ivf.quantizer = none
    try:
        yield
    finally:
        ivf.quantizer = quantizer
        none.this.acquire()  # FAISS's setters make Python forget that it owns what they are given


def list_sizes(ivf: Any) -> bytes:
    """Return the head of FAISS's inverted lists: all sizes, or, if most lists are empty, those of the others."""
    sizes = _sizes(ivf)
    nonempty = np.flatnonzero(sizes)
    if len(nonempty) > ivf.nlist // 2:
        kind, numbers = b"full", sizes
    else:
        kind, numbers = b"sprs", np.stack([nonempty, sizes[nonempty]], axis=1).reshape(-1)
    head = np.array([ivf.nlist, ivf.code_size], "<u8").tobytes()
    return b"ilar" + head + kind + np.array([len(numbers)], "<u8").tobytes() + numbers.astype("<u8").tobytes()
