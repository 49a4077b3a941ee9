"""The layer that tells from a transformed row how unsure h is of it, in a bundle beside h."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.manifest import BundleFile
from fct_infer.artifacts.tensors import tensor_bytes
from fct_infer.artifacts.uncertainty import FILE_NAME, TARGET, read_uncertainty_program
from fct_infer.errors import FctError
from fct_infer.reference import apply_float64
from fct_infer.storage import write_bytes
from fct_infer.transformation import Program, Transformation

from .parity import check, compare, proof
from .template import Job


def write_uncertainty(program: Program, folder: Path, job: Job) -> BundleFile:
    """Write the layer into ``folder`` and prove on the probe's transformed rows that it says what ``program`` does.

    Raises:
        GateError: it does not.
    """
    from fct_infer import __version__

    try:
        written = write_bytes(folder / FILE_NAME, tensor_bytes(program, dict(job.metadata)))
        layer = Transformation(read_uncertainty_program(folder / FILE_NAME), "fp32")
        rows = np.ascontiguousarray(job.probe.expected, np.float32)
        start = time.perf_counter()
        found = layer(rows)
        rate = len(rows) / (time.perf_counter() - start)
        wanted = apply_float64(program, rows, None)
        difference = compare(_with_one(wanted), _with_one(found), job.probe.real_rows)
        check(difference, "fp32", job.probe.real_rows)
    except FctError as error:
        error.args = (f"target {TARGET}: {error}",)
        raise
    parity = proof(difference, job.probe.real_rows, f"core {__version__} cpu", rate)
    return BundleFile(FILE_NAME, TARGET, "fp32", written.size, written.sha256, parity)


def _with_one(scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return (s, 1) for each s: a row of one number has no angle to another, and distances stay what they are."""
    return np.hstack([scores, np.ones_like(scores)])
