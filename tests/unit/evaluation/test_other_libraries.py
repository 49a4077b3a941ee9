"""The figures are those of torchmetrics, given our ranks as scores: it orders ties at will, and zero is irrelevant."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from support.retrieval_reference import ranking
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalRecall, RetrievalRPrecision

from fct_infer.evaluation import retrieval_metrics

KS = (1, 5, 20)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_agrees_with_torchmetrics(metric, exclude_self, tied):
    rng = np.random.default_rng(1)
    gallery, labels = rng.standard_normal((200, 4)).astype(np.float32), rng.integers(0, 6, 200)
    gallery = np.rint(gallery) + np.eye(4, dtype=np.float32)[0] * 9 if tied else gallery
    count = 200 if exclude_self else 40
    queries, query_labels = gallery[:count], labels[:count] if exclude_self else rng.integers(0, 6, count)
    order = [ranking(index, queries, gallery, metric, exclude_self) for index in range(count)]
    scores = torch.from_numpy(np.tile(1 / np.arange(1.0, len(order[0]) + 1), count))
    relevant = torch.from_numpy(np.concatenate([labels[rows] == query_labels[at] for at, rows in enumerate(order)]))
    of_query = torch.arange(count).repeat_interleave(len(order[0]))
    found = retrieval_metrics(queries, gallery, query_labels, labels, metric=metric, exclude_self=exclude_self, ks=KS)
    theirs = [
        RetrievalMAP(),
        RetrievalRPrecision(),
        *(kind(top_k=k) for kind in (RetrievalHitRate, RetrievalRecall) for k in KS),
    ]
    ours = [found.mean_average_precision, found.r_precision, *found.cmc.values(), *found.recall.values()]
    assert_allclose([float(one(scores, relevant, indexes=of_query)) for one in theirs], ours, atol=1e-6)
