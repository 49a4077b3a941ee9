"""A table of a real PostgreSQL upgraded where it is."""

from __future__ import annotations

import gc
import json
import threading
import time

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from support.postgres import fill, read, text
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.cli.gallery import command as gallery_command
from fct_infer.cli.upgrade_gallery import command
from fct_infer.connectors import SourceOptions, open_destination, open_source, postgres_work
from fct_infer.connectors import postgres_source as module
from fct_infer.connectors.postgres_versions import drop, rollback, versions
from fct_infer.errors import FctError, GalleryError, GateError, OutputError, UsageError
from fct_infer.upgrade.settings import Settings

ROWS, OLD, SIDE, NEW = 61, 12, 6, 10
H = Transformation(paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=1), threads=1)
OTHER = Transformation(paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=2), threads=1)
WIDER = Transformation(paper_h(old_dim=OLD + 1, side_dim=SIDE, new_dim=NEW, inner=16, seed=1), threads=1)
SETTINGS = Settings(index="auto", block_rows=7)
HOSTILE = "R\"; DROP TABLE items; --.'%s{}"


@pytest.fixture
def connection(postgres, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 20 * 4 * (OLD + SIDE))
    postgres.create("inplace")
    with postgres.connect("inplace") as connection:
        yield connection
    postgres.drop("inplace")


@pytest.fixture
def rows(connection):
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, OLD), np.float32), rng.standard_normal((ROWS, SIDE), np.float32)


@pytest.fixture
def items(connection, rows):
    fill(connection, range(ROWS), *rows)


def upgrade(postgres, h=H, *, column="embedding_v2", table="items", settings=SETTINGS, options=None, **more):
    destination = open_destination(postgres.url("inplace", table, column=column))
    with open_source(postgres.url("inplace", table), options) as source:
        return upgrade_gallery(source, h, destination, settings=settings, **more)


def wrong_rows(connection, h=H, view="items_current", dim=NEW):
    """Return keys of rows whose new vector is missing or not that of what the row holds now."""
    old = read(connection, "SELECT id, embedding::text FROM items", OLD)
    side = read(connection, "SELECT id, side::text FROM items", SIDE)
    new = read(connection, f"SELECT id, embedding::text FROM {view} WHERE embedding_version <> 'embedding'", dim)
    keys = sorted(old)
    expected = h(np.stack([old[key] for key in keys]), np.stack([side[key] for key in keys]))
    wrong = [key for key, row in zip(keys, expected, strict=True) if not np.array_equal(new.pop(key, None), row)]
    return wrong + list(new)


def test_all_rows_are_h_of_theirs_and_are_found_by_the_index(postgres, connection, items, rows):
    report = upgrade(postgres)
    assert (report.rows, report.shards, report.verification.rows) == (ROWS, 4, ROWS)
    assert report.verification.min_cosine > 0.99999 and str(report.verification.worst_row).startswith("items.id = ")
    assert wrong_rows(connection) == []
    assert connection.execute("SELECT DISTINCT embedding_version FROM items_current").fetchall() == [("embedding_v2",)]
    connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_hashjoin = off")
    query = f"SELECT id FROM items_current ORDER BY embedding <-> '{text(H(*rows)[17])}' LIMIT 3"
    assert connection.execute(query).fetchone() == (17,)
    plan = "\n".join(line for (line,) in connection.execute("EXPLAIN " + query))
    assert "Index Scan using items_embedding_v2_idx" in plan
    assert [each.as_dict()["version"] for each in versions(postgres.url("inplace"))] == ["embedding", "embedding_v2"]


