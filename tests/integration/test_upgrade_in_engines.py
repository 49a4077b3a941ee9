"""Tables of engines that are read by key, upgraded where they are; made and read back by the engines' own clients."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from itertools import count

import numpy as np
import pytest
from click.testing import CliRunner
from support.children import run_code
from support.engines import ENGINES
from support.open_files import open_below
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.cli.gallery import command as gallery_command
from fct_infer.connectors import SourceOptions, keyed_source, keyed_work, open_destination, open_source
from fct_infer.connectors.table_versions import drop, rollback, versions
from fct_infer.errors import FctError, GalleryError, OutputError, UsageError
from fct_infer.upgrade.settings import Settings

ROWS, OLD, SIDE, NEW = 61, 12, 6, 10
H = Transformation(paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=1), threads=1)
OTHER = Transformation(paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=2), threads=1)
WIDER = Transformation(paper_h(old_dim=OLD + 1, side_dim=SIDE, new_dim=NEW, inner=16, seed=1), threads=1)
SETTINGS = Settings(index="auto", block_rows=7)
HOSTILE = "R\"; DROP TABLE items; --.'%s{}?&"


@pytest.fixture(params=list(ENGINES))
def engine(request, tmp_path, monkeypatch):
    monkeypatch.setattr(keyed_source, "PART_BYTES", 20 * 4 * (OLD + SIDE))
    return ENGINES[request.param](tmp_path)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, OLD), np.float32), rng.standard_normal((ROWS, SIDE), np.float32)


@pytest.fixture
def items(engine, rows):
    engine.create(OLD, SIDE)
    engine.insert(range(0, 3 * ROWS, 3), *rows)
    return engine


def upgrade(engine, h=H, column="embedding_v2", settings=SETTINGS, options=None, **more):
    source = open_source(engine.url(), options)
    return upgrade_gallery(source, h, open_destination(engine.url(column=column)), settings=settings, **more)


def wrong_rows(engine, h=H):
    """Return keys of rows whose new vector is missing or not that of what the row holds now."""
    old, side = engine.read("embedding"), engine.read("side")
    new, shown = engine.current()
    assert shown == {"embedding_v2"}
    keys = sorted(old)
    expected = h(np.stack([old[key] for key in keys]), np.stack([side[key] for key in keys]))
    wrong = [key for key, row in zip(keys, expected, strict=True) if not np.array_equal(new.pop(key, None), row)]
    return wrong + list(new)


def test_a_table_is_a_source(items, rows, tmp_path):
    with pytest.raises(UsageError, match="no ids lie beside"):
        open_source(items.url(), SourceOptions(ids=tmp_path / "ids.txt"))
    source = open_source(items.url())
    assert source.schema.rows == ROWS and len(source.parts()) == 4
    old, side = source.read_rows(np.array([1, 40, 60]))
    np.testing.assert_array_equal(old, rows[0][[1, 40, 60]])
    np.testing.assert_array_equal(side, rows[1][[1, 40, 60]])
    assert source.where(2) == "items.id = 6"
    report = upgrade_gallery(source, H, tmp_path / "out", settings=Settings(index="none", block_rows=7))
    written = open_source(report.dest)
    np.testing.assert_array_equal(written.read_rows(np.arange(ROWS))[0], H(*rows))
    with written.open_part(written.parts()[0]) as reader:
        assert reader.read_ids(0, 3).tolist() == [0, 3, 6]


def test_all_rows_are_h_of_theirs_and_versions_are_gone_through(items):
    report = upgrade(items)
    assert (report.rows, report.shards, report.verification.rows) == (ROWS, 4, ROWS)
    assert report.verification.min_cosine > 0.99999 and str(report.verification.worst_row).startswith("items.id = ")
    assert wrong_rows(items) == []
    assert [(each.version, each.is_current) for each in versions(items.url())] == [
        ("embedding", False),
        ("embedding_v2", True),
    ]
    assert rollback(items.url()) == "embedding"
    assert items.current()[1] == {"embedding"}
    with pytest.raises(OutputError, match="before which there was none"):
        rollback(items.url())
    upgrade(items)  # shown again, nothing else to do
    assert wrong_rows(items) == []
    with pytest.raises(OutputError, match="is what readers see"):
        drop(items.url(column="embedding_v2"))
    found = CliRunner().invoke(gallery_command, ["rollback", items.url(), "--json"])
    assert (found.exit_code, json.loads(found.stdout)) == (0, {"shown": "embedding"})
    drop(items.url(column="embedding_v2"))
    with pytest.raises(OutputError, match="no upgrade was begun here"):
        versions(items.url())


def test_another_transformation_is_another_version(items):
    upgrade(items)
    with pytest.raises(OutputError, match="published from other inputs or settings"):
        upgrade(items, OTHER)
    upgrade(items, OTHER, column="embedding_v3")
    assert items.current()[1] == {"embedding_v3"}
    assert rollback(items.url()) == "embedding_v2"
    assert wrong_rows(items) == []


@pytest.mark.parametrize("ids", [["a"], [f"é'\"{row:03d}\\" for row in range(ROWS)]])
def test_text_keys_and_one_row(engine, rows, ids):
    engine.create(OLD, SIDE, "VARCHAR")
    engine.insert(ids, rows[0][: len(ids)], rows[1][: len(ids)])
    upgrade(engine)
    assert wrong_rows(engine) == []


def test_lists_of_no_fixed_size(tmp_path, rows):
    engine = ENGINES["duckdb"](tmp_path)
    engine.run("CREATE TABLE items (id BIGINT, title VARCHAR, embedding FLOAT[], side FLOAT[])")
    engine.insert(range(ROWS), *rows)
    upgrade(engine, options=SourceOptions(embedding_column="embedding", side_column="side", id_column="id"))
    assert wrong_rows(engine) == []
    engine.run("UPDATE items SET embedding = embedding[1:7] WHERE id = 33")
    with pytest.raises(GalleryError, match=r"items.id = 33, column 'embedding': is 7 wide, wanted 12"):
        upgrade(engine, column="embedding_v3")
    engine.run("UPDATE items SET id = 32 WHERE id = 33")
    with pytest.raises(GalleryError, match="'id' does not tell the rows apart, 32 is there twice"):
        open_source(engine.url())


def test_keys_that_the_engine_takes_for_equal_are_refused(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(keyed_source, "PART_BYTES", 20 * 4 * (OLD + SIDE))
    engine = ENGINES["sqlite"](tmp_path)
    engine.run("CREATE TABLE items (id TEXT COLLATE NOCASE, title TEXT, embedding BLOB, side BLOB)")
    engine.insert([f"{'kK'[row % 2]}{row // 2:02d}" for row in range(ROWS)], *rows)
    with pytest.raises(GalleryError, match=r"key 'k00' was found by another one: .* name another key"):
        upgrade(engine, options=SourceOptions(id_column="id"))


def test_hostile_names_are_names(items, rows):
    other = type(items)(items.folder, HOSTILE)
    other.create(OLD, SIDE)
    other.insert(range(ROWS), *rows)
    source = open_source(other.url())
    upgrade_gallery(source, H, open_destination(other.url(column='c"--%s{}')), settings=SETTINGS)
    new, shown = other.current()
    assert shown == {'c"--%s{}'}
    np.testing.assert_array_equal(np.stack([new[row] for row in range(ROWS)]), H(*rows))
    assert len(items.read("embedding")) == ROWS
    assert rollback(other.url()) == "embedding"


def test_what_is_there_is_not_written_over(items):
    items.run(f"CREATE TABLE {items.name('items_embedding_v2')} (mine INTEGER)")
    with pytest.raises(OutputError, match="exists and was not made by an upgrade"):
        upgrade(items)
    with pytest.raises(UsageError, match="has a column 'title' already"):
        upgrade(items, column="title")
    with pytest.raises(UsageError, match="wanted auto or none"):
        upgrade(items, column="v3", settings=Settings(index="IVF4"))
    with pytest.raises(UsageError, match="as float32, float16 was asked for"):
        upgrade(items, column="v3", settings=Settings(dtype="float16"))


def test_rows_that_are_no_vectors_are_named(items):
    items.run(f"UPDATE {items.name('items')} SET embedding = NULL WHERE id = 33")
    with pytest.raises(GalleryError, match=r"items.id = 33, column 'embedding': is NULL"):
        upgrade(items)
    items.run(f"UPDATE {items.name('items')} SET embedding = ? WHERE id = 33", items.vector(np.full(OLD, np.nan, "f4")))
    with pytest.raises(GalleryError, match=r"items.id = 33"):
        upgrade(items)


@pytest.mark.parametrize("refused", [(WIDER, {}), (H, {"index": "Flat"}), (H, {"dtype": "float16"}), (OTHER, {})])
def test_a_refused_upgrade_leaves_nothing_open(items, refused, monkeypatch):
    """Without the collector, and while what was raised is kept, as notebooks do: its traceback holds the source."""
    h, settings = refused
    upgrade_gallery(items.url(), H, items.url(column="embedding_v2"), settings=SETTINGS)
    gc.disable()
    try:
        with pytest.raises(FctError) as kept:
            upgrade_gallery(items.url(), h, items.url(column="embedding_v2"), settings=Settings(**settings))
        with pytest.raises(GalleryError) as also_kept:
            open_source(items.url(), SourceOptions(embedding_column="title"))
        assert open_below(items.folder) == [] and kept.tb and also_kept.tb
    finally:
        gc.enable()


def test_what_is_written_after_publishing_is_caught_up_with(items, rows):
    upgrade(items)
    items.change(3, np.zeros(SIDE, np.float32))
    items.delete(6)
    items.insert([1000], rows[0][:1], rows[1][:1])
    if items.follows_writers:  # missing from the view, never there with a vector that is not theirs
        assert set(wrong_rows(items)) == {3, 1000}
        assert [each.waiting for each in versions(items.url())] == [0, 3]
        assert 3 not in items.current()[0]
    upgrade(items)
    assert wrong_rows(items) == []


def test_work_of_another_transformation_is_not_gone_on_with(items, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(keyed_work.KeyedWork, "settle", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            upgrade(items)
    with pytest.raises(OutputError, match="unfinished work of another upgrade"):
        upgrade(items, OTHER)
    assert upgrade(items).resumed_rows == ROWS
    assert wrong_rows(items) == []


def test_of_two_upgrades_of_one_version_one_goes_on(tmp_path, rows, monkeypatch):
    """Both have SQLite's database open; the later one takes over, and the earlier one writes nothing more."""
    monkeypatch.setattr(keyed_source, "PART_BYTES", 20 * 4 * (OLD + SIDE))
    items = ENGINES["sqlite"](tmp_path)
    items.create(OLD, SIDE)
    items.insert(range(ROWS), *rows)
    original = keyed_work.KeyedWork.write

    def overtaken(self, *written):
        monkeypatch.setattr(keyed_work.KeyedWork, "write", original)
        upgrade(items)
        return original(self, *written)

    monkeypatch.setattr(keyed_work.KeyedWork, "write", overtaken)
    with pytest.raises(OutputError, match="another upgrade has taken this one over"):
        upgrade(items)
    assert wrong_rows(items) == []


