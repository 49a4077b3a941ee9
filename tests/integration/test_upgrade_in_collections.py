"""Collections upgraded where they are: Chroma itself, Milvus and Qdrant by what stands in for them."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from support.children import run_code
from support.collections import COLLECTIONS
from support.programs import linear_map, paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import keyed_source, open_destination, open_source
from fct_infer.connectors.table_versions import drop, rollback, versions
from fct_infer.errors import OutputError, UsageError
from fct_infer.upgrade.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients

ROWS, OLD, SIDE, NEW = 41, 12, 6, 10
H = Transformation(paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=1), threads=1)
ALONE = Transformation(linear_map(OLD, NEW), threads=1)
SETTINGS = Settings(block_rows=7)


@pytest.fixture(params=list(COLLECTIONS))
def engine(request, tmp_path, monkeypatch):
    monkeypatch.setattr(keyed_source, "PART_BYTES", 12 * 4 * (OLD + SIDE))
    return COLLECTIONS[request.param](tmp_path)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, OLD), np.float32), rng.standard_normal((ROWS, SIDE), np.float32)


@pytest.fixture
def items(engine, rows):
    engine.create(OLD, SIDE)
    engine.insert(range(0, 3 * ROWS, 3), *rows)
    return engine


def h_of(engine):
    return H if engine.has_side else ALONE


def upgrade(engine, column="v2", **more):
    destination = open_destination(engine.url(column=column))
    return upgrade_gallery(open_source(engine.url()), h_of(engine), destination, settings=SETTINGS, **more)


def wrong_rows(engine, column="v2"):
    """Return keys of rows that are not there, or not h of what they are now with all they carry."""
    old, new, wrong = engine.rows(), engine.rows(f"items_{column}"), []
    for key, row in old.items():
        side = None if row.side is None else row.side[None]
        expected = h_of(engine)(row.embedding[None], side)[0]
        found = new.pop(key, None)
        if found is None or not np.array_equal(found.embedding, expected) or found.carried != row.carried:
            wrong.append(key)
    return wrong + list(new)


def test_rows_go_into_a_folder(items, rows, tmp_path):
    source = open_source(items.url())
    assert source.schema.rows == ROWS and (source.schema.side_dim is not None) == items.has_side
    report = upgrade_gallery(source, h_of(items), tmp_path / "out", settings=Settings(index="none", block_rows=7))
    source.store.close()
    written, known = open_source(report.dest), items.rows()
    with written.open_part(written.parts()[0]) as reader:
        ids = reader.read_ids(0, 5).tolist()
    new, _ = written.read_rows(np.arange(5))
    for key, row in zip(ids, new, strict=True):
        side = None if known[key].side is None else known[key].side[None]
        np.testing.assert_array_equal(row, h_of(items)(known[key].embedding[None], side)[0])


def test_a_collection_is_upgraded_shown_changed_and_rolled_back(items, rows):
    report = upgrade(items)
    assert (report.rows, report.verification.rows) == (ROWS, ROWS)
    assert wrong_rows(items) == []
    assert not items.has_alias or items.shown() == "items_v2"
    items.insert([3], np.ones((1, OLD), "f4"), np.ones((1, SIDE), "f4"))
    items.delete(6)
    items.insert([1000], rows[0][:1], rows[1][:1])
    assert len(wrong_rows(items)) == (
        2 if isinstance(items, COLLECTIONS["edge"]) else 3
    )  # a vector goes with its point
    upgrade(items)
    assert wrong_rows(items) == []
    if not items.has_alias:
        with pytest.raises(UsageError, match="by its name"):
            rollback(items.url(column="v2"), versions(items.url(column="v2"))[0].version)
        return
    assert [each.is_current for each in versions(items.url())] == [False, True]
    with pytest.raises(OutputError, match="is what readers see"):
        drop(items.url(column="v2"))
    assert rollback(items.url()) == "original" and items.shown() == "items"
    drop(items.url(column="v2"))
    with pytest.raises(OutputError, match="no upgrade was begun"):
        versions(items.url())


def test_somebody_elses_collection_is_left_alone(items):
    upgrade(items)
    if isinstance(items, COLLECTIONS["edge"]):
        with pytest.raises(OutputError, match="has a vector 'side' that no upgrade made"):
            upgrade(items, "side")
        return
    with items.client() as client:
        if items.scheme == "chroma":
            client.create_collection("items_v4", embedding_function=None)
        elif items.scheme == "qdrant":
            client.create_collection(
                "items_v4", vectors_config=items.library.models.VectorParams(size=2, distance="Dot")
            )
        else:
            client.create_collection("items_v4", dimension=2)
    with pytest.raises(OutputError, match="was not made by an upgrade"):
        upgrade(items, "v4")


@pytest.mark.parametrize("scheme", ["qdrant", "edge", "chroma"])
def test_normalised_vectors_are_refused_unless_they_are_meant(scheme, tmp_path, rows):
    engine = COLLECTIONS[scheme](tmp_path)
    engine.create(OLD, SIDE, metric="cosine")
    engine.insert(range(ROWS), *rows)
    with pytest.raises(UsageError, match="gives them back normalised"):
        open_source(engine.url())
    source = open_source(engine.url(normalised="yes"))
    assert source.schema.rows == ROWS
    if scheme == "edge":  # the others' answers depend on what they have moved into their index
        assert np.allclose(np.linalg.norm(source.read_rows(np.arange(3))[0], axis=1), 1, atol=1e-5)


def test_text_keys(tmp_path, rows):
    engine = COLLECTIONS["milvus"](tmp_path)
    engine.create(OLD, SIDE, is_text=True)
    engine.insert([f"é'{row:03d}" for row in range(ROWS)], *rows)
    upgrade(engine)
    assert wrong_rows(engine) == []


CLIENT = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from support.programs import paper_h, linear_map
from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import open_destination, open_source, keyed_source
from fct_infer.upgrade.settings import Settings

url, point, with_side = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
keyed_source.PART_BYTES = 12 * 4 * 18
program = paper_h(12, 6, 10, inner=16, seed=1) if with_side else linear_map(12, 10)
h = Transformation(program, threads=1)
destination, steps = open_destination(url + "&column=v2"), 0
opened = destination._open

def counted(target, name):
    method = getattr(target, name)
    def run(*arguments):
        global steps
        for when in ("before", "after"):
            steps += 1
            if steps == point:
                os.kill(os.getpid(), signal.SIGKILL)
            found = method(*arguments) if when == "before" else found
        return found
    setattr(target, name, run)

def open_target(*arguments):
    store, target = opened(*arguments)
    for name in ("create", "write_book", "upsert", "delete", "show"):
        counted(target, name)
    return store, target
destination._open = open_target
upgrade_gallery(open_source(url), h, destination, settings=Settings(block_rows=7))
"""


def test_killed_again_and_again_no_row_is_lost_or_wrong(items, rows):
    """Each run gets further than the one before; FCT_KILLS asks for more of them."""
    kills, killed, point, code = int(os.environ.get("FCT_KILLS", "1")), 0, 7, -signal.SIGKILL
    if isinstance(items, COLLECTIONS["qdrant"]) and "FCT_KILLS" not in os.environ:
        pytest.skip("its local mode is no engine")
    while code == -signal.SIGKILL and killed < kills:
        items.release()
        found = run_code(CLIENT, items.url(), point, items.has_side)
        code = found.returncode
        killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), found.stderr
        point += max(1, 12 // kills)
        items.insert([3 * killed], np.full((1, OLD), killed, "f4"), np.ones((1, SIDE), "f4"))
        items.delete(3 * (ROWS - 1 - killed))
    assert killed
    print(f"killed {killed} times")  # shown by pytest -s
    upgrade(items)
    assert wrong_rows(items) == []
