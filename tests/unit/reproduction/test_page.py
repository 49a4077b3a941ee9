"""The reproduction's page says of each claim in how many seeds it held."""

from __future__ import annotations

from pathlib import Path

NAMES = (
    "old/old",
    "new/new, independent",
    "new/old, independent",
    "BCT new/old",
    "BCT new/new",
    "BCT, completed classifier, new/old",
    "BCT, completed classifier, new/new",
    "FCT new/old, without side-information",
    "FCT new/old, with side-information",
    "FastFill new/old",
)
AREAS = ("FCT with side-information, random", "FastFill, random", "FastFill, by uncertainty")


def seed(maps: tuple[float, ...], areas: tuple[float, ...], closed: float) -> dict:
    rows = {name: {"CMC-1": value, "CMC-5": value, "mAP": value} for name, value in zip(NAMES, maps, strict=True)}
    return {
        "rows": rows,
        "areas": dict(zip(AREAS, areas, strict=True)),
        "gap_closed": closed,
        "psi": {"none": maps[7], "simclr-64": maps[8], "classifier-64": maps[8]},
        "sizes": {"linear": {"mflop": 0.05, "mAP": maps[7]}, "the paper's": {"mflop": 11.3, "mAP": maps[8]}},
        "across": {"MobileNetV2": {"old/old": 0.5, "new/new": 0.9, "FCT new/old": maps[8], "gap_closed": closed}},
        "sequence": {
            "merits": {"old/old": 0.5, "new/old": maps[8], "new/new": 0.9},
            "chained": maps[7],
            "average_compatibility": 1.0,
        },
    }


GOOD = seed((0.5, 0.9, 0.02, 0.6, 0.85, 0.55, 0.8, 0.8, 0.88, 0.89), (0.9, 0.91, 0.93), 0.95)
BAD = seed((0.5, 0.9, 0.02, 0.4, 0.85, 0.3, 0.95, 0.8, 0.7, 0.69), (0.9, 0.91, 0.9), 0.5)


def written(path: Path, *seeds: dict) -> list[str]:
    from reproduction.page import write_page

    write_page(path / "docs" / "page.md", seeds, 3000, "a test")
    for picture in ("pairs", "sizes"):
        assert (path / "docs" / f"page-{picture}.png").stat().st_size > 1000
    return (path / "docs" / "page.md").read_text().splitlines()


def test_all_claims_hold(tmp_path):
    claims = [line for line in written(tmp_path, GOOD) if line.startswith("- **")]
    assert len(claims) == 11
    assert all(line.startswith("- **yes** (1 of 1)") for line in claims)


def test_claims_that_fail_say_so(tmp_path):
    lines = written(tmp_path, GOOD, BAD)
    assert (
        "- **not always** (1 of 2): BCT keeps its criterion, new/old above old/old: 50.0 ± 10.0 against 50.0 ± 0.0 %."
        in lines
    )
    assert "- **not always** (1 of 2): FCT closes at least 90 % of the gap: 72.5 ± 22.5 against 90 %." in lines
    assert "| BCT new/old | 50.0 ± 10.0 | 50.0 ± 10.0 | 50.0 ± 10.0 |" in lines
    only_bad = written(tmp_path, BAD)
    assert "- **no** (0 of 1): side-information by SimCLR helps FCT: 70.0 against 80.0 %." in only_bad


def test_choices_changes_and_the_sequence_are_shown(tmp_path):
    lines = written(tmp_path, GOOD)
    assert "| simclr-64 | 88.0 |" in lines
    sizes = [line for line in lines if line.startswith(("| linear", "| the paper's"))]
    assert sizes == ["| the paper's | 11.30 | 88.0 |", "| linear | 0.05 | 80.0 |"]
    assert "| MobileNetV2 | 50.0 | 90.0 | 88.0 | 95.0 |" in lines
    assert "| v1 | 50.0 |  |" in lines
    assert "| v2 | 88.0 | 90.0 |" in lines