@pytest.mark.parametrize("index", ["none", "HNSW8", "IVF4"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_index_and_type_were_asked_for(postgres, connection, items, index, dtype):
    settings = Settings(index=index, metric="cosine", dtype=dtype, min_cosine=0.999)
    upgrade(postgres, settings=settings)
    kind = {"float32": "vector", "float16": "halfvec"}[dtype]
    found = [
        definition
        for (definition,) in connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE tablename = 'items_embedding_v2' AND indexname LIKE '%idx'"
        )
    ]
    wanted = {
        "none": [],
        "HNSW8": [f"USING hnsw (embedding_v2 {kind}_cosine_ops) WITH (m='8')"],
        "IVF4": [f"USING ivfflat (embedding_v2 {kind}_cosine_ops) WITH (lists='4')"],
    }[index]
    assert [each[each.index("USING") :] for each in found] == wanted
    for wrong, words in (("Flat", "wanted auto, none, HNSW"), ("PQ16", "wanted auto, none, HNSW")):
        with pytest.raises(UsageError, match=words):
            upgrade(postgres, settings=Settings(index=wrong), column="other")


@pytest.mark.parametrize("kind", ["uuid", "text"])
def test_keys_of_any_type_and_of_several_columns(postgres, connection, rows, kind):
    connection.execute(
        f'CREATE TABLE items ("Tenant" text, n {kind}, embedding vector({OLD}), side halfvec({SIDE}), '
        'PRIMARY KEY ("Tenant", n))'
    )
    for row in range(ROWS):
        key = f"00000000-0000-0000-0000-{row:012d}" if kind == "uuid" else f"é'{row:03d}\\"
        connection.execute(
            "INSERT INTO items VALUES (%s, %s, %s, %s)", (f't"{row % 2}', key, text(rows[0][row]), text(rows[1][row]))
        )
    upgrade(postgres)
    query = 'SELECT ("Tenant", n)::text, {}::text FROM {}'
    old = read(connection, query.format("embedding", "items"), OLD)
    side = read(connection, query.format("side", "items"), SIDE)
    new = read(connection, query.format("embedding", "items_current"), NEW)
    assert list(old) == list(side) and sorted(new) == sorted(old)
    expected = H(np.stack(list(old.values())), np.stack(list(side.values())).astype(np.float16))
    np.testing.assert_array_equal(np.stack([new[key] for key in old]), expected)


def test_hostile_names_are_names(postgres, connection, items, rows):
    fill(connection, range(ROWS), *rows, table=HOSTILE)
    column = 'c"--%s{}'
    upgrade(postgres, table=HOSTILE, column=column, settings=Settings(index="HNSW8", block_rows=7))
    view = sql.Identifier(HOSTILE + "_current")
    new = read(connection, sql.SQL("SELECT id, embedding::text FROM {}").format(view), NEW)
    np.testing.assert_array_equal(np.stack([new[row] for row in range(ROWS)]), H(*rows))
    connection.execute(
        sql.SQL("UPDATE {} SET side = {} WHERE id = 5").format(
            sql.Identifier(HOSTILE), sql.Literal(text(np.zeros(SIDE)))
        )
    )
    assert connection.execute(sql.SQL("SELECT count(*) FROM {}").format(view)).fetchone() == (ROWS - 1,)
    url = postgres.url("inplace", HOSTILE)
    assert [each.version for each in versions(url)] == ["embedding", column]
    assert rollback(url) == "embedding"
    drop(postgres.url("inplace", HOSTILE, column=column))
    assert connection.execute("SELECT count(*) FROM items").fetchone() == (ROWS,)
    with pytest.raises(UsageError, match="longer than 63 bytes"):
        upgrade(postgres, column="c" * 60)


# -- writers -----------------------------------------------------------------------------------------------------------


def write(connection, rng, number):
    """One commit of somebody else."""
    key = int(rng.integers(0, 2 * ROWS))
    kind = number % 4
    if kind == 0:
        connection.execute(
            "INSERT INTO items VALUES (%s, 'new', %s, %s) "
            "ON CONFLICT (id) DO UPDATE SET embedding = EXCLUDED.embedding",
            (key, text(rng.standard_normal(OLD)), text(rng.standard_normal(SIDE))),
        )
    elif kind == 1:
        connection.execute("DELETE FROM items WHERE id = %s", (key,))
    elif kind == 2:
        connection.execute("UPDATE items SET side = %s WHERE id = %s", (text(rng.standard_normal(SIDE)), key))
    else:
        other = int(rng.integers(1000, 1 << 60))
        connection.execute("UPDATE items SET id = %s, title = 'moved' WHERE id = %s", (other, key))


def test_what_is_written_at_every_stage_is_upgraded_too(postgres, connection, items):
    """Once between any two stages, and in the middle of each part."""
    rng, stages = np.random.default_rng(3), []

    def meanwhile(stage, done, _):
        stages.append(stage)
        for number in range(4):
            write(connection, rng, number)

    upgrade(postgres, progress=meanwhile)
    assert {"transform", "verify"} <= set(stages) and len(stages) > 10
    assert wrong_rows(connection) == []
    waiting = versions(postgres.url("inplace"))[1].waiting
    assert waiting == 0


def test_writers_that_never_stop(postgres, connection, items):
    ended, commits, errors = threading.Event(), [], []

    def run(seed):
        rng = np.random.default_rng(seed)
        try:
            with postgres.connect("inplace") as own:
                while not ended.is_set():
                    write(own, rng, len(commits))
                    commits.append(1)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        while len(commits) < 20 and not errors:
            time.sleep(0.01)
        upgrade(postgres)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not errors and len(commits) > 20
    upgrade(postgres)  # what was written after publishing
    assert wrong_rows(connection) == []


def test_a_row_written_after_publishing_is_missing_until_it_is_caught_up_with(postgres, connection, items):
    upgrade(postgres)
    connection.execute("UPDATE items SET embedding = %s WHERE id = 3", (text(np.ones(OLD)),))
    connection.execute("UPDATE items SET title = 'same vectors' WHERE id = 4")
    connection.execute("INSERT INTO items SELECT 500, title, embedding, side FROM items WHERE id = 5")
    assert wrong_rows(connection) == [3, 500]
    # Somebody who knows the new model writes its vector himself; that is kept.
    connection.execute("UPDATE items SET embedding = %s WHERE id = 6", (text(np.ones(OLD)),))
    connection.execute("INSERT INTO items_embedding_v2 VALUES (6, %s)", (text(np.full(NEW, 7)),))
    assert versions(postgres.url("inplace"))[1].waiting == 3
    upgrade(postgres)
    assert wrong_rows(connection) == [6]
    assert read(connection, "SELECT id, embedding::text FROM items_current WHERE id = 6", NEW)[6].tolist() == [7] * NEW


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_writer_who_cannot_see_the_new_vector_does_not_leave_it_behind(postgres, connection, items, level):
    upgrade(postgres)
    connection.execute("UPDATE items SET embedding = %s WHERE id = 3", (text(np.ones(OLD)),))
    with postgres.connect("inplace") as writer:
        writer.execute(f"BEGIN ISOLATION LEVEL {level}")
        writer.execute("SELECT count(*) FROM items_embedding_v2")
        upgrade(postgres)
        assert wrong_rows(connection) == []
        writer.execute("UPDATE items SET embedding = %s WHERE id = 3", (text(np.zeros(OLD)),))
        writer.execute("COMMIT")
    assert connection.execute("SELECT count(*) FROM items_embedding_v2 WHERE id = 3").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM items_current WHERE id = 3").fetchone() == (0,)
    upgrade(postgres)
    assert wrong_rows(connection) == []


def test_a_table_that_is_emptied_takes_its_new_vectors_along(postgres, connection, items, rows):
    upgrade(postgres)
    connection.execute("TRUNCATE items")
    assert connection.execute("SELECT count(*) FROM items_embedding_v2").fetchone() == (0,)


def test_who_writes_rows_needs_no_rights_on_what_is_beside(postgres, connection, items):
    connection.execute("DROP ROLE IF EXISTS writer, reader")
    connection.execute("CREATE ROLE writer LOGIN; CREATE ROLE reader LOGIN")
    connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON items TO writer; GRANT SELECT ON items TO reader")
    upgrade(postgres)
    with postgres.connect("inplace", "writer") as writer:
        writer.execute("UPDATE items SET side = %s WHERE id = 3", (text(np.ones(SIDE)),))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            writer.execute("DELETE FROM items_embedding_v2")
    with postgres.connect("inplace", "reader") as reader:
        assert reader.execute("SELECT count(*) FROM items_current").fetchone() == (ROWS - 1,)
    connection.execute("DROP OWNED BY writer, reader; DROP ROLE writer, reader")


# -- publishing and going back -----------------------------------------------------------------------------------------


def test_rolling_back_and_forward_keeps_prepared_statements(postgres, connection, items, rows):
    upgrade(postgres)
    url = postgres.url("inplace")
    with postgres.connect("inplace") as reader:
        query = "SELECT id, embedding, embedding_version FROM items_current ORDER BY id LIMIT 1"
        shown = [reader.execute(query, prepare=True).fetchone()[2]]
        for step in (lambda: rollback(url), lambda: rollback(url, "embedding_v2"), lambda: rollback(url)):
            step()
            shown.append(reader.execute(query, prepare=True).fetchone()[2])
        assert shown == ["embedding_v2", "embedding", "embedding_v2", "embedding"]
        np.testing.assert_allclose(
            np.array(
                json.loads(reader.execute("SELECT embedding::text FROM items_current WHERE id = 9").fetchone()[0])
            ),
            rows[0][9],
            rtol=1e-5,
        )
        upgrade(postgres, OTHER, column="embedding_v3")
        assert reader.execute(query, prepare=True).fetchone()[2] == "embedding_v3"
        assert wrong_rows(connection, OTHER) == []
        assert rollback(url) == "embedding_v2"
        assert [(each.version, each.is_current) for each in versions(url)] == [
            ("embedding", False), ("embedding_v2", True), ("embedding_v3", False)
        ]  # fmt: skip
    with pytest.raises(OutputError, match="no published version 'nothing'"):
        rollback(url, "nothing")
    with pytest.raises(OutputError, match="is what readers see"):
        drop(postgres.url("inplace", column="embedding_v2"))
    drop(postgres.url("inplace", column="embedding_v3"))
    assert rollback(url) == "embedding"
    with pytest.raises(OutputError, match="before which there was none"):
        rollback(url)


def test_a_version_is_not_replaced_by_another(postgres, connection, items):
    upgrade(postgres)
    with pytest.raises(OutputError, match="name another column"):
        upgrade(postgres, OTHER)
    with pytest.raises(OutputError, match="name another column"):
        upgrade(postgres, OTHER, restart=True, force=True)
    assert wrong_rows(connection) == []


@pytest.mark.parametrize("name", ["items_embedding_v2", "items_embedding_v2_changes", "items_current"])
def test_what_somebody_else_made_is_not_touched(postgres, connection, items, name):
    connection.execute(f"CREATE TABLE {name} (x int)")
    with pytest.raises(OutputError, match=f"{name}: exists and was not made by an upgrade"):
        upgrade(postgres)
    assert connection.execute("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").fetchone() == (0,)


def test_unfinished_work_of_another_upgrade_is_not_resumed(postgres, connection, items):
    with pytest.raises(KeyboardInterrupt):
        upgrade(postgres, progress=stop_at("transform", 30))
    with pytest.raises(OutputError, match="different: transformation"):
        upgrade(postgres, OTHER)
    assert upgrade(postgres, OTHER, restart=True).resumed_rows == 0
    assert wrong_rows(connection, OTHER) == []


@pytest.mark.parametrize("refused_by", ["its plan", "its work", "the database"])
def test_no_index_waits_for_the_snapshot_of_a_run_that_failed_before(
    postgres, connection, items, monkeypatch, refused_by
):
    """One is built concurrently, after the last transaction that began before has ended."""
    url, dest = postgres.url("inplace"), postgres.url("inplace", column="embedding_v2")
    refused = WIDER if refused_by == "its plan" else OTHER
    if refused_by == "its work":
        with pytest.raises(KeyboardInterrupt):
            upgrade(postgres, progress=stop_at("transform", 30))
    elif refused_by == "the database":
        connection.execute("CREATE TABLE items_current (x int)")
    build, waiting = postgres_work.build_index, []

    def build_index(*given):
        query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
        waiting.append(connection.execute(query).fetchone()[0])
        return None if waiting[-1] else build(*given)  # or it would wait for good

    monkeypatch.setattr(postgres_work, "build_index", build_index)
    gc.disable()
    try:
        with pytest.raises(FctError) as kept:  # as notebooks do
            upgrade_gallery(url, refused, dest, settings=SETTINGS)
        connection.execute("DROP TABLE IF EXISTS items_current" if refused_by == "the database" else "SELECT 1")
        upgrade_gallery(url, OTHER, dest, settings=SETTINGS, restart=True)
    finally:
        gc.enable()
    assert waiting == [0] and kept.tb


def stop_at(stage, rows=0):
    def stop(now, done, _):
        if now == stage and done >= rows:
            raise KeyboardInterrupt

    return stop


def test_a_failed_gate_publishes_nothing(postgres, connection, items):
    with pytest.raises(GateError, match=r"items\.id = \d+: cosine"):
        upgrade(postgres, settings=Settings(dtype="float16", min_cosine=1.0))
    assert connection.execute("SELECT DISTINCT embedding_version FROM items_current").fetchall() == [("embedding",)]
    upgrade(postgres)
    assert wrong_rows(connection) == []


def test_a_row_that_cannot_be_upgraded_costs_no_work(postgres, connection, items):
    connection.execute("UPDATE items SET embedding = NULL WHERE id = 42")
    with pytest.raises(GalleryError, match=r"items\.id = 42, column 'embedding': is NULL"):
        upgrade(postgres)
    connection.execute("UPDATE items SET embedding = %s WHERE id = 42", (text(np.ones(OLD)),))
    assert upgrade(postgres).resumed_rows == 30
    assert wrong_rows(connection) == []


def test_one_of_two_at_once_wins(postgres, connection, items, monkeypatch):
    monkeypatch.setattr("fct_infer.connectors.postgres_work.take_lock.__defaults__", (0.0,))
    seen = []

    def second(stage, done, _):
        if stage == "transform" and not seen:
            with pytest.raises(OutputError, match="another upgrade of it is running"):
                upgrade(postgres)
            seen.append(1)

    upgrade(postgres, progress=second)
    assert seen and wrong_rows(connection) == []


def test_source_and_destination_are_one_table(postgres, connection, items, rows):
    fill(connection, range(ROWS), *rows, table="others")
    source = open_source(postgres.url("inplace", "others"))
    with source, pytest.raises(UsageError, match="DEST has to name the table that SOURCE is"):
        upgrade_gallery(source, H, open_destination(postgres.url("inplace", column="v2")))
    with pytest.raises(UsageError, match="add &column=embedding_v2"):
        open_destination(postgres.url("inplace"))
    with pytest.raises(UsageError, match="add &column=embedding_v2"):
        upgrade_gallery(postgres.url("inplace"), H, postgres.url("inplace"))
    with pytest.raises(UsageError, match="has a column 'title' already"):
        upgrade(postgres, column="title")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_this_destination_promises(postgres, connection, items, tmp_path):
    from support.bundles import core_bundle

    bundle = core_bundle(H.program, tmp_path / "h")
    dest = postgres.url("inplace", column="embedding_v2").replace("postgres@", "postgres:s3cret@")
    arguments = [postgres.url("inplace"), "--transformation", str(bundle), "-o", dest, "--threads", "1"]
    run = CliRunner()
    found = run.invoke(command, [*arguments, "--dry-run"], catch_exceptions=False)
    assert found.exit_code == 0 and "in one transaction" in found.stdout and "never a wrong one" in found.stdout
    assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (1,)
    found = run.invoke(command, arguments, catch_exceptions=False)
    assert found.exit_code == 0 and "published" in found.stdout and wrong_rows(connection) == []
    everything = found.output + "".join(str(row) for row in connection.execute("SELECT * FROM fct_upgrades"))
    assert "s3cret" not in everything
    options = SourceOptions(embedding_column="embedding", side_column="side", id_column="id")
    upgrade(postgres, options=options)


def test_versions_and_rollback_are_commands(postgres, connection, items):
    upgrade(postgres)
    run, url = CliRunner(), postgres.url("inplace").replace("postgres@", "postgres:s3cret@")
    connection.execute("UPDATE items SET side = %s WHERE id = 3", (text(np.ones(SIDE)),))
    listed = run.invoke(gallery_command, ["versions", url], catch_exceptions=False).stdout
    assert listed.splitlines()[0] == "  embedding     original" and "* embedding_v2  published 2" in listed
    assert "1 rows written since have no new vector yet" in listed
    assert run.invoke(gallery_command, ["rollback", url], catch_exceptions=False).stdout == "readers see 'embedding'\n"
    assert connection.execute("SELECT DISTINCT embedding_version FROM items_current").fetchall() == [("embedding",)]
    found = run.invoke(gallery_command, ["rollback", url, "--to", "embedding_v2", "--json"], catch_exceptions=False)
    assert json.loads(found.stdout) == {"shown": "embedding_v2"}
    listed = json.loads(run.invoke(gallery_command, ["versions", url, "--json"], catch_exceptions=False).stdout)
    assert [(each["version"], each["is_current"]) for each in listed] == [("embedding", False), ("embedding_v2", True)]
    with pytest.raises(UsageError) as caught:
        run.invoke(gallery_command, ["versions", "nosql://x:s3cret@y"], catch_exceptions=False, standalone_mode=False)
    assert "s3cret" not in str(caught.value)


def test_pairs_to_fit_are_read_from_tables(postgres, connection, items, rows):
    from fct_infer.fitting.inputs import read_inputs

    connection.execute(f"CREATE TABLE known (item bigint PRIMARY KEY, e vector({NEW}))")
    for row in range(0, ROWS, 2):
        connection.execute("INSERT INTO known VALUES (%s, %s)", (row, text(H(*rows)[row])))
    pairs, _ = read_inputs({"old": postgres.url("inplace"), "new": postgres.url("inplace", "known")})
    assert pairs.matched == 31 and pairs.only_old == 30
    np.testing.assert_array_equal(np.sort(pairs.old[:, 0]), np.sort(rows[0][::2, 0]))


def test_the_rights_that_are_documented_suffice(postgres, connection, items):
    connection.execute("DROP ROLE IF EXISTS upgrader; CREATE ROLE upgrader LOGIN")
    connection.execute("GRANT SELECT ON items TO upgrader")
    url = postgres.url("inplace", user="upgrader")

    def run():
        return upgrade_gallery(open_source(url), H, open_destination(url + "&column=embedding_v2"), settings=SETTINGS)

    with pytest.raises(UsageError, match=r"permission denied.*docs/postgres\.md"):
        run()
    connection.execute("GRANT UPDATE, TRIGGER ON items TO upgrader; GRANT CREATE ON SCHEMA public TO upgrader")
    run()
    assert wrong_rows(connection) == []
    connection.execute("UPDATE items SET side = %s WHERE id = 3", (text(np.ones(SIDE)),))
    assert rollback(url) == "embedding"
    run()
    assert wrong_rows(connection) == []
    connection.execute("DROP OWNED BY upgrader CASCADE; DROP ROLE upgrader")
