"""The page of text models: the best map of each size stands out, and fct-fit is held against the best of the others."""

from __future__ import annotations


def estimate(share: float) -> dict[str, float]:
    return {"mean": share, "standard_error": 0.008}


def test_the_page_of_maps_and_side_information():
    from benchmarks.bench_fit import SIZES
    from reproduction.text import page

    searches = {"old/old": estimate(0.38), "new/new": estimate(0.44)}
    maps = [
        {
            "old": "static",
            "new": "transformer",
            "searches": searches,
            "pairs": size,
            "maps": {"fct-fit": estimate(own), "Procrustes": estimate(0.2), "ridge": estimate(0.1)},
            "seconds": 7.4,
        }
        for size, own in zip(SIZES, (0.15, 0.2, 0.21, 0.25), strict=True)
    ]
    shares = {name: estimate(0.3) for name in ("old/old", "new/new", "without", "with")} | {"gain": estimate(0.04)}
    side = [{"pairs": 500, "notes": ["side-information adds much"], "kinds": {"words": shares, "examples": shares}}]
    lines = page({"maps": maps, "side": side, "versions": "a 1.0"}, "a test").splitlines()
    assert "Computed a test; a 1.0." in lines
    assert "static -> transformer (old/old 38.0, new/new 44.0):" in lines
    assert "| fct-fit | 15.0 | **20.0** | **21.0** | **25.0** |" in lines
    assert "| Procrustes | **20.0** | **20.0** | 20.0 | 20.0 |" in lines
    assert "`fct-fit` against the best of the others: -5.0, +0.0, +1.0, +5.0. Seconds: 7, 7, 7, 7." in lines
    assert "| 500 | examples | 30.0 | 30.0 | 30.0 | 30.0 | +4.0 ± 0.8 |" in lines
    assert "`fct-fit` at 500 pairs: side-information adds much." in lines