def wait_until(is_so):
    while not is_so():
        time.sleep(0.01)


def test_writers_meanwhile_are_followed(tmp_path, rows, monkeypatch):
    """Of SQLite, where others write at every moment: in the end all rows are right, and at no moment a wrong one."""
    monkeypatch.setattr(keyed_source, "PART_BYTES", 5 * 4 * (OLD + SIDE))
    items = ENGINES["sqlite"](tmp_path)
    items.create(OLD, SIDE)
    items.insert(range(ROWS), *rows)
    ended, wrote, seen = threading.Event(), [], []

    def write():
        rng = np.random.default_rng(1)
        for number in count():
            if ended.is_set():
                return
            items.change(int(rng.integers(0, ROWS)), rng.standard_normal(SIDE).astype(np.float32))
            items.insert([1000 + number], rng.standard_normal((1, OLD)).astype("f4"), np.ones((1, SIDE), "f4"))
            if number % 5 == 0:
                items.delete(1000 + number)
            wrote.append(number)
            time.sleep(0.002)

    def read():
        query = (
            'SELECT i.embedding, i.side, c.embedding FROM items AS i JOIN "items_current" AS c ON i.id = c.id '
            "WHERE c.embedding_version = 'embedding_v2'"
        )
        while not ended.is_set():
            if items.run("SELECT 1 FROM sqlite_master WHERE name = 'items_current'") and (found := items.run(query)):
                old, side, new = (
                    np.stack([items.array(value) for value in column]) for column in zip(*found, strict=True)
                )
                seen.append(bool(np.array_equal(H(old, side), new)))

    threads = [threading.Thread(target=each) for each in (write, read)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: wrote)
        upgrade(items, settings=Settings(index="none", block_rows=5))
        before = len(seen)
        wait_until(lambda: len(seen) >= before + 2)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert seen and all(seen)
    upgrade(items, settings=Settings(index="none", block_rows=5))
    assert wrong_rows(items) == []


