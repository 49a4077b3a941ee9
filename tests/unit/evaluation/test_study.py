import dataclasses
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.embeddings import upgrade

from fct_infer.errors import ArrayError
from fct_infer.evaluation import Settings, StudyInputs, nearest, rank_queries, retrieved_rows, study, write_report

QUERIES, GALLERY, NEW_GALLERY, QUERY_LABELS, LABELS = upgrade(1)
OLD_QUERIES, OLD_GALLERY = QUERIES[:, :3].copy(), NEW_GALLERY[:, :3].copy()
INPUTS = StudyInputs(
    QUERIES,
    GALLERY,
    QUERY_LABELS,
    LABELS,
    old_queries=OLD_QUERIES,
    old_gallery=OLD_GALLERY,
    new_gallery=NEW_GALLERY,
    uncertainty=np.linalg.norm(GALLERY - NEW_GALLERY, axis=1),
)


def test_a_whole_study_has_every_part_and_is_strict_json():
    found = study(INPUTS, Settings(per_class=True))
    document = found.as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["cmc"]["1"] == rank_queries(QUERIES, GALLERY, QUERY_LABELS, LABELS).cmc(1)
    pairs = [(row["query_model"], row["gallery_model"]) for row in document["compatibility"]]
    assert pairs == [("old", "old"), ("new", "old, transformed"), ("new", "new")]
    assert list(document["backfilling"]) == [
        "most uncertain first",
        "far from the class mean first",
        "near the class mean first",
        "random",
        "oracle",
    ]
    for curve in document["backfilling"].values():
        assert curve["mean_average_precision"][0] == pytest.approx(document["mean_average_precision"], rel=1e-12)
        new_new = found.matrix.metrics()["new", "new"].mean_average_precision
        assert curve["mean_average_precision"][-1] == pytest.approx(new_new, rel=1e-12)
    assert document["backfilling"]["oracle"]["area"] != document["backfilling"]["random"]["area"]
    assert document["flips"]["queries"] == document["queries"]
    assert document["verdict"]["action"] in ("keep old", "transform", "transform and backfill", "re-embed")


def test_where_every_row_has_a_label_of_its_own_the_orders_by_class_are_left_out_and_it_is_said(tmp_path):
    found = study(dataclasses.replace(INPUTS, gallery_labels=np.arange(len(LABELS))), Settings())
    assert list(found.curves) == ["most uncertain first", "random", "oracle"]
    assert found.as_dict()["left_out"].startswith(
        "no order by the class mean: every gallery row has a label of its own"
    )
    write_report(tmp_path / "report.html", found, {})
    assert found.left_out in (tmp_path / "report.html").read_text()
    assert "left_out" not in study(INPUTS, Settings()).as_dict()


def test_the_oracle_is_no_advice():
    found = study(INPUTS, Settings())
    assert "oracle" not in found.verdict.sentence


def test_per_class_figures_are_those_of_the_queries_of_that_class():
    found = study(INPUTS, Settings(per_class=True))
    assert sorted(found.per_class) == sorted(set(QUERY_LABELS.tolist()) & set(LABELS.tolist()))
    for label, metrics in found.per_class.items():
        own = label == QUERY_LABELS
        assert metrics == rank_queries(QUERIES[own], GALLERY, QUERY_LABELS[own], LABELS).metrics()
    header, *body = found.by_class()
    assert header == ["label", "queries", "CMC-1 %", "CMC-5 %", "mAP %"]
    assert [float(line[-1]) for line in body] == sorted(float(line[-1]) for line in body)


def test_with_the_least_given_only_the_search_is_measured():
    found = study(StudyInputs(QUERIES, GALLERY, QUERY_LABELS, LABELS), Settings())
    assert found.verdict is None and found.flips is None and not found.curves and not found.per_class
    assert not {"compatibility", "flips", "backfilling", "per_class", "verdict"} & set(found.as_dict())


def test_an_old_gallery_searched_as_it_is_gives_old_old():
    found = study(
        StudyInputs(QUERIES, GALLERY, QUERY_LABELS, LABELS, old_queries=QUERIES + np.float32(0.3)), Settings()
    )
    assert set(found.matrix.ranks) == {("old", "old"), ("new", "old")}
    assert found.verdict.backfill is None


def test_retrieved_rows_show_flips_and_their_neighbours():
    found = study(INPUTS, Settings())
    rows = retrieved_rows(INPUTS, found)
    assert len({row.query for row in rows}) == len(rows) <= 8
    for row in rows:
        assert list(row.found) == ["old/old", "new/old, transformed", "new/new"]
        expected = nearest(QUERIES, NEW_GALLERY, 6)[1][row.query]
        assert_array_equal(row.found["new/new"], expected)
        assert row.is_relevant["new/new"] == (LABELS[expected] == QUERY_LABELS[row.query]).tolist()
    notes = {row.query: row.note for row in rows if row.note}
    assert set(notes.values()) <= {"repaired", "broken"} and notes
    assert all(query in found.flips.positive for query, note in notes.items() if note == "repaired")
    assert all(query in found.flips.negative for query, note in notes.items() if note == "broken")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"old_queries": OLD_QUERIES[:3]}, "old_queries has 3 rows, queries has 25"),
        ({"new_gallery": NEW_GALLERY[:3]}, "new_gallery has 3 rows, gallery has 90"),
        ({"uncertainty": np.ones(3)}, "uncertainty has 3 rows, gallery has 90"),
        ({"new_gallery": OLD_GALLERY}, "queries have 6 dims, new_gallery has 3"),
        ({"old_gallery": None}, "old_queries have 3 dims, gallery has 6"),
        ({"gallery": OLD_GALLERY}, "queries have 6 dims, gallery has 3"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ArrayError, match=message):
        study(dataclasses.replace(INPUTS, **changes), Settings())
