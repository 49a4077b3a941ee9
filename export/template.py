"""What all targets share: convert, write, load back with the target's own runtime, compare, judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeAlias, TypeVar

import numpy as np

from fct_infer.artifacts.manifest import BundleFile
from fct_infer.errors import FctError
from fct_infer.storage import write_bytes
from fct_infer.transformation import Float32Array

from .parity import Batch, Probe, check

SourceT = TypeVar("SourceT")
Runner: TypeAlias = Callable[[Batch], Float32Array]


class Exporter(ABC, Generic[SourceT]):
    """Writes one model file. A target says how to convert and how to open; :meth:`export` is the same for all."""

    target: ClassVar[str]
    file_name: ClassVar[str]
    precision: ClassVar[str] = "fp32"

    def export(self, source: SourceT, folder: Path, probe: Probe, metadata: Mapping[str, str]) -> BundleFile:
        """Write the file into ``folder`` and prove that it computes what ``source`` does.

        Raises:
            GateError: it does not, within the limits of :data:`fct_infer.export.parity.LIMITS`.
            FctError: the source cannot be converted, or the target's runtime is missing or refuses the file.
        """
        path = folder / self.file_name
        try:
            written = write_bytes(path, self.convert(source, metadata))
            run = self.open(source, path)
            found = np.concatenate([run(batch) for batch in probe.batches])
            parity = check(probe.expected, found, self.precision)
        except FctError as error:
            error.args = (f"target {self.target}: {error}",)
            raise
        return BundleFile(self.file_name, self.target, self.precision, written.size, written.sha256, parity)

    @abstractmethod
    def convert(self, source: SourceT, metadata: Mapping[str, str]) -> bytes:
        """Return the contents of the file; ``metadata`` goes into it where the format has a place for it."""

    @abstractmethod
    def open(self, source: SourceT, path: Path) -> Runner:
        """Load the file with its own runtime; ``source`` is for what the format leaves to the manifest."""
