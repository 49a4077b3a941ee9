"""A mixed gallery against brute force over what it should hold, through every kind of change."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from support.galleries import write_gallery
from support.programs import random_rows

from fct_infer import Program, Transformation, upgrade_gallery
from fct_infer.errors import ArrayError, ArtifactError, GalleryError, OutputError, UnsupportedError, UsageError
from fct_infer.index import GalleryIndex, IndexBuilder
from fct_infer.index.faiss_module import inner_indexes
from fct_infer.serving import CalibratedSpace, MixedGallery, NewSpace, StoredRows, calibrate
from fct_infer.transformation import Linear
from fct_infer.upgrade.settings import Settings

OLD, NEW, ROWS = 12, 8, (60, 40)
METRICS = ["l2", "ip", "cosine"]


def transformation():
    weight = random_rows(NEW, OLD, 7) / 4
    return Transformation(Program({"old": OLD}, (Linear("old", "new", weight, random_rows(1, NEW, 8)[0]),), "new"))


def by_metric(rows, metric):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric == "cosine" else rows


class Expected:
    """What should be there: id -> (row in the new space, whether it is new), searched one by one in float64."""

    def __init__(self, metric):
        self.metric, self.rows = metric, {}

    def put(self, ids, rows, is_new):
        self.rows |= {i: (row, is_new) for i, row in zip(ids.tolist(), by_metric(rows, self.metric), strict=True)}

    def check(self, gallery, queries, k, old_queries=None):
        distances, ids, is_new = gallery.search(queries, k, old_queries)
        known = list(self.rows)
        rows = np.stack([self.rows[i][0] for i in known]).astype(float)
        wanted = by_metric(queries.astype(float), self.metric)
        exact = wanted @ rows.T
        if self.metric == "l2":
            exact = ((wanted[:, None] - rows) ** 2).sum(axis=2)
        order = np.argsort(exact if self.metric == "l2" else -exact, axis=1)[:, :k]
        assert ids[:, : order.shape[1]].tolist() == [[known[place] for place in row] for row in order]
        assert distances[:, : order.shape[1]] == pytest.approx(np.take_along_axis(exact, order, axis=1), abs=1e-4)
        assert (ids[:, order.shape[1] :] == (-1 if ids.dtype.kind == "i" else "")).all()
        assert is_new[:, : order.shape[1]].tolist() == [[self.rows[known[place]][1] for place in row] for row in order]
        progress = gallery.progress
        assert (progress.rows, progress.new) == (len(known), sum(new for _, new in self.rows.values()))


def opened(tmp_path, metric="l2", ids="int", index="Flat"):
    """A gallery with h on read, what it should hold, and its ids."""
    arrays = write_gallery(tmp_path / "old", ROWS, OLD, side_dim=None, ids=ids)
    h = transformation()
    gallery = MixedGallery.open(tmp_path / "old", h, metric=metric, index=index)
    if index.startswith("HNSW"):  # let it look at every row
        inner_indexes(gallery._state.segments[0].space.index.index)[-1].hnsw.efSearch = 400
    expected = Expected(metric)
    expected.put(arrays["ids"], h(arrays["old"]), False)
    return gallery, expected, arrays["ids"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ids", ["int", "str"])
@pytest.mark.parametrize("index", ["Flat", "HNSW64"])
def test_every_change_is_what_brute_force_finds(tmp_path, metric, ids, index):
    gallery, expected, known = opened(tmp_path, metric, ids, index)
    queries = random_rows(5, NEW, 1)
    expected.check(gallery, queries, 7)
    rows = random_rows(80, NEW, 2)
    assert gallery.upsert(known[:70], rows[:70]) == 70
    expected.put(known[:70], rows[:70], True)
    expected.check(gallery, queries, 10)
    # A row replaced again, rows that are new to the gallery (text that is longer), and one of the old model.
    more = np.array([900, 901, 902]) if ids == "int" else np.array(["a much longer id", "b", "c"])
    batch = np.concatenate([known[:2], more])
    gallery.upsert(batch, rows[70:75])
    expected.put(batch, rows[70:75], True)
    old = random_rows(1, OLD, 3)
    gallery.upsert(known[90:91], old, model="old")
    expected.put(known[90:91], transformation()(old), False)
    assert gallery.delete(np.concatenate([known[3:5], known[80:81], more[:1]])) == 4
    assert gallery.delete(more[:1]) == 0
    for gone in (*known[3:5].tolist(), known[80].item(), more[0].item()):
        del expected.rows[gone]
    expected.check(gallery, queries, 12)
    assert gallery.model_of([known[0].item(), known[90].item(), known[3].item()]).tolist() == ["new", "old", ""]
    for _ in range(2):
        gallery.compact()
        assert gallery.progress.changed == 0
        expected.check(gallery, queries, 12)
        gallery.upsert(known[5:9], rows[75:79])
        expected.put(known[5:9], rows[75:79], True)
        expected.check(gallery, queries, 200)  # more than there are
    gallery.save(tmp_path / "saved")
    loaded = MixedGallery.load(tmp_path / "saved", transformation())
    expected.check(loaded, queries, 12)
    loaded.upsert(known[:1], rows[79:])
    expected.check(gallery, queries, 12)  # the one that was saved is as it was
    expected.put(known[:1], rows[79:], True)
    expected.check(loaded, queries, 12)


def test_neighbours_that_are_all_gone_are_asked_beyond(tmp_path):
    """In class order everything near a query is re-embedded first."""
    gallery, expected, _ = opened(tmp_path)
    query = random_rows(1, NEW, 1)
    _, ids, _ = gallery.search(query, 95)
    gallery.delete(ids[0])
    for gone in ids[0].tolist():
        del expected.rows[gone]
    expected.check(gallery, query, 5)


@pytest.mark.parametrize("ids", ["int", "str", None])
@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat"])
def test_a_published_gallery_is_opened_with_its_index(tmp_path, ids, index):
    arrays = write_gallery(tmp_path / "old", ROWS, OLD, side_dim=None, ids=ids)
    h = transformation()
    upgrade_gallery(tmp_path / "old", h, tmp_path / "new", settings=Settings(index=index, min_recall=0.999))
    gallery = MixedGallery.published(tmp_path / "new", h)
    expected, known = Expected("l2"), arrays.get("ids", np.arange(100))
    expected.put(known, h(arrays["old"]), False)
    gallery.upsert(known[:50], random_rows(50, NEW, 2))
    expected.put(known[:50], random_rows(50, NEW, 2), True)
    for _ in range(2):
        found = gallery.search(random_rows(20, NEW, 4), 5)
        assert len(np.unique(found.ids[0])) == 5
        if index == "Flat":
            expected.check(gallery, random_rows(5, NEW, 4), 5)
        gallery.compact()


def old_index(old, ids):
    builder = IndexBuilder("Flat", OLD, "l2", 1)
    builder.add(old, ids)
    return GalleryIndex(builder.index, "l2")


def test_rows_that_stay_in_the_database_are_compared_in_the_new_space(tmp_path):
    old, ids, h = random_rows(100, OLD), np.arange(100) * 2, transformation()
    space = StoredRows(old_index(old, ids), lambda wanted: (old[wanted // 2], None), h, "l2", depth=100)
    gallery, expected = MixedGallery(space, ids, h), Expected("l2")
    expected.put(ids, h(old), False)
    queries, old_queries = random_rows(4, NEW, 1), random_rows(4, OLD, 1)
    expected.check(gallery, queries, 5, old_queries)
    rows = random_rows(53, NEW, 2)
    gallery.upsert(ids[:50], rows[:50])
    expected.put(ids[:50], rows[:50], True)
    expected.check(gallery, queries, 60, old_queries)
    gallery.compact()
    gallery.upsert(ids[:3], rows[50:53])
    expected.put(ids[:3], rows[50:53], True)
    expected.check(gallery, queries, 60, old_queries)
    assert gallery.is_one_space
    gallery.save(tmp_path / "saved")
    expected.check(MixedGallery.load(tmp_path / "saved", h, space), queries, 60, old_queries)
    with pytest.raises(UsageError, match="give the space"):
        MixedGallery.load(tmp_path / "saved", h)
    with pytest.raises(UsageError, match="old_queries"):
        gallery.search(queries, 3)


def test_candidates_of_the_old_search_that_are_gone_leave_room_for_others():
    old, ids, h = random_rows(100, OLD), np.arange(100), transformation()
    space = StoredRows(old_index(old, ids), lambda wanted: (old[wanted], None), h, "l2", depth=10)
    gallery, old_query = MixedGallery(space, ids, h), random_rows(1, OLD, 1)
    order = np.argsort(((old - old_query) ** 2).sum(axis=1))
    gallery.delete(order[:50])
    found = gallery.search(random_rows(1, NEW, 1), 10, old_query)
    assert len(set(found.ids[0].tolist()) & set(order[50:80].tolist())) == 10


def test_the_last_resort_orders_by_rarity_and_says_what_it_loses():
    rng = np.random.default_rng(0)
    new = rng.standard_normal((600, NEW), np.float32)
    old = 100 * np.concatenate([new, rng.standard_normal((600, OLD - NEW), np.float32)], axis=1)
    calibration = calibrate(old[:400], new[:400])
    assert list(calibration.loss) == [0.25, 0.5, 0.75]
    assert all(0 < loss < 0.9 for loss in calibration.loss.values())
    assert "lost" in str(calibration)
    same = calibrate(10 * new[:400], new[:400])
    assert max(same.loss.values()) < 0.03  # only the scale was another
    assert max(same.loss.values()) < min(calibration.loss.values())
    assert (np.diff(calibration(np.linspace(-1e3, 1e6, 1000, dtype=np.float32))) >= 0).all()
    gallery = MixedGallery(CalibratedSpace(old_index(old, np.arange(600)), calibration), np.arange(600))
    assert not gallery.is_one_space
    gallery.upsert(np.arange(300), new[:300])
    found = gallery.search(new[:20], 10, old[:20])
    assert (found.ids[:, 0] == np.arange(20)).all()
    assert found.is_new.any() and not found.is_new.all()
    with pytest.raises(ArrayError, match="at least 200"):
        calibrate(old[:50], new[:50])


def test_what_was_changed_or_deleted_meanwhile_is_not_undone_by_re_embedding(tmp_path):
    gallery, expected, known = opened(tmp_path)
    rows = random_rows(10, NEW, 2)
    gallery.upsert(known[:1], rows[:1])
    gallery.delete(known[1:2])
    assert gallery.upsert(known[:4], rows[4:8], replacing="old") == 2
    expected.put(known[:1], rows[:1], True)
    del expected.rows[known[1].item()]
    expected.put(known[2:4], rows[6:8], True)
    expected.check(gallery, random_rows(3, NEW, 5), 99)


@pytest.mark.parametrize(
    "ids, rows, message",
    [
        ([1, 1], random_rows(2, NEW), "1 twice"),
        (["a"], random_rows(1, NEW), "wanted .* integers"),
        ([-1], random_rows(1, NEW), "nothing found"),
        ([1], random_rows(2, NEW), "1 entries for 2"),
        ([1], random_rows(1, NEW + 1), r"wanted float32 \(n, 8\)"),
        ([1], random_rows(1, NEW).astype(float), "wanted float32"),
        ([1, 2], np.array([[0] * NEW, [np.nan] * NEW], np.float32), "row 1 holds NaN"),
    ],
)
def test_what_cannot_be_stored_changes_nothing(tmp_path, ids, rows, message):
    gallery, expected, _ = opened(tmp_path)
    with pytest.raises(ArrayError, match=message):
        gallery.upsert(ids, rows)
    expected.check(gallery, random_rows(2, NEW), 5)


def test_other_refusals(tmp_path):
    gallery, _, known = opened(tmp_path, metric="cosine")
    with pytest.raises(ArrayError, match="row 0 is zero"):
        gallery.upsert(known[:1], np.zeros((1, NEW), np.float32))
    with pytest.raises(UsageError, match="wanted 'old' or 'new'"):
        gallery.upsert(known[:1], random_rows(1, NEW), model="h")
    index = old_index(random_rows(3, OLD), np.arange(3))
    with pytest.raises(GalleryError, match="1 occurs twice"):
        MixedGallery(NewSpace(index), np.array([0, 1, 1]))
    plain = MixedGallery(NewSpace(index), np.arange(3))
    with pytest.raises(UsageError, match="need h"):
        plain.upsert([1], random_rows(1, OLD), model="old")
    with pytest.raises(UnsupportedError, match="cannot be told apart"):
        MixedGallery(NewSpace(index), np.array([1.5, 2.5, 3.5]))


def test_readers_see_every_row_once_and_whole_while_writers_and_compaction_work(tmp_path):
    """Each version of a row has one value in all places; at any moment each id is there exactly once."""
    ids, h = np.arange(200), transformation()
    builder = IndexBuilder("Flat", NEW, "l2", 1)
    builder.add(np.full((200, NEW), 1, np.float32) * ids[:, None].astype(np.float32), ids)
    gallery = MixedGallery(NewSpace(GalleryIndex(builder.index, "l2")), ids, h)
    stop, failures = threading.Event(), []

    def write(seed):
        rng = np.random.default_rng(seed)
        mine = ids[ids % 2 == seed]
        while not stop.is_set():
            chosen = rng.choice(mine, 20, replace=False)
            value = np.float32(1000 * rng.integers(1, 50)) + chosen
            gallery.upsert(chosen, np.repeat(value[:, None].astype(np.float32), NEW, axis=1))

    def compact():
        while not stop.is_set():
            gallery.compact()

    def read():
        query = np.zeros((1, NEW), np.float32)
        for _ in range(150):
            distances, found, _ = gallery.search(query, 200)
            if sorted(found[0].tolist()) != ids.tolist():
                failures.append("not each row once")
            values = np.sqrt(distances[0] / NEW)
            if not np.allclose(np.round(values) % 1000, found[0]):
                failures.append("a row that is not whole")

    workers = [threading.Thread(target=write, args=(0,)), threading.Thread(target=write, args=(1,))]
    workers.append(threading.Thread(target=compact))
    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in (*workers, *readers):
        each.start()
    for each in readers:
        each.join()
    stop.set()
    for each in workers:
        each.join()
    assert not failures
    assert gallery.progress.rows == 200 and gallery.progress.new > 0


def test_a_saved_gallery_is_whole_or_refused(tmp_path):
    gallery, _, known = opened(tmp_path, ids="str")
    gallery.upsert(known[:3], random_rows(3, NEW))
    gallery.save(tmp_path / "saved")
    with pytest.raises(OutputError, match="exists already"):
        gallery.save(tmp_path / "saved")
    gallery.save(tmp_path / "saved", force=True)
    assert not (tmp_path / "saved.partial").exists()
    for file in sorted((tmp_path / "saved").rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(ArtifactError, match=file.name):
                MixedGallery.load(tmp_path / "saved")
            file.write_bytes(data)
    MixedGallery.load(tmp_path / "saved")
    (tmp_path / "saved" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        gallery.save(tmp_path / "saved", force=True)


def test_what_is_exchanged_for_ever_takes_no_more_room(tmp_path):
    gallery, expected, known = opened(tmp_path, ids="str")
    for turn in range(6):
        rows = random_rows(40, NEW, turn)
        names = np.array([f"of turn {turn}, number {number}" for number in range(20)])
        gallery.upsert(np.concatenate([known[:20], names]), rows)
        expected.put(np.concatenate([known[:20], names]), rows, True)
        gallery.compact()
        gallery.delete(names)
        for name in names.tolist():
            del expected.rows[name]
        expected.check(gallery, random_rows(3, NEW, 50), 9)
    assert gallery._state.segments[0].space.index.stored_ids.rows == 120


@pytest.mark.parametrize("ids", ["int", "str"])
def test_a_gallery_that_is_emptied_takes_rows_again(tmp_path, ids):
    gallery, expected, known = opened(tmp_path, ids=ids)
    gallery.delete(known)
    gallery.compact()
    found = gallery.search(random_rows(2, NEW), 3)
    assert found.ids.shape == (2, 3) and (found.ids == (-1 if ids == "int" else "")).all() and not found.is_new.any()
    assert gallery.progress.as_dict() == {"rows": 0, "new": 0, "changed": 0, "share": 1.0}
    gallery.save(tmp_path / "saved")
    expected.rows.clear()
    for each in (gallery, MixedGallery.load(tmp_path / "saved")):
        each.upsert(known[:9], random_rows(9, NEW))
        expected.put(known[:9], random_rows(9, NEW), True)
        expected.check(each, random_rows(2, NEW, 1), 4)
        each.compact()
        expected.check(each, random_rows(2, NEW, 1), 4)


def test_serving_needs_no_torch():
    code = "import sys, fct_infer.serving, fct_infer.cli.backfill; print({'torch', 'faiss'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
