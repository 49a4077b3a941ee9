"""An index in parts: each is built from rows of one part of a gallery, in any process, and all are searched as one.

Parts of one trained index, taken in the order of their rows, hold what one process would have put into one index: a
row's list and code depend on the row alone. Of an inverted file nothing is loaded for that: its lists are read where
they lie, so what is gathered may be larger than memory, and :func:`save_gathered` streams it into one ordinary file,
byte for byte the one that one process would have written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fct_infer.errors import ArtifactError, ResourceError, UsageError
from fct_infer.index.builder import Ids, IndexBuilder, check_index_file, load_index_file, save_index_file
from fct_infer.index.contents import (
    ID_SUM,
    id_sum,
    ids_of,
    last_inverted_file,
    list_sizes,
    lists_of,
    merge,
    without_centroids,
    without_lists,
)
from fct_infer.index.factory import IndexPlan, make_index
from fct_infer.index.faiss_module import condensed, faiss, faiss_errors, inner_indexes
from fct_infer.index.filling import filler_of
from fct_infer.storage import DigestedFile, DurableWriter, RemotePath, remove_tree, sha256_of_file
from fct_infer.transformation import Float32Array

MOST_LISTS = 1 << 24  # of all parts that are open at once: FAISS keeps 24 bytes of each list of each part in memory
_PRODUCTS_FROM = 16  # numbers that a code of FAISS's product quantizer stands for; below it compares row by row
MERGED = "merged-"  # how files of several parts are called


@dataclass(frozen=True)
class IndexPart:
    """One part of an index, durable in a file.

    Attributes:
        rows: in the index; for cosine without those that are zero.
        left_out: those.
        ids: :func:`id_sum` of what the rows are found by.
        file: size and digest.
    """

    rows: int
    left_out: int
    ids: int
    file: DigestedFile

    def as_record(self) -> dict[str, Any]:
        """Return it as strict JSON."""
        return {"rows": self.rows, "left_out": self.left_out, "ids": str(self.ids), **vars(self.file)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> IndexPart:
        """Return what :meth:`as_record` said."""
        file = DigestedFile(record["size"], record["sha256"])
        return cls(record["rows"], record["left_out"], int(record["ids"]), file)


Parts: TypeAlias = Sequence[tuple[Path, IndexPart]]


def can_be_parted(index: Any) -> bool:
    """Whether parts of such an index add up to the same bytes; graphs and refined indexes are built in one go.

    Known are inverted files, flat ones and quantizers, under pre-transforms and ID maps.
    """
    module = faiss()
    wrappers = (module.IndexPreTransform, module.IndexIDMap, module.IndexIDMap2)
    plain = (
        module.IndexIVFFlat,
        module.IndexIVFPQ,
        module.IndexIVFScalarQuantizer,
        module.IndexFlat,
        module.IndexFlatL2,
        module.IndexFlatIP,
        module.IndexPQ,
        module.IndexScalarQuantizer,
    )
    *outer, innermost = inner_indexes(index)
    return type(innermost) in plain and all(type(each) in wrappers for each in outer)


def takes_each_row_alone(index: Any) -> bool:
    """Whether what a row becomes in such a trained index depends on the row alone, not on those it is added with.

    The core sees to that. So does FAISS where a graph finds the list and codes are made row by row; its matrix products
    do not: their last bits depend on how many rows there are.
    """
    if filler_of(index) is not None:
        return True
    ivf, module = last_inverted_file(index), faiss()
    if ivf is None or type(module.downcast_index(ivf.quantizer)) is not module.IndexHNSWFlat:
        return False
    return not isinstance(ivf, module.IndexIVFPQ) or ivf.pq.dsub < _PRODUCTS_FROM


def stays_on_disk(plan: IndexPlan) -> bool:
    """Whether the rows of such an index, once gathered, are read where they lie: those of an inverted file are."""
    return last_inverted_file(make_index(plan.factory, plan.dim, plan.metric)) is not None


class PartBuilder(IndexBuilder):
    """Builds one part after the other from a trained index; used like its base, between :meth:`begin` and :meth:`end`.

    Raises:
        UsageError: such an index cannot be built in parts, see :func:`can_be_parted`.
    """

    def __init__(self, factory: str, dim: int, metric: str, threads: int) -> None:
        super().__init__(factory, dim, metric, threads)
        self._ids = 0
        if not can_be_parted(self.index):
            raise UsageError(f"index {factory!r} cannot be built in parts; an inverted file can, IVF1024,PQ32 for one")

    def begin(self) -> None:
        """Drop all rows, and keep what was trained."""
        self.index.reset()
        self.left_out = self._ids = 0

    def _add(self, rows: Float32Array, ids: Ids) -> None:
        super()._add(rows, ids)
        self._ids = (self._ids + id_sum(ids)) & ID_SUM

    def end(self, path: Path) -> IndexPart:
        """Write what was added durably, checked.

        Raises:
            ResourceError: disk full, I/O error, the disk returns other bytes than were written; or the index does not
                hold the ids it was given.
        """
        if ids_of(self.index) != self._ids:
            raise ResourceError(f"{path}: the index does not hold the ids it was given; is the memory sound?")
        with without_centroids(self.index):
            file = self.save(path)
        return IndexPart(int(self.index.ntotal), self.left_out, self._ids, file)


@dataclass(frozen=True)
class IndexOrder:
    """What parts of an index are built by, wherever that is; picklable.

    Attributes:
        factory, dim, metric: as described by :func:`fct_infer.index.describe_index`.
        trained, sha256: the file with the trained, empty index, and its digest; None if it takes no training.
        folder: that parts are written to.
    """

    factory: str
    dim: int
    metric: str
    trained: Path
    sha256: str | None
    folder: Path

    def open(self, threads: int) -> PartBuilder:
        """Return what builds parts.

        Raises:
            ArtifactError: the trained index is not there or not the same.
        """
        builder = PartBuilder(self.factory, self.dim, self.metric, threads)
        if self.sha256 is not None:
            builder.load_trained(self.trained, self.sha256)
        return builder

    def path(self, name: str) -> Path:
        """Return where the part of a part of the gallery lies."""
        return self.folder / f"{name}.faiss"


class GatheredBuilder(IndexBuilder):
    """Parts as one index, to be measured, tuned and saved like one that was built in one go.

    Args:
        trained: the trained, empty index the parts were made from; is used up.
        parts: in the order of their rows, with the file each lies in.
        were_digested: whether these have just been compared with their digests; else they are.

    Raises:
        ArtifactError: a file is missing, damaged, no index, or holds other rows or ids than its part says.
    """

    def __init__(self, trained: IndexBuilder, parts: Parts, *, were_digested: bool = False) -> None:
        super().__init__(trained.factory, trained.dim, trained.metric, trained.threads)
        self.index = gather(trained.index, parts, were_digested=were_digested)
        self.left_out = sum(part.left_out for _, part in parts)
        self.parts = parts
        self.placement = {**trained.placement, "add": "cpu, in parts"}

    def save(self, path: Path) -> DigestedFile:
        """See :func:`save_gathered`; for which :func:`id_sum` is compared with that of the parts."""
        return save_gathered(self.index, path, sum(part.ids for _, part in self.parts) & ID_SUM)


def fewer_parts(order: IndexOrder, parts: Parts) -> Parts:
    """Return the parts of an inverted file merged, neighbours into one, until a table of all lists fits into memory.

    The files, just compared with their digests, stay as they are; each byte is written once for every time that there
    are too many.
    """
    ivf = last_inverted_file(order.open(1).index)
    together = len(parts) if ivf is None else max(2, MOST_LISTS // int(ivf.nlist))
    level = 0
    while len(parts) > together:
        groups = [parts[first : first + together] for first in range(0, len(parts), together)]
        merged = [_merged(order, group, f"{MERGED}{level}-{number:06d}") for number, group in enumerate(groups)]
        for path, _ in parts if level else ():
            remove_tree(path)
        parts, level = merged, level + 1
    return parts


def _merged(order: IndexOrder, parts: Parts, name: str) -> tuple[Path, IndexPart]:
    path, each = order.path(name), [part for _, part in parts]
    builder = GatheredBuilder(order.open(1), parts, were_digested=True)
    with without_centroids(builder.index):
        file = builder.save(path)
    ids = sum(part.ids for part in each) & ID_SUM
    return path, IndexPart(sum(part.rows for part in each), sum(part.left_out for part in each), ids, file)


def gather(trained: Any, parts: Parts, *, were_digested: bool = False) -> Any:
    """Return a trained, empty FAISS index with all rows of its parts; see :class:`GatheredBuilder`."""
    for path, part in () if were_digested else parts:
        check_index_file(path, part.file.sha256)
    ivf = last_inverted_file(trained)
    if ivf is None:
        # FAISS merges an IndexFlat with none but its like, and reads back another kind of it than its factory makes.
        trained = faiss().deserialize_index(faiss().serialize_index(trained))
        for path, part in parts:
            index = load_index_file(path)
            _check_rows(path, index, part)
            with faiss_errors(f"{path}: is no part of this index", ArtifactError):
                merge(trained, index)
        return trained
    opened, pointers = [_on_disk(path) for path, _ in parts], faiss().InvertedListsPtrVector()
    for index, (path, part) in zip(opened, parts, strict=True):
        _check_rows(path, index, part)
        pointers.push_back(_lists_like(ivf, path, index))
    stacked = faiss().HStackInvertedLists(pointers.size(), pointers.data())
    ivf.replace_invlists(stacked, False)
    for index in inner_indexes(trained):
        index.ntotal = sum(part.rows for _, part in parts)
    trained.referenced_objects = [stacked, *opened]  # FAISS keeps bare pointers to both
    return trained


def save_gathered(index: Any, path: Path, ids: int) -> DigestedFile:
    """Write what :func:`gather` returned as one ordinary FAISS file, of an inverted file one list at a time.

    Raises:
        ResourceError: disk full, I/O error, the disk returns other bytes than were written; or the ids in it do not
            add up to ``ids``, the :func:`id_sum` of all.
    """
    ivf = last_inverted_file(index)
    if ivf is None:
        if ids_of(index) != ids:
            raise ResourceError(f"{path}: the gathered index does not hold the ids of its parts")
        return save_index_file(index, path)
    with DurableWriter(path) as file:
        file.write(without_lists(index, ivf))
        file.write(list_sizes(ivf))
        for codes, found in lists_of(ivf):
            ids = (ids - id_sum(found)) & ID_SUM
            file.write(codes)
            file.write(found)
        if ids:
            raise ResourceError(f"{path}: the gathered index does not hold the ids of its parts")
        written = file.commit()
    if sha256_of_file(path) != written.sha256:
        raise ResourceError(f"{path}: the disk returned other bytes than were written")
    return written


def open_on_disk(path: Path, sha256: str) -> Any:
    """Return an inverted file whose lists stay on the disk, checked; any other index is loaded.

    It goes on answering when the file is removed, or another takes its name.

    Raises:
        ArtifactError: the file is missing, damaged or no index.
    """
    check_index_file(path, sha256)
    index = _on_disk(path)
    return index if last_inverted_file(index) is not None else load_index_file(path)


def _on_disk(path: Path) -> Any:
    module = faiss()
    if isinstance(path, RemotePath):
        return load_index_file(path)  # there is nothing to map into memory
    try:
        return module.read_index(str(path), module.IO_FLAG_MMAP | module.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise ArtifactError(f"{path}: cannot be read by this FAISS: {condensed(error)}") from error


def _check_rows(path: Path, index: Any, part: IndexPart) -> None:
    if index.ntotal != part.rows:
        raise ArtifactError(f"{path}: holds {index.ntotal} rows, wanted {part.rows}")


def _lists_like(wanted: Any, path: Path, index: Any) -> Any:
    """Return the inverted lists of a part, if they can be those of the inverted file ``wanted``."""
    ivf = last_inverted_file(index)
    if ivf is None or (ivf.nlist, ivf.code_size) != (wanted.nlist, wanted.code_size):
        raise ArtifactError(f"{path}: is no part of this index: it was trained otherwise")
    return ivf.invlists
