"""Backfilling: orders, embedders, resuming, stopping, and what it does to a gallery that serves meanwhile."""

from __future__ import annotations

import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from support.galleries import write_gallery
from support.programs import linear_map, random_rows

from fct_infer import Transformation
from fct_infer.connectors import open_source
from fct_infer.errors import ArrayError, ArtifactError, GalleryError, OutputError, StoppedError, UsageError
from fct_infer.serving import Backfiller, MixedGallery, Settings, count_parts, forecast_backfill, read_backfilled
from fct_infer.serving.embedders import HttpEmbedder, embedded, open_embedder
from fct_infer.serving.orders import access_order, distance_order

ROWS, DIM = 300, 6


class Model:
    """New embeddings of a gallery by id; counts what it is asked for, and may fail after some."""

    def __init__(self, ids, rows):
        self.rows, self.asked, self.fails_after = dict(zip(ids.tolist(), rows, strict=True)), [], None

    def __call__(self, ids):
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise RuntimeError("the model is gone")
        self.asked += ids.tolist()
        return np.stack([self.rows[each] for each in ids.tolist()])


def gallery(path, ids="int"):
    """A source, its ids, its rows and a model."""
    arrays = write_gallery(path / "g", (200, 100), DIM, side_dim=None, ids=ids)
    new = arrays["old"] + np.float32(0.3) * random_rows(ROWS, DIM, 9)
    return open_source(path / "g"), arrays["ids"], arrays["old"], Model(arrays["ids"], new)


def backfiller(source, folder, embed, order=None, **settings):
    settings = {"probe_rows": 60, "batch_rows": 16, "part_rows": 50} | settings
    gallery = settings.pop("gallery", None)
    order = np.arange(ROWS) if order is None else order
    return Backfiller(source, folder, embed, order, gallery=gallery, settings=Settings(**settings))


def read(folder):
    parts = list(read_backfilled(folder))
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([rows for _, rows in parts])


@pytest.mark.parametrize("ids", ["int", "str"])
def test_all_rows_are_re_embedded_in_the_order_after_the_probe(tmp_path, ids):
    source, known, _, model = gallery(tmp_path, ids)
    order = np.arange(ROWS)[::-1].copy()
    report = backfiller(source, tmp_path / "new", model, order).run()
    found, rows = read(tmp_path / "new")
    assert sorted(found.tolist()) == sorted(known.tolist()) and len(model.asked) == ROWS
    assert np.array_equal(rows, np.stack([model.rows[each] for each in found.tolist()]))
    probe = set(found[:60].tolist())
    assert found[60:].tolist() == [each for each in known[order].tolist() if each not in probe]
    assert (report.new, report.left_out, report.reason, report.share) == (ROWS, 0, "all rows", 1)
    assert report.forecast.at(1) == 1 and report.forecast.at(0) < 0.95
    # What is written is a gallery like any other.
    assert open_source(tmp_path / "new").schema.rows == ROWS
    json.dumps(report.as_dict(), allow_nan=False)


def test_it_goes_on_where_it_was_stopped_and_asks_for_no_finished_part_again(tmp_path):
    source, known, _, model = gallery(tmp_path)
    model.fails_after = 170
    with pytest.raises(StoppedError, match="RuntimeError: the model is gone"):
        backfiller(source, tmp_path / "new", model).run()
    kept = read(tmp_path / "new")[0].tolist()
    assert len(kept) == 160  # 50 + 10 of the probe, and twice 50; of the next part nothing
    (tmp_path / "new" / "ids" / "00000099.npy").write_bytes(b"torn")
    model.asked, model.fails_after = [], None
    report = backfiller(source, tmp_path / "new", model).run()
    assert sorted(model.asked) == sorted(set(known.tolist()) - set(kept))
    assert (report.new, report.embedded) == (ROWS, 140)
    again = backfiller(source, tmp_path / "new", model).run()
    assert (again.embedded, again.reason) == (0, "all rows")
    assert open_source(tmp_path / "new").schema.rows == ROWS


def test_another_plan_is_refused_in_the_same_folder_unless_it_begins_again(tmp_path):
    source, _, _, model = gallery(tmp_path)
    backfiller(source, tmp_path / "new", model, until=0.5).run()
    with pytest.raises(OutputError, match="another model"):
        backfiller(source, tmp_path / "new", model, model="v3").run()
    with pytest.raises(OutputError, match="another order"):
        backfiller(source, tmp_path / "new", model, np.arange(ROWS)[::-1].copy()).run()
    assert backfiller(source, tmp_path / "new", model, model="v3").run(restart=True).embedded == ROWS
    (tmp_path / "mine").mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        backfiller(source, tmp_path / "mine", model).run()


