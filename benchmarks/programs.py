"""The two transformations that are measured, with random weights; both take 128 + 128 and give 128."""

from __future__ import annotations

from fct_infer.transformation import Program
from tests.support.programs import paper_h, plain_mlp

PROGRAMS: dict[str, Program] = {
    "small": plain_mlp(seed=2),  # two hidden layers of 256 on the plain concatenation
    "paper-size": paper_h(inner=2048, seed=1),
}
