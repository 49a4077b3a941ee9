"""What all targets share: convert, write, load back with the target's own runtime, compare, judge, time."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from fct_infer.artifacts.manifest import BundleFile, Engine, Parity
from fct_infer.artifacts.precisions import LIMITS
from fct_infer.backends.loading import open_runner
from fct_infer.backends.runner import Batch, Runner
from fct_infer.errors import FctError, GateError, UnsupportedError, UsageError
from fct_infer.storage import write_bytes
from fct_infer.transformation import NEEDS_RANGES, Float32Array

from .models import Model
from .parity import check, compare, proof
from .probe import IN_COMPANY, ROUNDING, Probe, company_that_matters


@dataclass(frozen=True)
class Job:
    """What all files of one export share.

    Attributes:
        probe: what they are tried on.
        metadata: goes into each file whose format has a place for it.
        calibration: a user's rows, by input; None if there are none.
        device: where files are tried: ``auto``, ``cpu``, ``cuda:N``.
        allow_unproven: publish a file that cannot be run here.
    """

    probe: Probe
    metadata: Mapping[str, str]
    calibration: Batch | None = None
    device: str = "auto"
    allow_unproven: bool = False


@dataclass(frozen=True)
class Converted:
    """A model file before it is written; ``engine`` is for TensorRT."""

    name: str
    data: bytes
    engine: Engine | None = None


class Exporter(ABC):
    """Writes files for one target. A target says how to convert; :meth:`export` is the same for all."""

    target: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]

    def export(self, model: Model, precision: str, folder: Path, job: Job) -> BundleFile:
        """Write the file into ``folder`` and prove that it computes what ``model`` does.

        Raises:
            GateError: it does not, within the limits of :data:`fct_infer.artifacts.precisions.LIMITS`, or it cannot be
                run here.
            FctError: the model cannot be converted, or the target's runtime is missing or refuses the file.
        """
        try:
            if precision in NEEDS_RANGES and job.calibration is None:
                raise UsageError("takes its scales from real rows: --calibration GALLERY (calibration=...)")
            converted = self.convert(model, precision, job)
            written = write_bytes(folder / converted.name, converted.data)
            file = BundleFile(
                converted.name, self.target, precision, written.size, written.sha256, None, converted.engine
            )
            del converted
            return replace(file, parity=self._prove(model, folder / file.name, file, job))
        except FctError as error:
            error.args = (f"target {self.target}, {precision}: {error}",)
            raise

    def _prove(self, model: Model, path: Path, file: BundleFile, job: Job) -> Parity | None:
        try:
            runner = self.open(model, path, file, job)
        except UnsupportedError as error:
            if job.allow_unproven:
                return None
            raise GateError(
                f"cannot be run here, so it is not proven: {error}; --allow-unproven publishes it"
            ) from error
        found, seconds = [], {}
        for batch in job.probe.batches:
            start = time.perf_counter()
            found.append(runner.run(batch))
            seconds[len(found[-1])] = time.perf_counter() - start
        difference = compare(job.probe.expected, np.concatenate(found), job.probe.real_rows)
        check(difference, file.precision, job.probe.real_rows)
        _check_company(runner, file.precision, job.probe.batches[IN_COMPANY], found[IN_COMPANY])
        largest = max(seconds)
        return proof(difference, job.probe.real_rows, runner.runtime, largest / seconds[largest])

    @abstractmethod
    def convert(self, model: Model, precision: str, job: Job) -> Converted:
        """Return the file.

        Raises:
            FctError: the model cannot be converted.
        """

    def open(self, model: Model, path: Path, file: BundleFile, job: Job) -> Runner:
        """Load the file as production does; ``model`` is for what the format leaves to the manifest.

        Raises:
            UnsupportedError: nothing here can run it.
        """
        return open_runner(path, file, model.interface, device=job.device, trust=True)


def _check_company(runner: Runner, precision: str, batch: Batch, answers: Float32Array) -> None:
    """Refuse a file whose answer for a row depends on its company, within what its precision rounds."""
    bound = ROUNDING if precision == "fp32" else LIMITS[precision].max_relative_error
    if company := company_that_matters(runner.run, batch, answers, bound):
        raise GateError(
            f"computes something else of a row {company} than among others, by more than {bound:.0e} of the largest "
            "output"
        )


def file_name(stem: str, precision: str, suffix: str) -> str:
    """Return ``model.onnx``, or ``model.fp16.onnx`` for another precision than fp32."""
    return f"{stem}{suffix}" if precision == "fp32" else f"{stem}.{precision}{suffix}"
