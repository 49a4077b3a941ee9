"""CMC and mAP the slow way: every distance in float64, every ranking sorted whole."""

import numpy as np


def distances(query, gallery, metric):
    """Return what a gallery is ordered by for one query, lower is nearer: (n_g,) float64."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    values = ((gallery - query) ** 2 if metric == "l2" else -gallery * query).sum(axis=1)
    if metric == "cosine":
        values /= np.sqrt((gallery**2).sum(axis=1)) * np.sqrt((query**2).sum())
    return values


def ranking(index, queries, gallery, metric, exclude_self):
    """Return the gallery rows of one query from nearest to furthest, ties by row.

    Neighbours in the order whose distances are equal to thirteen digits are ties.
    """
    values = distances(queries[index], gallery, metric)
    order = np.argsort(values)
    is_further = np.diff(values[order]) > 1e-13 * np.abs(values[order][1:])
    steps = np.empty(len(values), int)
    steps[order] = np.r_[0, np.cumsum(is_further)]
    rows = np.lexsort((np.arange(len(gallery)), steps))
    return rows[rows != index] if exclude_self else rows


def relevant_ranks(queries, gallery, query_labels, gallery_labels, metric="l2", exclude_self=False):
    """Return by query the ranks of the relevant rows, ascending; empty if none is."""
    return [
        [
            rank
            for rank, row in enumerate(ranking(index, queries, gallery, metric, exclude_self), 1)
            if gallery_labels[row] == query_labels[index]
        ]
        for index in range(len(queries))
    ]


def market1501(distances_of_query, pid, camera, gallery_pids, gallery_cameras, junk=(-1,), distractors=(0,)):
    """Return the ranks of a query's right rows by the protocol of Market-1501 (Zheng et al., ICCV 2015), as a list.

    A gallery box is junk if it shows no person, or the query's person in the query's camera: it takes no rank. Right is
    the person in another camera; everything else, distractors included, is wrong.
    """
    ranks, rank = [], 0
    for _, row in sorted((distance, row) for row, distance in enumerate(distances_of_query)):
        if gallery_pids[row] in junk or (gallery_pids[row] == pid and gallery_cameras[row] == camera):
            continue
        rank += 1
        if gallery_pids[row] == pid and pid not in junk and pid not in distractors:
            ranks.append(rank)
    return ranks


def first_ranks_and_precisions(*arrays, **options):
    """Return by query the rank of the first relevant item (0 if none) and the average precision (NaN if none)."""
    every = relevant_ranks(*arrays, **options)
    precision = [np.mean([n / rank for n, rank in enumerate(ranks, 1)]) if ranks else np.nan for ranks in every]
    return np.array([ranks[0] if ranks else 0 for ranks in every]), np.array(precision)
