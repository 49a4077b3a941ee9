"""A published gallery as one object: its rows, its search, its versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fct_infer.connectors import open_source
from fct_infer.gallery import GalleryManifest, Source
from fct_infer.gallery.jobs import Workers
from fct_infer.gallery.manifest import parse_manifest, read_published
from fct_infer.gallery.versions import GalleryVersion, RollbackReport, list_versions, rollback
from fct_infer.identity import NamedModel, model_text
from fct_infer.index import GalleryIndex, load_index
from fct_infer.index.gallery_index import Queries, index_name
from fct_infer.index.verify import GalleryCheck, verify_gallery
from fct_infer.pages import html_summary
from fct_infer.serving.search import ExactSearch
from fct_infer.storage import location
from fct_infer.transformation import Float32Array


class PublishedGallery:
    """What :func:`open_gallery` opens.

    Attributes:
        path: the folder.
        manifest: what it said when it was opened.
    """

    def __init__(self, path: Path, manifest: GalleryManifest) -> None:
        self.path, self.manifest = path, manifest
        self._search: GalleryIndex | ExactSearch | None = None

    def __repr__(self) -> str:
        manifest = self.manifest
        index = "index" if self.has_index else "no index"
        return f"PublishedGallery({self.path}, {manifest.rows:,} rows of {manifest.dim} {manifest.dtype}, {index})"

    def _repr_html_(self) -> str:
        manifest = self.manifest
        known = {
            "where": str(self.path),
            "rows": f"{manifest.rows:,} of {manifest.dim} {manifest.dtype}",
            "metric": manifest.metric,
            "searched by": "its index" if self.has_index else "all rows",
            "model": model_text(manifest.model),
        }
        return html_summary("PublishedGallery", known)

    @property
    def has_index(self) -> bool:
        """Whether it is searched by an index; else all rows are read."""
        return index_name(self.manifest) is not None

    @property
    def index(self) -> GalleryIndex | ExactSearch:
        """What searches it, opened at first use: an index goes on answering from it, whatever becomes of the folder.

        Raises:
            ArtifactError: a file is damaged.
            MissingExtraError: FAISS is not installed.
        """
        if self._search is None:
            self._search = load_index(self.path) if self.has_index else _exact(self.path)
        return self._search

    def search(
        self, queries: Queries, k: int = 10, *, model: NamedModel | None = None
    ) -> tuple[Float32Array, NDArray[Any]]:
        """Return distances and ids of the k nearest rows of each query, as :meth:`GalleryIndex.search`."""
        return self.index.search(queries, k, model=model)

    def source(self) -> Source:
        """Return its rows as a source: of an upgrade, of an evaluation."""
        return open_source(self.path)

    def verify(
        self, progress: Callable[[str, int, int], None] | None = None, workers: Workers | None = None
    ) -> GalleryCheck:
        """Compare every byte with the manifest; see :func:`fct_infer.index.verify.verify_gallery`."""
        return verify_gallery(self.path, progress, workers)

    def versions(self) -> list[GalleryVersion]:
        """Return what it is and was, the version published last first."""
        return list_versions(self.path)

    def rollback(self, to: str | None = None) -> RollbackReport:
        """Go back to a kept version; see :func:`fct_infer.gallery.versions.rollback`. This object is that one then."""
        report = rollback(self.path, to)
        self.manifest, self._search = open_gallery(self.path).manifest, None
        return report


def open_gallery(path: str | Path) -> PublishedGallery:
    """Open a gallery that :func:`fct_infer.upgrade_gallery` published; for others see :func:`fct_infer.open_source`.

    Raises:
        ArtifactError: it is none, or its manifest is malformed or was altered.
    """
    folder = location(path)
    return PublishedGallery(folder, read_published(folder, parse_manifest))


def open_index(path: str | Path) -> GalleryIndex | ExactSearch:
    """Open what searches a published gallery: its index, in memory; without one all of its rows are compared.

    Raises:
        ArtifactError: it is no published gallery, or a file is damaged.
        MissingExtraError: FAISS is not installed.
    """
    return open_gallery(path).index


def _exact(path: Path) -> ExactSearch:
    return read_published(path, lambda folder, data: ExactSearch(folder, parse_manifest(folder, data)))
