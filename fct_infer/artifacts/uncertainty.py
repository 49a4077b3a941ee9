"""How unsure a transformation is of a row: a linear layer on its output (FastFill, arXiv 2303.04766), kept in a bundle.

Because it reads the transformed row alone, it tells a gallery's uncertainties after the upgrade as well as before.
"""

from __future__ import annotations

from pathlib import Path

from fct_infer.artifacts.bundle import Bundle
from fct_infer.artifacts.tensors import read_tensors
from fct_infer.errors import ArtifactError
from fct_infer.transformation import Float32Array, Linear, Program

TARGET = "uncertainty"  # of the file in a bundle
FILE_NAME = "uncertainty.safetensors"
LOG_VARIANCE = "log_variance"


def uncertainty_program(weight: Float32Array, bias: Float32Array) -> Program:
    """Return the layer as a program: transformed rows (n, new_dim) as its ``old``, the log-variance (n, 1) out.

    Args:
        weight, bias: (1, new_dim) and (1,).

    Raises:
        ArtifactError: they are no such layer, or not finite.
    """
    layer = Linear("old", LOG_VARIANCE, weight, bias)
    if weight.ndim != 2 or len(weight) != 1:
        raise ArtifactError(f"an uncertainty of shape {weight.shape}, wanted (1, new_dim): one number a row")
    return Program({"old": weight.shape[1]}, (layer,), LOG_VARIANCE)


def read_uncertainty_program(path: Path) -> Program:
    """Read the layer from its file.

    Raises:
        ArtifactError: it is malformed; names the file.
    """
    tensors = read_tensors(path)
    wanted = [f"{LOG_VARIANCE}.{part}" for part in ("weight", "bias")]
    if sorted(tensors) != sorted(wanted):
        raise ArtifactError(f"{path}: holds {', '.join(sorted(tensors)) or 'nothing'}, wanted {' and '.join(wanted)}")
    try:
        return uncertainty_program(*(tensors[name] for name in wanted))
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def uncertainty_of(bundle: Bundle) -> Program | None:
    """Return the layer of an opened bundle, see :func:`uncertainty_program`; None if it holds none.

    Raises:
        ArtifactError: it is malformed, or does not fit the transformation.
    """
    if not bundle.has(TARGET):
        return None
    path = bundle.path / bundle.file(TARGET).name
    program = read_uncertainty_program(path)
    if program.dims["old"] != bundle.manifest.output_dim:
        raise ArtifactError(
            f"{path}: reads rows {program.dims['old']} wide, the transformation makes {bundle.manifest.output_dim}"
        )
    return program
