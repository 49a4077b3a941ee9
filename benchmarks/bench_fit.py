"""How good the maps of fct-fit are on pairs of real text models, and those of others on the same.

    pip install -e '.[reproduce]'               # the models, and the other libraries that fit maps
    python -m benchmarks.bench_fit              # about 10 minutes to embed, once, then a minute a line
    python -m benchmarks.bench_fit --networks   # the paper's h and an MLP as well: 10 minutes more a line

12,000 definitions are embedded by each model; the gallery is the last 9,000 of them, the pairs a random choice of its
first 6,000, the queries the words that its last 3,000 define, and right is the definition. Prints recall@10 in %, the
figures of docs/fit.md.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fct_infer
from fct_infer.fitting import Settings
from fct_infer.fitting.measures import ByTruth
from fct_infer.maps import Recipe, Statistics
from fct_infer.measuring import Estimate
from fct_infer.transformation import Program

from .npm import MissingPackageError
from .text import GALLERY, PAIRS, QUERIES, Rows, embedded

SIZES = (500, 1_000, 2_000, 6_000)
FIT = "fct-fit"
RECIPES = (Recipe(share=1), Recipe(alpha=0.1), Recipe(alpha=1))


@dataclass(frozen=True)
class Line:
    """What the maps of so many pairs of two models find.

    Attributes:
        old, new: the models.
        searches: recall@10 of each model in its own gallery, ``old/old`` and ``new/new``.
        pairs: how many.
        maps: recall@10 by map.
        seconds: that ``fct-fit`` took.
    """

    old: str
    new: str
    searches: dict[str, Estimate]
    pairs: int
    maps: dict[str, Estimate]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the line as strict JSON."""
        return asdict(self)


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


def lines(with_networks: bool = False) -> Iterator[Line]:
    """Yield every line as it is measured.

    Raises:
        MissingPackageError: texts or models cannot be had here.
    """
    truth, asked = np.arange(GALLERY - QUERIES, GALLERY)[:, None], np.arange(QUERIES)

    def recall(queries: Rows, gallery: NDArray[Any]) -> Estimate:
        return Estimate.of(ByTruth(queries, truth, "cosine").scores(np.asarray(gallery, np.float32), asked))

    for old_name, new_name in PAIRS:
        (old, old_queries), (new, new_queries) = embedded(old_name), embedded(new_name)
        searches = {"old/old": recall(old_queries, old), "new/new": recall(new_queries, new)}
        for size in SIZES:
            chosen = np.random.default_rng(0).permutation(GALLERY - QUERIES)[:size]
            found = fct_infer.fit(old[chosen], new[chosen], settings=Settings(network=with_networks))
            maps = {FIT: recall(new_queries, applied(found.program)(old))}
            maps |= {
                name: recall(new_queries, apply(old)) for name, apply in others(old[chosen], new[chosen], with_networks)
            }
            yield Line(old_name, new_name, searches, size, maps, found.seconds)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", action="store_true", help="Train the paper's h and an MLP, too.")
    options = parser.parse_args()
    try:
        for line in lines(options.networks):
            if line.pairs == SIZES[0]:
                searches = (f"{name} {shown(found)}" for name, found in line.searches.items())
                print(f"\n{line.old} -> {line.new}: {', '.join(searches)}")
            found = "  ".join(f"{name}: {shown(value)}" for name, value in line.maps.items())
            print(f"  {line.pairs:,} pairs, {line.seconds:.0f} s  {found}", flush=True)
    except MissingPackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    return 0


def shown(found: Estimate) -> str:
    """Return a share in percent."""
    return f"{100 * found.mean:.1f}"


if __name__ == "__main__":
    sys.exit(main())
