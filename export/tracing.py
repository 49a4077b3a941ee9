"""Tracing a torch module, the way to both TorchScript and ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fct_infer.artifacts.foreign_code import foreign_code
from fct_infer.backends.runner import Interface

_EXAMPLE_ROWS = 2  # one would be taken for a size that never changes


def examples(interface: Interface) -> tuple[Tensor, ...]:
    """Return inputs to trace with."""
    return tuple(torch.zeros(_EXAMPLE_ROWS, *shape) for shape in interface.inputs.values())


def trace(module: nn.Module, *example: Tensor) -> torch.jit.ScriptModule:
    """Return the operations ``module`` runs on ``example``, as TorchScript.

    Raises:
        ArtifactError: it cannot be traced.
    """
    with foreign_code("PyTorch cannot trace the model"), without_warnings(), without_fast_path(), torch.no_grad():
        traced: torch.jit.ScriptModule = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        return traced


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Let attention run its plain operations: the fused one that it takes in eval mode exists in PyTorch only."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence PyTorch: it warns of its own age and of traces that may not generalize, which the parity check tries."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
