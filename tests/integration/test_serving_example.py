"""The FastAPI example, asked by a real HTTP client over a socket while rows come in."""

from __future__ import annotations

import sys
import threading
import time
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from support.galleries import write_gallery
from support.programs import linear_map, random_rows

from fct_infer import Transformation, open_source
from fct_infer.serving import Backfiller, MixedGallery, Settings

httpx, uvicorn = pytest.importorskip("httpx"), pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

ROWS, OLD, NEW = 200, 8, 6
EXAMPLE = Path(__file__).parents[2] / "examples" / "serving_fastapi.py"


@pytest.fixture(scope="module")
def example():
    spec = util.spec_from_file_location("serving_fastapi", EXAMPLE)
    module = sys.modules["serving_fastapi"] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["serving_fastapi"]


class Server:
    """The example, served from a thread; a context manager that gives a client."""

    def __init__(self, app):
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self):
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        return self._client

    def __exit__(self, *_):
        self._client.close()
        self._server.should_exit = True
        self._thread.join()


def opened(folder, ids="str"):
    arrays = write_gallery(folder / "old", (ROWS,), OLD, side_dim=None, ids=ids)
    h = Transformation(linear_map(OLD, NEW))
    return MixedGallery.open(folder / "old", h), arrays, h


def search(client, vectors, k=3):
    answer = client.post("/search", json={"vectors": vectors.tolist(), "k": k})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@pytest.mark.parametrize("ids", ["int", "str"])
def test_search_upsert_delete_and_progress(tmp_path, example, ids):
    gallery, arrays, h = opened(tmp_path, ids)
    names, rows = arrays["ids"], h(arrays["old"])
    with Server(example.create_app(gallery)) as client:
        found = search(client, rows[:2])
        assert [each[0]["id"] for each in found] == names[:2].tolist()
        assert found[0][0]["model"] == "old" and found[0][0]["distance"] == pytest.approx(0, abs=1e-4)
        vector = random_rows(1, NEW, 3) + 5
        answer = client.post("/upsert", json={"ids": names[:1].tolist(), "vectors": vector.tolist()})
        assert answer.json() == {"written": 1}
        assert search(client, vector)[0][0] | {"distance": 0} == {"id": names[0].item(), "model": "new", "distance": 0}
        old = {"ids": names[1:2].tolist(), "vectors": random_rows(1, OLD, 4).tolist(), "model": "old"}
        assert client.post("/upsert", json=old).json() == {"written": 1}
        assert client.get("/progress").json() == {"rows": ROWS, "new": 1, "changed": 2, "share": 1 / ROWS}
        assert client.post("/delete", json={"ids": names[:1].tolist()}).json() == {"deleted": 1}
        assert len(search(client, vector, 999)[0]) == ROWS - 1


@pytest.mark.parametrize(
    "path, body, message",
    [
        ("/search", {"vectors": [[1.0] * (NEW + 1)]}, "wanted float32"),
        ("/search", {"vectors": [[1.0] * NEW, [1.0]]}, "several lengths"),
        ("/search", {"vectors": [[1e300] * NEW]}, "NaN or infinity"),
        ("/search", {"vectors": []}, "too_short"),
        ("/search", {"vectors": [[1.0] * NEW], "k": 0}, "greater_than_equal"),
        ("/upsert", {"ids": [1], "vectors": [[1.0] * NEW]}, "wanted (n,) text"),
        ("/upsert", {"ids": ["a", "a"], "vectors": [[1.0] * NEW] * 2}, "'a' twice"),
        ("/delete", {"ids": [""]}, "nothing found"),
    ],
)
def test_what_a_client_gets_wrong_is_told_and_changes_nothing(tmp_path, example, path, body, message):
    gallery, _, _ = opened(tmp_path)
    with Server(example.create_app(gallery)) as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 422 and message in answer.text, answer.text
        assert client.get("/progress").json()["changed"] == 0


def test_queries_are_answered_throughout_a_backfill_in_one_space(tmp_path, example, monkeypatch):
    """Every row's own new embedding finds it at any moment: transformed rows as well as re-embedded ones."""
    monkeypatch.setattr(example, "COMPACT_AT", 50)
    gallery, arrays, h = opened(tmp_path, "int")
    rows = dict(zip(arrays["ids"].tolist(), h(arrays["old"]) + np.float32(1e-3), strict=True))

    def embed(ids):
        time.sleep(0.02)
        return np.stack([rows[each] for each in ids.tolist()])

    settings = Settings(probe_rows=0, part_rows=20, batch_rows=20)
    job = Backfiller(
        open_source(tmp_path / "old"), tmp_path / "new", embed, np.arange(ROWS), h=h, settings=settings
    )  # fmt: skip
    with Server(example.create_app(gallery, tmp_path / "new", poll_seconds=0.01)) as client:
        worker = threading.Thread(target=job.run)
        worker.start()
        shares, deadline = set(), time.monotonic() + 30
        names = arrays["ids"]
        while (share := client.get("/progress").json()["share"]) < 1 and time.monotonic() < deadline:
            shares.add(share)
            found = search(client, np.stack([rows[each] for each in names.tolist()]), 1)
            assert [each[0]["id"] for each in found] == names.tolist()
        worker.join()
    assert share == 1 and len(shares) > 2
