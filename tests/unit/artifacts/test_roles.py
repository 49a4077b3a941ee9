"""Names of inputs are read word by word: what only contains a word does not speak of it."""

from __future__ import annotations

import pytest

from fct_infer.artifacts.roles import roles, roles_by_name
from fct_infer.errors import ArtifactError


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("side_information", "old_embedding"), ("side", "old")),
        (("sideInfo", "x"), ("side", "old")),
        (("SIDE", "OLD"), ("side", "old")),
        (("phi_old", "psi"), ("old", "side")),
        (("x", "oldEmbedding2"), ("side", "old")),
        (("extracted_features", "attributes"), None),
        (("epsilon", "z"), None),
        (("consider", "z"), None),
        (("household", "age"), None),
        (("a", "member"), None),
        (("old_side", "side"), None),
    ],
)
def test_words_tell_and_parts_of_words_do_not(names, wanted):
    assert roles_by_name(names) == wanted
    if wanted is None:
        with pytest.raises(ArtifactError, match="nothing tells which"):
            roles(names, (8, 8))
        assert roles(names, (8, 5)) == ("old", "side")
