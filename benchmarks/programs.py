"""The transformations that are measured, with random weights."""

from __future__ import annotations

from fct_infer.transformation import Program
from tests.support.programs import paper_h, plain_mlp

PROGRAMS: dict[str, Program] = {  # both take 128 + 128 and give 128
    "small": plain_mlp(seed=2),  # two hidden layers of 256 on the plain concatenation
    "paper-size": paper_h(inner=2048, seed=1),
}
UPGRADE_PROGRAMS: dict[str, Program] = {  # of whole upgrades: 768 + 128 to 768 as well
    **PROGRAMS,
    "wide": plain_mlp(768, 128, 768, (1024, 1024), seed=3),
}
