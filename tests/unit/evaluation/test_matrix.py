import json
from xml.etree import ElementTree

import numpy as np
import pytest
from support.embeddings import upgrade

from fct_infer.errors import UsageError
from fct_infer.evaluation import average_accuracy, average_compatibility, compatibility_matrix, rank_queries

QUERIES, TRANSFORMED, NEW, QUERY_LABELS, LABELS = upgrade(1)
OLD_QUERIES, OLD = QUERIES[:, :4].copy(), NEW[:, :4].copy()


def test_all_pairs_of_equal_dims_are_measured():
    seen = set()
    matrix = compatibility_matrix(
        {"old": OLD_QUERIES, "new": QUERIES},
        {"old": OLD, "old, transformed": TRANSFORMED, "new": NEW},
        QUERY_LABELS,
        LABELS,
        metric="cosine",
        ks=(1, 3),
        progress=lambda pair, _done, _all: seen.add(pair),
    )
    assert seen == {"old/old", "new/old, transformed", "new/new"}
    assert [[value is None for value in line] for line in matrix.merits()] == [
        [False, True, True],
        [True, False, False],
    ]
    alone = rank_queries(QUERIES, TRANSFORMED, QUERY_LABELS, LABELS, metric="cosine", ks=(1, 3)).metrics()
    assert matrix.metrics()["new", "old, transformed"] == alone
    assert matrix.merits()[1][1] == alone.mean_average_precision
    assert json.loads(json.dumps(matrix.as_dict(), allow_nan=False)) == matrix.as_dict()
    svg = ElementTree.fromstring(matrix.svg())
    texts = [text.text for text in svg.iter("text")]
    assert texts.count("–") == 3 and f"{100 * alone.mean_average_precision:.1f}" in texts
    assert "old, transformed" in texts


def test_no_pair_of_equal_dims_is_refused():
    with pytest.raises(UsageError, match="no query model has the dims"):
        compatibility_matrix({"new": QUERIES}, {"old": OLD}, QUERY_LABELS, LABELS)


def test_sequences_by_the_definitions_of_cores():
    merits = np.array([[0.5, 0.1, 0.0], [0.6, 0.7, 0.2], [0.4, 0.8, 0.9]])
    assert average_compatibility(merits) == pytest.approx(2 / 3)  # 0.6 > 0.5 and 0.8 > 0.7, but 0.4 < 0.5
    assert average_accuracy(merits) == pytest.approx((0.5 + 0.6 + 0.7 + 0.4 + 0.8 + 0.9) / 6)
    merits[2, 0] = merits[0, 0]
    assert average_compatibility(merits) == pytest.approx(2 / 3)  # the criterion is strict
    merits[2, 1] = np.nan
    assert average_compatibility(merits) == pytest.approx(1 / 3)
    assert average_accuracy(merits) == pytest.approx((0.5 + 0.6 + 0.7 + 0.5 + 0.9) / 6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4,)])
def test_a_sequence_wants_a_square_matrix(shape):
    with pytest.raises(UsageError, match="square matrix"):
        average_compatibility(np.ones(shape))
