import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fct_infer.errors import UsageError
from fct_infer.evaluation import QueryRanks, flips


def ranks(first, precision=None):
    first = np.array(first)
    precision = np.where(first > 0, 1 / np.maximum(first, 1), np.nan) if precision is None else np.array(precision)
    return QueryRanks(
        first, precision, np.ones((len(first), 1)), np.ones(len(first)), np.zeros(len(first), bool), (1,), 10, "l2"
    )


BEFORE = ranks([1, 3, 2, 1, 0, 6])
AFTER = ranks([2, 1, 1, 4, 0, 7])


def test_flips_are_those_that_turned_right_or_wrong_largest_change_first():
    found = flips(BEFORE, AFTER)
    assert_array_equal(found.positive, [1, 2])  # average precision + 2/3, + 1/2
    assert_array_equal(found.negative, [3, 0])  # - 3/4, - 1/2
    assert found.queries == 5
    document = found.as_dict(examples=1)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["positive"] == {"count": 2, "rate": 0.4, "query_rows": [1]}
    assert document["negative"] == {"count": 2, "rate": 0.4, "query_rows": [3]}


def test_flips_at_a_larger_k():
    found = flips(BEFORE, AFTER, k=3)
    assert_array_equal(found.positive, [])
    assert_array_equal(found.negative, [3])


@pytest.mark.parametrize(
    ("before", "after", "k", "message"),
    [(BEFORE, ranks([1]), 1, "6 and 1"), (BEFORE, AFTER, 0, "k = 0"), (ranks([0, 1]), ranks([1, 0]), 1, "no query")],
)
def test_what_cannot_be_compared_is_refused(before, after, k, message):
    with pytest.raises(UsageError, match=message):
        flips(before, after, k)
