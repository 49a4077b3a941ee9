"""The inputs every exported file is tried on: random ones in several batch sizes, and a user's rows if given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.backends.runner import Batch, Shapes, split_batch
from fct_infer.errors import ArtifactError

from .models import Model

SMALL_BATCHES = (1, 2, 7)
IN_COMPANY = 2  # of the batches: the one whose rows are asked for in other company, too
OTHER_BATCH = 3  # rows
LARGE_BATCH = 4096
ROUNDING = 5e-5  # of the largest output; what float32 runtimes round otherwise for other batch sizes is below 1e-6
_SEED = 20220619  # any but 0: a model whose weights were drawn from that seed would be tried on its own weights
_LARGE_BYTES = 64 << 20  # of the large batch's inputs: 111 images of 3x224x224


@dataclass(frozen=True)
class Probe:
    """Inputs and what the model makes of them.

    Attributes:
        batches: inputs by name, (n, ...) float32; the random ones first.
        expected: outputs of all batches one after the other, (rows, output_dim).
        real_rows: how many of the last rows are a user's data.
    """

    batches: tuple[Batch, ...]
    expected: NDArray[np.floating[Any]]
    real_rows: int = 0


def make_probe(model: Model, real: Batch | None = None) -> Probe:
    """Return the probe of ``model``, the same at every call.

    Args:
        model: answers the expected outputs.
        real: a user's rows; the random ones then have their mean, spread and range, feature by feature.

    Raises:
        ArtifactError: an answer is NaN or infinite; no file could be compared with it. Or the answer for a row depends
            on the rows beside it.
    """
    size = large_batch(model.interface.inputs)
    inputs = random_batches(model.interface.inputs, (*SMALL_BATCHES, size), real)
    real_batches = tuple(split_batch(real, size)) if real else ()
    every = (*inputs, *real_batches)
    rows = sum(len(next(iter(batch.values()))) for batch in real_batches)
    answers = [model.run(batch) for batch in every]
    expected = np.concatenate(answers)
    if not np.isfinite(expected).all():
        raise ArtifactError("makes NaN or infinity of finite inputs; are there such weights in it?")
    if company := company_that_matters(model.run, every[IN_COMPANY], answers[IN_COMPANY], ROUNDING):
        raise ArtifactError(
            f"computes something else of a row {company} than among others: it mixes the rows of a batch (a mean or "
            "norm over the batch, batch norm without its statistics, attention over rows), or draws numbers at random"
        )
    return Probe(every, expected, rows)


def company_that_matters(
    run: Callable[[Batch], NDArray[np.floating[Any]]], batch: Batch, answers: NDArray[np.floating[Any]], bound: float
) -> str | None:
    """Say in which company a row is answered otherwise than in ``batch``; None if in none.

    A gallery's blocks are cut as it suits, and a query comes alone. Equal batches have equal answers, whatever is done
    with them; so each row is asked for by itself, and all of them in batches of another size and in the opposite order.

    Args:
        run: answers one batch.
        batch: some rows.
        answers: what it answered to them.
        bound: how far answers may lie apart, as a share of the largest.
    """
    rows = len(answers)
    turned = {name: np.ascontiguousarray(array[::-1]) for name, array in batch.items()}
    asked = (
        ("by itself", np.concatenate([run(piece) for piece in split_batch(batch, 1)])),
        (f"in a batch of {OTHER_BATCH}", np.concatenate([run(piece) for piece in split_batch(batch, OTHER_BATCH)])),
        (f"in a batch of {rows} in the opposite order", run(turned)[::-1]),
    )
    largest = bound * float(np.abs(answers).max())
    for company, found in asked:
        if found.shape != answers.shape or not np.abs(found - answers).max() <= largest:
            return company
    return None


def large_batch(inputs: Shapes) -> int:
    """Return the rows of the largest batch: 4,096, or fewer where those would take more than 64 MiB."""
    row_bytes = sum(4 * math.prod(shape) for shape in inputs.values())
    return max(SMALL_BATCHES[-1] + 1, min(LARGE_BATCH, _LARGE_BYTES // row_bytes))


def random_batches(inputs: Shapes, sizes: tuple[int, ...], like: Batch | None = None) -> tuple[Batch, ...]:
    """Normal numbers for inputs of the given shapes: standard, or with mean, spread and range of the rows ``like``."""
    rng = np.random.default_rng(_SEED)

    def draw(name: str, size: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        numbers = rng.standard_normal((size, *shape), np.float32)
        if like is None:
            return numbers
        rows = like[name]
        drawn = np.clip(numbers * rows.std(axis=0) + rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0))
        return np.asarray(drawn, np.float32)

    return tuple({name: draw(name, size, shape) for name, shape in inputs.items()} for size in sizes)
