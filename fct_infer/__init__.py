"""Change a retrieval system's embedding model without recomputing its gallery.

Needs NumPy and the compiled core only; everything is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fct_infer.backends.embedder import Embedder as Embedder
    from fct_infer.backends.loading import load_embedder as load_embedder
    from fct_infer.backends.loading import load_transformation as load_transformation
    from fct_infer.backends.precision import choose_precision as choose_precision
    from fct_infer.connectors import SourceOptions as SourceOptions
    from fct_infer.connectors import open_source as open_source
    from fct_infer.fitting.arrays import fit as fit
    from fct_infer.identity import ModelId as ModelId
    from fct_infer.transformation import Program as Program
    from fct_infer.transformation import Transformation as Transformation
    from fct_infer.upgrade.probe import Probe as Probe
    from fct_infer.upgrade.report import UpgradeReport as UpgradeReport
    from fct_infer.upgrade.run import upgrade_gallery as upgrade_gallery

try:
    __version__ = version("fct-infer")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "Embedder": "fct_infer.backends.embedder",
    "FctError": "fct_infer.errors",
    "ModelId": "fct_infer.identity",
    "Probe": "fct_infer.upgrade.probe",
    "Program": "fct_infer.transformation",
    "Transformation": "fct_infer.transformation",
    "UpgradeReport": "fct_infer.upgrade.report",
    "choose_precision": "fct_infer.backends.precision",
    "SourceOptions": "fct_infer.connectors",
    "fit": "fct_infer.fitting.arrays",
    "load_index": "fct_infer.index.gallery_index",
    "load_embedder": "fct_infer.backends.loading",
    "load_transformation": "fct_infer.backends.loading",
    "open_source": "fct_infer.connectors",
    "upgrade_gallery": "fct_infer.upgrade.run",
}

__all__ = [  # noqa: PLE0604 - the names above
    "__version__",
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "_core":
        try:
            return import_module("fct_infer._core")
        except ImportError as error:
            raise ImportError(f"the compiled core of fct_infer does not load ({error}); install the package") from error
    raise AttributeError(f"module 'fct_infer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
