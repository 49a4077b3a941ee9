"""What a card promises is tried on the CPU too, where it costs little: so the tests are tried themselves anywhere."""

from __future__ import annotations

import pytest
from support.cuda import CARD, card_precisions, require_card, require_module

from fct_infer import _core

PLACES = [("cpu", name) for name in _core.precisions()] + [(CARD, name) for name in card_precisions()]


@pytest.fixture(params=["cpu", CARD])
def device(request) -> str:
    """Each kind of device."""
    if request.param == CARD:
        require_card()
    return request.param


@pytest.fixture(params=PLACES, ids="-".join)
def place(request) -> tuple[str, str]:
    """Each kind of device in each of its precisions."""
    if request.param[0] == CARD:
        require_card()
    return request.param


@pytest.fixture
def card() -> str:
    """A card; the CPU has none of what is tried with it."""
    require_card()
    return CARD


@pytest.fixture
def with_faiss() -> None:
    """FAISS, for tests in which an index is built."""
    require_module("faiss")
