"""Tests of a real card: skipped where there is none, failed where there should be one."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest

from fct_infer import _core
from fct_infer.cuda import cuda_status

CARD = "cuda:0"


def no_card(reason: str) -> NoReturn:
    """Skip the test for want of a card; with FCT_REQUIRE_CUDA=1 fail it."""
    if os.environ.get("FCT_REQUIRE_CUDA") == "1":
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
