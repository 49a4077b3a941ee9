"""A Lance data set upgraded where it is: ``DATASET.lance?column=NAME``, one more column by one commit.

DATASET.NAME.partial/      as of a folder: the new rows until they are verified, journalled and resumed as everywhere

Once all is checked the rows become a column, fragment after fragment, and one commit shows them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.connectors.lance_column import add_column, is_added
from fct_infer.connectors.lance_dataset import LanceSource
from fct_infer.errors import OutputError, UsageError
from fct_infer.gallery import MANIFEST_NAME, Source
from fct_infer.gallery.destination import Atomicity, Job, Progress
from fct_infer.storage import RemotePath, location, sha256_of_file
from fct_infer.upgrade.folder import FolderDestination
from fct_infer.upgrade.work import FolderWork

_PLACE = re.compile(r"(.+)\?column=([^?&/]+)", re.DOTALL)


def lance_column(dest: Path) -> tuple[Path, str] | None:
    """Return data set and column of ``DATASET?column=NAME``; None if it is any other place."""
    found = _PLACE.fullmatch(str(dest))
    return (location(found[1]), found[2]) if found else None


class LanceDestination:
    """See :class:`~fct_infer.gallery.destination.Destination`.

    Args:
        dataset: that is upgraded.
        column: for the new rows.
        inputs: what else the upgrade is made from, by what each is called in a message.

    Raises:
        UsageError: the data set is behind a URL.
    """

    atomicity: Atomicity = "commit"
    holds_index = False
    format, keep = "npy", 0

    def __init__(self, dataset: Path, column: str, inputs: dict[str, str | Path]) -> None:
        if isinstance(dataset, RemotePath):
            raise UsageError(
                f"{dataset}: a data set behind a URL is upgraded in two steps: publish a folder, "
                f"then fct-gallery add-column FOLDER {dataset} {column}"
            )
        self.dataset, self.column = dataset.absolute(), column
        self.name = Path(f"{self.dataset}?column={column}")
        self.stage = FolderDestination(self.dataset.with_name(f"{self.dataset.name}.{column}"), "npy", inputs, 0)

    def adopt(self, source: Source) -> Source:
        """Return the source, if it is the data set.

        Raises:
            UsageError: it is another one.
        """
        is_same = isinstance(source, LanceSource) and Path(source.path).resolve() == self.dataset.resolve()
        if not is_same:
            raise UsageError(
                f"{self.name}: a data set is upgraded where it is, so DEST has to name the one that SOURCE is, and its "
                f"new column; SOURCE is {source.path}"
            )
        return source

    def check(self, source: Source, dim: int, dtype: np.dtype[Any]) -> None:
        """A column holds vectors of any width."""

    def check_replaceable(self, *, force: bool) -> None:
        """Refuse the name of a column that is there; it is not replaced, whoever made it."""
        if is_added(self.dataset, self.column) is not None:
            raise OutputError(
                f"{self.dataset}: has a column {self.column!r} already; name another one, or drop it: "
                f"fct-gallery rollback '{self.name}'"
            )

    def check_room(self, wanted: int) -> None:
        """New rows are there twice for a while."""
        self.stage.check_room(2 * wanted)

    def begun_with(self) -> dict[str, Any]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        return self.stage.begun_with()

    def promises(self, job: Job) -> dict[str, str]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        return {
            "writes": f"column {self.column!r} of {self.dataset}, by one commit; no row and no index is rewritten",
            "index": "none is built; Lance's own create_index makes one of the column",
            "readers": "see the data set without the column or with all of it",
            "writers": "may go on; if rows come, go or change before the commit, nothing is added",
            "resumes": f"from {self.stage.name}.partial, which holds the new rows until the commit",
            "lasts": "as the system's disk cache does: Lance does not wait for the disk",
            "rollback": f"fct-gallery rollback '{self.name}'",
        }

    def check_shared(self) -> None:
        """New rows are files in a folder until the commit, which this process makes alone."""

    def open_work(self, job: Job, *, restart: bool, force: bool, progress: Progress | None) -> LanceWork:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        if job.index_wanted[0] not in ("auto", "none"):
            raise UsageError(f"{self.name}: no FAISS index lies in a data set; leave --index out")
        return LanceWork(job, self, restart=restart, force=force, progress=progress)


class LanceWork(FolderWork):
    """The same work as a folder's, but for its last step."""

    destination: LanceDestination

    def _take(self) -> None:
        self.dest = self.destination.stage.name
        super()._take()

    def publish(self) -> None:
        """Make the rows a column by one commit, then drop the rest of the work."""
        if not self.is_ready:
            self.journal.append("publishing", manifest=sha256_of_file(self.gallery / MANIFEST_NAME))
        if not self.is_published:
            add_column(self.gallery, self.destination.dataset, self.destination.column, self._progress)
        self.discard()

    def _was_published(self) -> bool:
        """Whether the column is what this work was for: killed after the commit, before the work was dropped."""
        records, begun = self.journal.all("publishing"), self.journal.all("begin")
        mark = is_added(self.destination.dataset, self.destination.column)
        is_ours = bool(records) and bool(mark) and mark == records[-1]["manifest"]
        return is_ours and bool(begun)
