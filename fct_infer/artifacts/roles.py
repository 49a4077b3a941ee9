"""Which input of somebody else's model is the old embedding and which the side-information, told by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fct_infer.errors import ArtifactError
from fct_infer.transformation import INPUTS

# Whole words, for "extracted" is not "extra" and "household" not "old".
_SIDE = frozenset({"side", "sideinfo", "sideinformation", "psi"})
_OLD = frozenset({"old", "phi", "embedding", "embeddings", "emb"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def roles(names: Sequence[str], widths: Sequence[int], old_first: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return ``old`` or ``side`` for each input, in the order given.

    A name that speaks of side-information settles it, else one that speaks of an embedding. Where no name does, inputs
    of different widths are taken as old, then side: a gallery with other widths will not fit.

    Args:
        names: of one or two inputs.
        widths: of the inputs.
        old_first: the names in the order old, side, where the user says it.

    Raises:
        ArtifactError: two inputs of one width whose names do not tell them apart, or ``old_first`` has other names.
    """
    if old_first is not None:
        if sorted(old_first) != sorted(names):
            raise ArtifactError(f"its inputs are {', '.join(names)}, not {', '.join(old_first)}")
        return tuple(INPUTS[list(old_first).index(name)] for name in names)
    found = roles_by_name(names)
    if found is None and widths[0] == widths[1]:
        raise ArtifactError(
            f"nothing tells which of its inputs {' and '.join(names)} is the old embedding and which the "
            f"side-information; say so, the old embedding first: fct-export --inputs {names[0]},{names[1]} "
            "(in Python old_first=)"
        )
    return found or INPUTS


def roles_by_name(names: Sequence[str]) -> tuple[str, ...] | None:
    """Like :func:`roles`, by the names alone; None where they do not tell."""
    if len(names) < len(INPUTS):
        return INPUTS[: len(names)]
    for words, role, other in ((_SIDE, "side", "old"), (_OLD, "old", "side")):
        spoken = [not words.isdisjoint(word.lower() for word in _WORD.findall(name)) for name in names]
        if all(spoken):
            return None  # of both, so of neither
        if any(spoken):
            return tuple(role if is_spoken else other for is_spoken in spoken)
    return None


def told(names: Sequence[str], found: Sequence[str]) -> str:
    """Return the assignment for people: ``inputs: x -> old, psi -> side``."""
    return "inputs: " + ", ".join(f"{name} -> {role}" for name, role in zip(names, found, strict=True))
