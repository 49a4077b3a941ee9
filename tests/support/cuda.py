"""Tests of a card, real or of tests/simulated_cuda: skipped where there is none, failed where there should be one."""

from __future__ import annotations

import ctypes
import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest

from fct_infer import _core
from fct_infer.cuda import cuda_status

CARD = "cuda:0"
# A simulated card computes on this machine's CPU, and has neither PyTorch, CuPy nor FAISS on it.
IS_SIMULATED = any(card.name == "simulated card" for card in cuda_status().cards)


def memory(mebibytes: int, simulated: int) -> int:
    """Bytes of device memory for a test; on a simulated card, which is slow, fewer, so that blocks are small."""
    return (simulated if IS_SIMULATED else mebibytes) << 20


def free_memory() -> int:
    """Bytes of the first card that are free; the simulated one itself reports few, so that blocks are small."""
    if not IS_SIMULATED:
        return cuda_status().cards[0].free_bytes or 0
    function = ctypes.CDLL("libcuda.so.1").simulated_free_memory
    function.restype = ctypes.c_size_t
    return int(function(0))


def no_card(reason: str) -> NoReturn:
    """Skip the test for want of a card, or of something on it; with FCT_REQUIRE_CUDA=1 fail it on a real one."""
    if os.environ.get("FCT_REQUIRE_CUDA") == "1" and not IS_SIMULATED:
        pytest.fail(f"FCT_REQUIRE_CUDA is set: {reason}")
    pytest.skip(reason)


def require_card() -> None:
    """Go on only if the core can use a card."""
    missing = cuda_status().missing
    if missing:
        no_card(missing)


def require_module(name: str) -> ModuleType:
    """Import what only the tests of a card need; go on only if it is there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        no_card(f"{name} cannot be imported: {error}")


def card_precisions() -> list[str]:
    """Return the precisions of the card; one, for tests that will be skipped, where there is none."""
    return ["fp32"] if cuda_status().missing else _core.precisions(CARD)
