from __future__ import annotations

import pytest

from fct_infer.export import probe


@pytest.fixture(autouse=True, scope="package")
def _few_random_rows():
    """Files are tried on fewer rows than in production: the neighbours of 4,096 take most of an export's time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "LARGE_BATCH", 64)
        yield
