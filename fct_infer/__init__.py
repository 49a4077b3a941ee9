"""Change a retrieval system's embedding model without recomputing its gallery.

Needs NumPy and the compiled core only; everything is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fct_infer.backends.embedder import Embedder as Embedder
    from fct_infer.backends.loading import load_embedder as load_embedder
    from fct_infer.backends.loading import load_transformation as load_transformation
    from fct_infer.backends.precision import choose_precision as choose_precision
    from fct_infer.connectors import SourceOptions as SourceOptions
    from fct_infer.connectors import open_source as open_source
    from fct_infer.embedding import EmbedReport as EmbedReport
    from fct_infer.embedding.embed_gallery import embed_gallery as embed_gallery
    from fct_infer.errors import ArrayError as ArrayError
    from fct_infer.errors import ArtifactError as ArtifactError
    from fct_infer.errors import DeviceMemoryError as DeviceMemoryError
    from fct_infer.errors import FctError as FctError
    from fct_infer.errors import GalleryError as GalleryError
    from fct_infer.errors import GateError as GateError
    from fct_infer.errors import InputError as InputError
    from fct_infer.errors import MissingExtraError as MissingExtraError
    from fct_infer.errors import ModelMismatchError as ModelMismatchError
    from fct_infer.errors import NonFiniteError as NonFiniteError
    from fct_infer.errors import NotAProgramError as NotAProgramError
    from fct_infer.errors import OutputError as OutputError
    from fct_infer.errors import ResourceError as ResourceError
    from fct_infer.errors import StoppedError as StoppedError
    from fct_infer.errors import UnsupportedError as UnsupportedError
    from fct_infer.errors import UsageError as UsageError
    from fct_infer.evaluation.arrays import evaluate as evaluate
    from fct_infer.export import ExportReport as ExportReport
    from fct_infer.export import export_backbone as export_backbone
    from fct_infer.export import export_transformation as export_transformation
    from fct_infer.fitting.arrays import fit as fit
    from fct_infer.gallery.versions import list_versions as list_versions
    from fct_infer.gallery.versions import rollback as rollback
    from fct_infer.identity import ModelId as ModelId
    from fct_infer.index.gallery_index import GalleryIndex as GalleryIndex
    from fct_infer.index.gallery_index import load_index as load_index
    from fct_infer.serving.published import PublishedGallery as PublishedGallery
    from fct_infer.serving.published import open_gallery as open_gallery
    from fct_infer.serving.published import open_index as open_index
    from fct_infer.transformation import Program as Program
    from fct_infer.transformation import Transformation as Transformation
    from fct_infer.upgrade.probe import Probe as Probe
    from fct_infer.upgrade.report import UpgradeReport as UpgradeReport
    from fct_infer.upgrade.run import upgrade_gallery as upgrade_gallery
    from fct_infer.upgrade.settings import Settings as Settings

    __version__: str

_ERRORS = (
    "ArrayError",
    "ArtifactError",
    "DeviceMemoryError",
    "FctError",
    "GalleryError",
    "GateError",
    "InputError",
    "MissingExtraError",
    "ModelMismatchError",
    "NonFiniteError",
    "NotAProgramError",
    "OutputError",
    "ResourceError",
    "StoppedError",
    "UnsupportedError",
    "UsageError",
)
_HOMES = dict.fromkeys(_ERRORS, "fct_infer.errors") | {
    "EmbedReport": "fct_infer.embedding",
    "Embedder": "fct_infer.backends.embedder",
    "ExportReport": "fct_infer.export",
    "GalleryIndex": "fct_infer.index.gallery_index",
    "ModelId": "fct_infer.identity",
    "Probe": "fct_infer.upgrade.probe",
    "Program": "fct_infer.transformation",
    "PublishedGallery": "fct_infer.serving.published",
    "Settings": "fct_infer.upgrade.settings",
    "SourceOptions": "fct_infer.connectors",
    "Transformation": "fct_infer.transformation",
    "UpgradeReport": "fct_infer.upgrade.report",
    "choose_precision": "fct_infer.backends.precision",
    "embed_gallery": "fct_infer.embedding.embed_gallery",
    "evaluate": "fct_infer.evaluation.arrays",
    "export_backbone": "fct_infer.export",
    "export_transformation": "fct_infer.export",
    "fit": "fct_infer.fitting.arrays",
    "list_versions": "fct_infer.gallery.versions",
    "load_embedder": "fct_infer.backends.loading",
    "load_index": "fct_infer.index.gallery_index",
    "load_transformation": "fct_infer.backends.loading",
    "open_gallery": "fct_infer.serving.published",
    "open_index": "fct_infer.serving.published",
    "open_source": "fct_infer.connectors",
    "rollback": "fct_infer.gallery.versions",
    "upgrade_gallery": "fct_infer.upgrade.run",
}

__all__ = [  # noqa: PLE0604 - the names above
    "__version__",
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "_core":
        try:
            return import_module("fct_infer._core")
        except ImportError as error:
            raise ImportError(f"the compiled core of fct_infer does not load ({error}); install the package") from error
    raise AttributeError(f"module 'fct_infer' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fct-infer")
    except PackageNotFoundError:  # a source tree on sys.path that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return __all__