def test_it_stops_at_a_share_and_when_more_gives_too_little(tmp_path):
    source, known, old, model = gallery(tmp_path)
    report = backfiller(source, tmp_path / "half", model, until=0.5).run()
    assert (report.reason, report.share) == ("share reached", 0.5)
    # The first fifty rows are all that h gets wrong.
    model.rows = dict(zip(known.tolist(), old, strict=True))
    wrong = known[:50].tolist()
    model.rows |= dict(zip(wrong, old[:50] + 3 * random_rows(50, DIM, 4), strict=True))
    report = backfiller(source, tmp_path / "new", model, stop_gain=0.005).run()
    assert report.reason == "gain too small"
    assert set(wrong) <= set(read(tmp_path / "new")[0].tolist()) and report.share < 0.6
    assert report.forecast.gain(report.reached) == (0, 0)


def test_the_stop_rule_looks_beyond_the_next_rows():
    new = random_rows(200, DIM)
    wrong = new + 3 * random_rows(200, DIM, 1)
    turns = np.arange(200) / 200
    late = forecast_backfill(np.where(turns[:, None] > 0.7, wrong, new), new, turns)
    assert late.gain(0.1)[0] == 0 and late.best_gain(0.1) > 0.02
    assert late.best_gain(1.0) == 0
    early = forecast_backfill(np.where(turns[:, None] < 0.2, wrong, new), new, turns)
    assert early.gain(0.0)[0] > 0.05 and early.best_gain(0.25) == 0
    with pytest.raises(ArrayError, match="at least 50"):
        forecast_backfill(new[:10], new[:10], turns[:10])


def test_rows_that_cannot_be_embedded_stay_as_they_are(tmp_path):
    source, known, _, model = gallery(tmp_path)
    lost = known[::7].tolist()
    model.rows |= dict.fromkeys(lost, np.full(DIM, np.nan, np.float32))
    report = backfiller(source, tmp_path / "new", model).run()
    assert (report.new, report.left_out) == (ROWS - len(lost), len(lost))
    assert not set(lost) & set(read(tmp_path / "new")[0].tolist())
    none = backfiller(source, tmp_path / "none", lambda ids: np.full((len(ids), DIM), np.nan), until=0.4).run()
    assert (none.new, none.left_out, none.forecast) == (0, 120, None)


def test_what_serves_meanwhile_gets_every_part_and_keeps_what_changed(tmp_path):
    _, known, old, _ = gallery(tmp_path)
    h = Transformation(linear_map(DIM, DIM))
    model = Model(known, h(old) + np.float32(0.1) * random_rows(ROWS, DIM, 9))
    served = MixedGallery.open(tmp_path / "g", h)
    changed = random_rows(1, DIM, 11)
    served.upsert(known[:1], changed)
    served.delete(known[1:2])
    job = Backfiller(
        open_source(tmp_path / "g"), tmp_path / "new", model, np.arange(ROWS), h=h, gallery=served,
        settings=Settings(probe_rows=60, until=0.6),
    )  # fmt: skip
    report = job.run()
    assert report.forecast.at(0.0) > 0.5
    new = set(read(tmp_path / "new")[0].tolist()) - {known[1].item()}
    assert served.progress.new == len(new | {known[0].item()})
    assert served.search(changed, 1).ids[0, 0] == known[0]
    assert served.model_of(known[1:2])[0] == ""
    # A process that starts later reads what is on the disk.
    later = MixedGallery.open(tmp_path / "g", h)
    for ids, rows in read_backfilled(tmp_path / "new"):
        later.upsert(ids, rows, replacing="old")
    assert later.progress.new == report.new == 180
    assert list(read_backfilled(tmp_path / "new", count_parts(tmp_path / "new"))) == []


def test_orders(tmp_path):
    source, known, old, _ = gallery(tmp_path)
    distance = np.linalg.norm(old - old.mean(axis=0), axis=1)
    assert (np.diff(distance[distance_order(source)]) <= 1e-6).all()
    labels = np.arange(ROWS) % 3
    means = np.stack([old[labels == each].mean(axis=0) for each in range(3)])
    by_class = np.linalg.norm(old - means[labels], axis=1)
    assert (np.diff(by_class[distance_order(source, labels=labels)]) <= 1e-6).all()
    log = tmp_path / "log"
    log.write_text(f"{known[5]}\n{known[7]} 3\n{known[5]},4\n\n999999999\n{10**25}\n{known[9]}\t2\n")
    order = access_order(known, log)
    assert order[:4].tolist() == [5, 7, 9, 0] and sorted(order) == list(range(ROWS))
    for ids in (known.astype(str), known.astype("S8")):
        assert access_order(ids, log)[:3].tolist() == [5, 7, 9]
    log.write_text("12 x\n")
    with pytest.raises(GalleryError, match="line 1 is '12 x"):
        access_order(known, log)
    assert access_order(known, _empty(tmp_path)).tolist() == list(range(ROWS))


def _empty(folder):
    (folder / "empty").write_text("")
    return folder / "empty"


