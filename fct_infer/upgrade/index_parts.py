"""An index made in parts: who upgrades a part of the gallery builds its part of the index; the driver gathers them.

DEST.partial/index_parts/NAME.faiss     one part, or, of an index that is published in shards,
DEST.partial/gallery/index/NAME.faiss   the same where it stays

What nobody built is built by the driver of what was written, so any executor will do, and whatever an earlier run left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path

from fct_infer.errors import GalleryError
from fct_infer.gallery import Part, SourceReader
from fct_infer.index import IndexBuilder
from fct_infer.index.parts import (
    GatheredBuilder,
    IndexOrder,
    IndexPart,
    can_be_parted,
    fewer_parts,
    takes_each_row_alone,
)
from fct_infer.index.sharded import SHARDS_FOLDER, ShardedBuilder
from fct_infer.storage import DigestedFile, sha256_of_file
from fct_infer.upgrade.executor import PartDone
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.stream import IndexFeeder, Watch, blocks_of
from fct_infer.upgrade.verify import read_block
from fct_infer.upgrade.work import FolderWork

_KIND = "index part"  # of records in the journal


class IndexParts:
    """The parts of one upgrade's index.

    Args:
        plan: with an index.
        work: begun.
        builder: trained; with rows, if a published index is extended.
        trained: its file; None if it takes no training.
        watch: to be shown the rows of parts that are built here.
    """

    def __init__(
        self,
        plan: Plan,
        work: FolderWork,
        builder: IndexBuilder,
        trained: DigestedFile | None,
        watch: Watch | None = None,
    ) -> None:
        self._plan, self._work, self._builder, self._trained = plan, work, builder, trained
        self._watch = watch

    @property
    def is_sharded(self) -> bool:
        """Whether the index is published as its parts."""
        return self._plan.settings.sharded_index

    @property
    def order(self) -> IndexOrder:
        """What a part is built by."""
        index, work = self._builder, self._work
        folder = work.gallery / SHARDS_FOLDER if self.is_sharded else work.index_parts
        sha256 = None if self._trained is None else self._trained.sha256
        return IndexOrder(index.factory, index.dim, index.metric, work.trained_index, sha256, folder)

    @property
    def order_of_workers(self) -> IndexOrder | None:
        """The same for workers elsewhere; None where one process builds the index.

        That is one which is extended, whose parts do not add up, or in which a row may become another one with other
        rows beside it. A device fills it otherwise, too.
        """
        builder = self._builder
        fits = not builder.loaded_rows and builder.placement["add"] == "cpu" and can_be_parted(builder.index)
        return self.order if fits and takes_each_row_alone(builder.index) else None

    def record(self, done: PartDone) -> None:
        """Note a part of the index that came with a part of the gallery, if one did."""
        if done.index is not None:
            self._work.journal.append(_KIND, name=done.part.name, **done.index)

    def gathered(self, report: Callable[[str, int], None]) -> IndexBuilder | None:
        """Return all parts as one index, those that are missing made; the trained index is used up.

        Returns:
            None if nobody built any, and none is asked for: then it is as well built in one.
        """
        found, order = self._found(), self.order
        if not self.is_sharded and (not found or self.order_of_workers is None):
            return None
        parts = self._plan.gallery.parts()
        self._build([part for part in parts if part.name not in found], found, report)
        files = fewer_parts(order, [(order.path(part.name), found[part.name]) for part in parts])
        if self.is_sharded:
            return ShardedBuilder(self._builder, files, self._work.gallery, were_digested=True)
        return GatheredBuilder(self._builder, files, were_digested=True)

    def _found(self) -> dict[str, IndexPart]:
        """Return what was built and still is what was written; a worker that was given up may have written since."""
        found = {record["name"]: IndexPart.of_record(record) for record in self._work.journal.all(_KIND)}
        order = self.order
        return {name: part for name, part in found.items() if _is_intact(order.path(name), part.file)}

    def _build(self, missing: Iterable[Part], found: dict[str, IndexPart], report: Callable[[str, int], None]) -> None:
        if not missing:
            return
        plan, order = self._plan, self.order
        builder = order.open(self._builder.threads)
        source = self._work.open_written(plan.gallery.parts())
        written = {part.name: part for part in source.parts()}
        with SourceReader(source) as reader:
            for part in missing:
                builder.begin()
                with closing(IndexFeeder(plan, [part], builder, self._watch)) as feeder:
                    for own, start, stop in blocks_of([written[part.name]], plan.block_rows):
                        feeder(read_block(plan, reader, own, start, stop))
                built = found[part.name] = builder.end(order.path(part.name))
                self._work.journal.append(_KIND, name=part.name, **built.as_record())
                report("index finished shards", part.first_row + part.rows)


def _is_intact(path: Path, file: DigestedFile) -> bool:
    with suppress(GalleryError, OSError):
        return path.stat().st_size == file.size and sha256_of_file(path) == file.sha256
    return False