CLIENT = """
import os, signal, sys
from support.engines import ENGINES
from support.programs import paper_h
from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import open_destination, open_source, keyed_source, registry
from fct_infer.upgrade.settings import Settings

url, point = sys.argv[1], int(sys.argv[2])
keyed_source.PART_BYTES = 12 * 4 * 18
h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1), threads=1)
destination, steps = open_destination(url + "&column=embedding_v2"), 0
source = open_source(url)

def counted(target, name):
    method = getattr(target, name)
    def run(*arguments):
        global steps
        for _ in ("before", "after"):
            steps += 1
            if steps == point:
                os.kill(os.getpid(), signal.SIGKILL)
            if _ == "before":
                found = method(*arguments)
        return found
    setattr(target, name, run)

opened = destination._open
def open_target(*arguments):
    store, target = opened(*arguments)
    for name in ("create", "write_book", "upsert", "delete", "show"):
        counted(target, name)
    return store, target
destination._open = open_target
upgrade_gallery(source, h, destination, settings=Settings(index="none", block_rows=4))
"""


def run_killed(engine, point):
    """Upgrade in another process, which kills itself at its step of that number."""
    found = run_code(CLIENT, engine.url(), point)
    return found.returncode, found.stderr


def test_killed_again_and_again_no_row_is_lost_or_wrong(items, rows):
    """Each run gets further than the one before; FCT_KILLS asks for more of them."""
    kills, killed, code = int(os.environ.get("FCT_KILLS", "1")), 0, -signal.SIGKILL
    step = max(1, 24 // kills)
    point = 9 if kills == 1 else 2
    while code == -signal.SIGKILL:
        code, error = run_killed(items, point)
        killed += code == -signal.SIGKILL
        point += step
        items.change(3 * (killed % ROWS), np.full(SIDE, killed, np.float32))
        items.delete(3 * (ROWS - 1 - killed))
        items.insert([1000 + point], rows[0][:1] * killed, rows[1][:1])
    assert code == 0, error
    assert killed
    print(f"killed {killed} times")  # shown by pytest -s
    upgrade(items, settings=Settings(index="none", block_rows=4))
    assert wrong_rows(items) == []
