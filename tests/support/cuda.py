"""Tests of a real card: skipped where there is none, failed where there should be one."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from fct_infer.cuda import cuda_status


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
