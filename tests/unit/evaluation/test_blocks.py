"""Evaluation by workers elsewhere finds what this process finds."""

import weakref
from dataclasses import fields

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.elsewhere import Elsewhere
from support.embeddings import upgrade

import fct_infer
from fct_infer.errors import ArrayError, GalleryError, UnsupportedError, UsageError
from fct_infer.evaluation import (
    Exclusions,
    Settings,
    StoredEmbeddings,
    blocks,
    name_embeddings,
    nearest,
    neighbour_overlap,
    rank_queries,
    read_embeddings,
    retrieved_rows,
    scores,
    study,
)
from fct_infer.evaluation.blocks import kernels
from fct_infer.evaluation.inputs import read_study_inputs

QUERIES, GALLERY, NEW_GALLERY, QUERY_LABELS, LABELS = upgrade(1)
FILES = {
    "queries": QUERIES,
    "gallery": GALLERY,
    "query_labels": QUERY_LABELS,
    "gallery_labels": LABELS,
    "old_queries": QUERIES[:, :3].copy(),
    "old_gallery": NEW_GALLERY[:, :3].copy(),
    "new_gallery": NEW_GALLERY,
    "uncertainty": np.linalg.norm(GALLERY - NEW_GALLERY, axis=1),
}


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Files of an upgrade, of which few queries are scored at once."""
    monkeypatch.setattr(scores, "_BLOCK_BYTES", 4 * len(GALLERY) * 4)
    for name, array in FILES.items():
        np.save(tmp_path / f"{name}.npy", array)
    return {name: tmp_path / f"{name}.npy" for name in FILES}


def assert_same_ranks(one, other):
    for field in fields(one):
        assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("cpus", [1, 3])
def test_a_whole_study_is_the_same_to_the_last_digit(paths, metric, cpus):
    workers, seen = Elsewhere(cpus), []
    settings = Settings(metric, per_class=True)
    here = study(read_study_inputs(paths), settings)
    inputs = read_study_inputs(paths, named=True)
    there = study(inputs, settings, lambda *call: seen.append(call), workers)
    assert there.as_dict() == here.as_dict()
    for pair, ranks in here.matrix.ranks.items():
        assert_same_ranks(there.matrix.ranks[pair], ranks)
    assert retrieved_rows(inputs, there, workers) == retrieved_rows(read_study_inputs(paths), here)
    ranked = int((here.ranks.first_relevant > 0).sum())
    assert [call for call in seen if call[0] == "new/old, transformed"][-1][1:] == (ranked, ranked)
    assert seen[-1] == ("backfilling", ranked, ranked)
    assert workers.parts > (20 if cpus == 1 else 10)


def test_exclusions_travel(paths):
    cameras = np.arange(len(LABELS)) % 3
    search = {
        "exclusions": Exclusions(cameras[: len(QUERIES)], cameras, ignored_labels=(0,)),
        "metric": "cosine",
    }
    named = [name_embeddings(paths[name]) for name in ("queries", "gallery")]
    labels = QUERY_LABELS, LABELS
    there = rank_queries(*named, *labels, workers=Elsewhere(), **search)
    assert_same_ranks(there, rank_queries(QUERIES, GALLERY, *labels, **search))


def test_one_query_and_a_set_that_is_searched_in_itself(paths, tmp_path):
    one = name_embeddings(paths["gallery"])
    labels = np.zeros(len(LABELS), np.int64)
    assert_same_ranks(
        rank_queries(one, one, labels, labels, exclude_self=True, workers=Elsewhere()),
        rank_queries(GALLERY, GALLERY, labels, labels, exclude_self=True),
    )
    np.save(tmp_path / "one.npy", QUERIES[:1])
    assert_same_ranks(
        rank_queries(name_embeddings(tmp_path / "one.npy"), one, LABELS[:1], LABELS, workers=Elsewhere(cpus=4)),
        rank_queries(QUERIES[:1], GALLERY, LABELS[:1], LABELS),
    )


def test_neighbours_and_their_overlap(paths):
    named = {name: name_embeddings(paths[name]) for name in ("queries", "old_queries", "gallery", "new_gallery")}
    for found, wanted in zip(
        nearest(named["queries"], named["gallery"], 7, workers=Elsewhere()), nearest(QUERIES, GALLERY, 7), strict=True
    ):
        assert_array_equal(found, wanted)
    for names in (("gallery", "new_gallery"), ("gallery", "new_gallery", "queries")):
        arrays = [FILES[name] for name in names]
        assert neighbour_overlap(
            *(named[name] for name in names[:2]), queries=named["queries"] if names[2:] else None, workers=Elsewhere()
        ) == neighbour_overlap(*arrays[:2], queries=QUERIES if names[2:] else None)


def test_from_python_with_files_and_labels_in_memory(paths):
    given = {name: str(path) for name, path in paths.items()} | {"query_labels": QUERY_LABELS}
    there = fct_infer.evaluate(**given, executor=Elsewhere())
    assert there.as_dict() == fct_infer.evaluate(**given).as_dict()


def test_what_workers_cannot_read_is_refused_at_once(paths):
    workers = Elsewhere()
    with pytest.raises(UnsupportedError, match=r"an array of shape \(25, 6\) is in the memory of this process"):
        fct_infer.evaluate(QUERIES, paths["gallery"], QUERY_LABELS, LABELS, executor=workers)
    with paths["queries"].open("rb") as file, pytest.raises(UnsupportedError, match="is this process's own"):
        name_embeddings(f"/proc/self/fd/{file.fileno()}")
    with pytest.raises(UsageError, match="threads is 2, but workers elsewhere"):
        fct_infer.evaluate(
            *(paths[name] for name in ("queries", "gallery", "query_labels", "gallery_labels")),
            settings=Settings(threads=2),
            executor=workers,
        )
    assert workers.parts == 0


def ranked(paths, workers):
    named = [name_embeddings(paths[name]) for name in ("queries", "gallery")]
    return rank_queries(*named, QUERY_LABELS, LABELS, workers=workers)


def test_a_worker_lets_go_of_the_rows_of_a_gallery_once_it_can_score_them(paths, monkeypatch):
    read, held = blocks.read_named, {}

    def watched(embeddings):
        array = read(embeddings)
        held[embeddings.path.name] = weakref.ref(array)
        return array

    class Looks(Elsewhere):
        def each(self, job, parts, record):
            with job.open() as do:
                assert held["queries.npy"]() is not None and held["gallery.npy"]() is None
                for part in parts:
                    record(part, do(part))

    wanted = rank_queries(QUERIES, GALLERY, QUERY_LABELS, LABELS)
    monkeypatch.setattr(blocks, "read_named", watched)
    assert_same_ranks(ranked(paths, Looks()), wanted)


def test_a_bad_row_is_said_by_file_and_row(paths):
    bad = GALLERY.copy()
    bad[31, 2] = np.nan
    np.save(paths["gallery"], bad)
    with pytest.raises(GalleryError, match=r"gallery\.npy: row 31 holds a NaN"):
        ranked(paths, Elsewhere())
    bad[31] = 0
    np.save(paths["gallery"], bad)
    named = [name_embeddings(paths[name]) for name in ("queries", "gallery")]
    with pytest.raises(ArrayError, match="gallery: row 31 has length zero"):
        rank_queries(*named, QUERY_LABELS, LABELS, workers=Elsewhere(), metric="cosine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda path: np.save(path, GALLERY[:-1]),
            r"gallery.npy: is float32 \(89, 6\), where it was named float32 \(90",
        ),
        (lambda path: np.save(path, GALLERY.astype(np.float16)), "gallery.npy: is float16"),
        (lambda path: path.unlink(), "gallery.npy: cannot be read"),
    ],
)
def test_a_file_that_is_another_where_it_is_read(paths, change, words):
    named = [name_embeddings(paths[name]) for name in ("queries", "gallery")]
    change(paths["gallery"])
    with pytest.raises(GalleryError, match=words):
        rank_queries(*named, QUERY_LABELS, LABELS, workers=Elsewhere())


def test_machines_that_see_other_rows_of_the_same_shape(paths):
    class Changes(Elsewhere):
        def each(self, job, parts, record):
            with job.open() as do:
                np.save(paths["gallery"], GALLERY[::-1])
                with job.open() as other:
                    record(parts[0], do(parts[0]))
                    record(parts[1], other(parts[1]))

    with pytest.raises(
        GalleryError, match=r"gallery\.npy: was changed meanwhile, or differs on .* from other machines"
    ):
        ranked(paths, Changes())


def test_a_gallery_that_changes_between_two_searches(paths):
    class Changes(Elsewhere):
        def each(self, job, parts, record):
            super().each(job, parts, record)
            if job.work.embeddings[1].path.name == "gallery.npy":
                np.save(paths["gallery"], GALLERY + 1)

    with pytest.raises(GalleryError, match=r"/gallery\.npy: was changed meanwhile"):
        study(read_study_inputs(paths, named=True), Settings(), workers=Changes())


def test_machines_of_another_kind_are_refused_unless_they_are_let_in(paths, monkeypatch):
    class Another(Elsewhere):
        def each(self, job, parts, record):
            monkeypatch.setattr(blocks, "kernels", lambda: "others")
            super().each(job, parts, record)

    with pytest.raises(UnsupportedError, match=r"computes by others, the driver by NumPy .*last bits"):
        ranked(paths, Another())
    monkeypatch.undo()
    ranked(paths, Another(mixed_cpus=True))


def test_kernels_name_the_library_and_the_processor():
    assert np.__version__ in kernels() and kernels() == kernels()


@pytest.mark.parametrize(("rows", "block_rows", "threads"), [(1, 4, 1), (10, 3, 1), (10, 3, 2), (50_001, 4, 3)])
def test_parts_are_whole_blocks_and_not_too_many(rows, block_rows, threads):
    parts = blocks._parts(rows, block_rows, threads)
    assert [part.first_row for part in parts] == np.cumsum([0, *(part.rows for part in parts[:-1])]).tolist()
    assert sum(part.rows for part in parts) == rows and len(parts) <= 1024
    assert all(part.first_row % block_rows == 0 for part in parts)
    assert [part.name for part in parts] == sorted({part.name for part in parts})


def test_a_gallery_of_shards_and_a_file_are_named_without_being_read(tmp_path, monkeypatch):
    (tmp_path / "g" / "embeddings").mkdir(parents=True)
    for number, part in enumerate(np.array_split(GALLERY, 3)):
        np.save(tmp_path / "g" / "embeddings" / f"{number:06d}.npy", part)
    np.save(tmp_path / "g.npy", GALLERY)
    monkeypatch.chdir(tmp_path)
    for name in ("g", "g.npy"):
        named = name_embeddings(name)
        assert named == StoredEmbeddings(tmp_path / name, (90, 6), np.dtype(np.float32))
        assert_array_equal(read_embeddings(named.path), GALLERY)
        assert len(named) == 90


@pytest.mark.parametrize("array", [np.zeros((3, 4)), np.zeros(4, np.float32), np.zeros((0, 4), np.float32)])
def test_what_are_no_embeddings_is_said_without_reading(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(GalleryError, match=r"a\.npy: is .*wanted \(rows, dim\) float32 or float16"):
        name_embeddings(tmp_path / "a.npy")