def test_stored_vectors_are_matched_by_id(tmp_path):
    write_gallery(tmp_path / "new", (40, 20), DIM, side_dim=None, ids="str")
    arrays = write_gallery(tmp_path / "copy", (60,), DIM, side_dim=None, ids="str")
    embed = open_embedder(str(tmp_path / "new"))
    rows = embed(np.array([arrays["ids"][7], "unknown", arrays["ids"][50], arrays["ids"][3]]))
    assert np.array_equal(rows[[0, 2, 3]], arrays["old"][[7, 50, 3]]) and np.isnan(rows[1]).all()
    with pytest.raises(UsageError, match="ids are"):
        embed(np.array([1, 2]))


@pytest.mark.parametrize("spec", ["no_such_file.npy", "no_such_module:f", "json:no_such_name", "a b:c", "json:__doc__"])
def test_what_is_no_embedder_is_refused(spec):
    with pytest.raises(UsageError, match=r"neither a file|cannot be imported|wanted a function"):
        open_embedder(spec)


@pytest.mark.parametrize(
    "given, message",
    [
        (np.zeros((2, DIM)), "wanted numbers"),
        (np.zeros((3, DIM + 1)), "wanted numbers"),
        (np.full((3, DIM), "x"), "wanted numbers"),
        (np.array([[0] * DIM, [np.inf] * DIM, [0] * DIM]), "infinity for id 8"),
    ],
)
def test_what_is_no_embedding_is_refused(given, message):
    with pytest.raises(ArrayError, match=message):
        embedded(lambda ids: given, np.array([7, 8, 9]), DIM)


class Endpoint(BaseHTTPRequestHandler):
    """Doubles ids; answers as its server says, and fails first where it is told to."""

    def do_POST(self):
        ids = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["ids"]
        if self.server.failures:
            self.send_error(self.server.failures.pop())
            return
        rows = np.array([[2.0 * each] * DIM for each in ids], np.float32)
        body = {"json": json.dumps({"embeddings": [*rows[:-1].tolist(), None]}).encode(), "npy": _npy(rows)}
        body = body.get(self.server.kind, self.server.kind)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def _npy(rows):
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


@pytest.fixture
def endpoint():
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    server.kind, server.failures, server.url = "npy", [], f"http://127.0.0.1:{server.server_port}/embed"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_answers_in_json_or_npy_and_is_asked_again(endpoint):
    ids = np.array([1, 2, 3])
    embed = HttpEmbedder(endpoint.url, tries=3, wait=0.001)
    assert embed(ids).tolist() == [[2] * DIM, [4] * DIM, [6] * DIM]
    endpoint.kind, endpoint.failures = "json", [503, 429]
    rows, is_there = embedded(embed, ids, DIM)
    assert rows.tolist() == [[2] * DIM, [4] * DIM] and is_there.tolist() == [True, True, False]
    endpoint.failures = [503] * 3
    with pytest.raises(StoppedError, match="503"):
        embed(ids)
    endpoint.failures = [503, 404]  # the last one first
    with pytest.raises(StoppedError, match="404"):
        embed(ids)
    assert endpoint.failures == [503]  # what is wrong for good is not asked again


@pytest.mark.parametrize(
    "body", [b"<html>", b"{}", b'{"embeddings": [["x"]]}', b"\x93NUMPY\x01\x00", _npy(np.zeros((3, DIM)))[:-9]]
)
def test_an_endpoint_that_answers_something_else(endpoint, body):
    endpoint.kind = body
    with pytest.raises(ArrayError, match=r"answers"):
        HttpEmbedder(endpoint.url)(np.array([1, 2, 3]))


def test_the_rate_is_kept(tmp_path):
    source, _, _, model = gallery(tmp_path)
    begun = time.monotonic()
    backfiller(source, tmp_path / "new", model, rate=1000).run()
    assert time.monotonic() - begun >= 0.28  # the last of 300 rows were asked for after 284 had been waited for


@pytest.mark.parametrize("wrong", [{"until": 1.5}, {"rate": 0}, {"probe_rows": 5}, {"probe_rows": 0, "stop_gain": 0.1}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(UsageError):
        Settings(**wrong)


def test_a_damaged_part_is_named_and_two_do_not_append_at_once(tmp_path):
    source, _, _, model = gallery(tmp_path)

    def meanwhile(ids):
        with pytest.raises(OutputError, match="in use"):
            backfiller(source, tmp_path / "new", model).run()
        return model(ids)

    backfiller(source, tmp_path / "new", meanwhile).run()
    file = tmp_path / "new" / "embeddings" / "00000001.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"00000001\.npy: is damaged"):
        list(read_backfilled(tmp_path / "new"))
    with pytest.raises(ArtifactError, match="no folder of a backfill"):
        list(read_backfilled(tmp_path / "g"))
