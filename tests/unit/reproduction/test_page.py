"""The reproduction's page says of each claim in how many seeds it held."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMES = (
    "old/old",
    "new/new, independent",
    "new/old, independent",
    "BCT new/old",
    "BCT new/new",
    "FCT new/old, without side-information",
    "FCT new/old, with side-information",
    "FastFill new/old",
)
AREAS = ("FCT with side-information, random", "FastFill, random", "FastFill, by uncertainty")


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "reproduction", raising=False)
    from reproduction import page

    return page


def seed(maps: tuple[float, ...], areas: tuple[float, ...], closed: float) -> dict:
    rows = {name: {"CMC-1": value, "CMC-5": value, "mAP": value} for name, value in zip(NAMES, maps, strict=True)}
    return {"rows": rows, "areas": dict(zip(AREAS, areas, strict=True)), "gap_closed": closed}


GOOD = seed((0.5, 0.9, 0.02, 0.6, 0.85, 0.8, 0.88, 0.89), (0.9, 0.91, 0.93), 0.95)
BAD = seed((0.5, 0.9, 0.02, 0.4, 0.85, 0.8, 0.7, 0.89), (0.9, 0.91, 0.9), 0.5)


def written(page, path: Path, *seeds: dict) -> list[str]:
    page.write_page(path / "docs" / "page.md", seeds, "a test")
    assert (path / "docs" / "reproduction.png").stat().st_size > 1000
    return (path / "docs" / "page.md").read_text().splitlines()


def test_all_claims_hold(page, tmp_path):
    claims = [line for line in written(page, tmp_path, GOOD) if line.startswith("- **")]
    assert len(claims) == 7
    assert all(line.startswith("- **yes** (1 of 1)") for line in claims)


def test_claims_that_fail_say_so(page, tmp_path):
    lines = written(page, tmp_path, GOOD, BAD)
    assert (
        "- **not always** (1 of 2): BCT keeps its criterion, new/old above old/old: 50.0 ± 10.0 against 50.0 ± 0.0 %."
        in lines
    )
    assert "- **yes** (2 of 2): BCT costs the new model: 85.0 ± 0.0 against 90.0 ± 0.0 %." in lines
    assert "| BCT new/old | 50.0 ± 10.0 | 50.0 ± 10.0 | 50.0 ± 10.0 |" in lines
    only_bad = written(page, tmp_path, BAD)
    assert "- **no** (0 of 1): side-information helps FCT: 70.0 against 80.0 %." in only_bad
