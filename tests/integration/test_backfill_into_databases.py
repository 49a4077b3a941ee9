"""A published version in a database whose vectors are replaced by those of the new model, while rows are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.engines import ENGINES
from support.postgres import fill, read, text
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.cli.backfill import command as backfill_command
from fct_infer.connectors import open_destination, open_source
from fct_infer.connectors.table_versions import open_version
from fct_infer.errors import OutputError
from fct_infer.gallery import GalleryWriter
from fct_infer.serving import Backfiller
from fct_infer.serving import Settings as BackfillSettings
from fct_infer.upgrade.settings import Settings

ROWS, OLD, SIDE, NEW = 60, 12, 6, 10
PROGRAM = paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=1)
H = Transformation(PROGRAM, threads=1)
RNG = np.random.default_rng(0)
ROWS_OLD, ROWS_SIDE = RNG.standard_normal((ROWS, OLD), np.float32), RNG.standard_normal((ROWS, SIDE), np.float32)
BETTER = RNG.standard_normal((ROWS, NEW)).astype(np.float32)


def upgrade(url):
    settings = Settings(index="none")
    return upgrade_gallery(open_source(url), H, open_destination(url + "&column=embedding_v2"), settings=settings)


@pytest.mark.parametrize("scheme", list(ENGINES))
def test_vectors_of_an_engine_are_replaced(scheme, tmp_path):
    items = ENGINES[scheme](tmp_path)
    items.create(OLD, SIDE)
    items.insert(range(ROWS), ROWS_OLD, ROWS_SIDE)
    with pytest.raises(OutputError, match="no upgrade was begun"):
        open_version(items.url(column="embedding_v2"))
    upgrade(items.url())
    better = RNG.standard_normal((3, NEW)).astype(np.float32)
    if items.follows_writers:
        items.change(9, np.zeros(SIDE, np.float32))
    done = open_version(items.url(column="embedding_v2")).upsert(np.array([9, 5, 1000]), better)
    assert done == (1 if items.follows_writers else 2)
    new, _ = items.current()
    np.testing.assert_array_equal(new[5], better[1])
    assert 1000 not in new and (9 in new) != items.follows_writers
    upgrade(items.url())  # catches up, and leaves what is better
    np.testing.assert_array_equal(items.current()[0][5], better[1])
    with pytest.raises(OutputError, match="no published version 'v3'"):
        open_version(items.url(column="v3"))


@pytest.mark.parametrize("scheme", list(ENGINES))
def test_a_row_that_was_caught_up_while_it_was_embedded_keeps_its_own_vector(scheme, tmp_path):
    items = ENGINES[scheme](tmp_path)
    items.create(OLD, SIDE)
    items.insert(range(ROWS), ROWS_OLD, ROWS_SIDE)
    upgrade(items.url())
    changed = RNG.standard_normal(SIDE).astype(np.float32)

    def change() -> None:
        items.change(7, changed)
        upgrade(items.url())

    backfill_while(change, items.url(), tmp_path / "new")
    check_changed(items.current()[0], changed)


@pytest.mark.parametrize("scheme", list(ENGINES))
def test_rows_are_read_from_the_file_that_they_are_written_into(scheme, tmp_path):
    items = ENGINES[scheme](tmp_path)
    items.create(OLD, SIDE)
    items.insert(range(ROWS), ROWS_OLD, ROWS_SIDE)
    upgrade(items.url())
    core_bundle(PROGRAM, tmp_path / "h.bundle")
    with GalleryWriter(tmp_path / "better") as writer:
        writer.append(BETTER, ids=np.arange(ROWS))
    arguments = [items.url(), "-o", tmp_path / "new", "--into", items.url(column="embedding_v2"), "--json"]
    arguments += ["--transformation", tmp_path / "h.bundle", "--embed", tmp_path / "better"]
    arguments += ["--probe-rows", 0, "--part-rows", 20, "--until"]
    for share in (50, 100):
        done = CliRunner().invoke(backfill_command, [*map(str, arguments), str(share)], standalone_mode=False)
        assert done.exception is None, done.exception
        assert json.loads(done.stdout)["new"] == ROWS * share // 100
    new, _ = items.current()
    assert all(np.array_equal(new[key], BETTER[key]) for key in range(ROWS))


def backfill_while(change, url, folder):
    """Re-embed all rows, 20 a part; rows change while those of the first part are embedded, and before they are kept.

    Twice, as a process that was killed would.
    """
    calls, source = [], folder.with_name("items")  # while DuckDB's own file is open here, no other client can write
    for name, rows in (("embeddings", ROWS_OLD), ("side_information", ROWS_SIDE), ("ids", np.arange(ROWS))):
        (source / name).mkdir(parents=True)
        np.save(source / name / "000000.npy", rows)
    source = open_source(source)

    def embed(ids):
        calls.append(ids)
        if len(calls) == 1:
            change()
        return BETTER[ids]

    settings = BackfillSettings(probe_rows=0, part_rows=20, batch_rows=20)
    for _ in range(2):
        target = open_version(url + "&column=embedding_v2")
        Backfiller(source, folder, embed, np.arange(ROWS), h=H, gallery=target, settings=settings).run()
    assert len(calls) == ROWS // 20


def check_changed(new, changed):
    """Row 7 is of what it was changed to, all others were re-embedded."""
    expected = H(ROWS_OLD[7:8], changed[None])[0]
    np.testing.assert_allclose(new[7], expected, rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(new[key], BETTER[key]) for key in range(ROWS) if key != 7)


def test_the_same_in_postgresql(postgres, tmp_path):
    postgres.create("marked")
    try:
        with postgres.connect("marked") as connection:
            fill(connection, range(ROWS), ROWS_OLD, ROWS_SIDE)
            upgrade(postgres.url("marked"))
            changed = RNG.standard_normal(SIDE).astype(np.float32)

            def change() -> None:
                connection.execute("UPDATE items SET side = %s WHERE id = 7", (text(changed),))
                upgrade(postgres.url("marked"))

            backfill_while(change, postgres.url("marked"), tmp_path / "new")
            check_changed(read(connection, "SELECT id, embedding::text FROM items_current", NEW), changed)
    finally:
        postgres.drop("marked")


def test_fct_backfill_writes_through_a_table_of_postgresql(postgres, tmp_path):
    postgres.create("backfilled")
    try:
        with postgres.connect("backfilled") as connection:
            fill(connection, range(ROWS), ROWS_OLD, ROWS_SIDE)
            url = postgres.url("backfilled")
            upgrade(url)
            connection.execute("UPDATE items SET side = %s WHERE id = 3", (text(np.zeros(SIDE)),))
            core_bundle(PROGRAM, tmp_path / "h.bundle")
            better = RNG.standard_normal((ROWS, NEW)).astype(np.float32)
            np.save(tmp_path / "better.npy", better)
            (tmp_path / "items.py").write_text(
                "import numpy as np\nrows = np.load('better.npy')\ndef embed(ids): return rows[ids]\n"
            )
            arguments = ("-o", "new", "--transformation", "h.bundle", "--embed", "items:embed", "--probe-rows", "0")
            into = ("--into", url + "&column=embedding_v2", "--until", "50", "--part-rows", "7", "--json")
            found = subprocess.run(
                [sys.executable, "-m", "fct_infer.cli.backfill", url, *arguments, *into],
                cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
                env=os.environ | {"PYTHONPATH": str(Path.cwd())},
            )  # fmt: skip
            assert found.returncode == 0, found.stderr
            assert json.loads(found.stdout)["new"] == ROWS // 2
            new = read(connection, "SELECT id, embedding::text FROM items_current", NEW)
            assert 3 not in new  # written since it was transformed
            expected = H(ROWS_OLD, ROWS_SIDE)
            is_better = [bool(np.array_equal(new[key], better[key])) for key in new]
            assert ROWS // 2 - 1 <= sum(is_better) <= ROWS // 2
            assert all(
                each or np.array_equal(new[key], expected[key]) for key, each in zip(new, is_better, strict=True)
            )
    finally:
        postgres.drop("backfilled")
