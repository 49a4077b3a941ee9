"""An upgrade in PostgreSQL whose client or server is killed, at many points, while others write."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import closing
from itertools import count

import numpy as np
import psycopg
import pytest
from support.children import run_code
from support.postgres import Server, fill, read, text
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import open_destination, open_source, postgres_locks, postgres_sink, postgres_work
from fct_infer.connectors import postgres_source as module
from fct_infer.connectors.postgres import connect, parse_url
from fct_infer.errors import ResourceError
from fct_infer.upgrade.settings import Settings

ROWS, OLD, SIDE, NEW = 200, 12, 6, 10
H = Transformation(paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=1), threads=1)

CLIENT = """
import os, signal, sys, warnings
warnings.simplefilter("error")
from support.programs import paper_h
from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import open_destination, open_source, postgres_source
from fct_infer.upgrade.settings import Settings
import psycopg

url, point = sys.argv[1], int(sys.argv[2])
postgres_source.PART_BYTES = 50 * 4 * 18
statements = 0

def counted(self, execute):
    def run(connection, *arguments, **more):
        global statements
        statements += 1
        if statements == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(connection, *arguments, **more)
    return run

psycopg.Connection.execute = counted(None, psycopg.Connection.execute)
write = psycopg.Copy.write
psycopg.Copy.write = counted(None, write)
h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1), threads=1)
report = upgrade_gallery(
    open_source(url), h, open_destination(url + "&column=embedding_v2"), settings=Settings(index="HNSW8", block_rows=20)
)
print(statements)
"""


@pytest.fixture
def database(postgres):
    postgres.create("killed")
    yield "killed"
    postgres.drop("killed")


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, OLD), np.float32), rng.standard_normal((ROWS, SIDE), np.float32)


def run(url, point=0):
    """Upgrade in another process, which kills itself before its statement of that number."""
    found = run_code(CLIENT, url, point)
    return found.returncode, found.stdout, found.stderr


def wrong_rows(connection):
    old = read(connection, "SELECT id, embedding::text FROM items", OLD)
    side = read(connection, "SELECT id, side::text FROM items", SIDE)
    new = read(connection, "SELECT id, embedding::text FROM items_current WHERE embedding_version <> 'embedding'", NEW)
    keys = sorted(old)
    expected = H(np.stack([old[key] for key in keys]), np.stack([side[key] for key in keys]))
    return [key for key, row in zip(keys, expected, strict=True) if not np.array_equal(new.pop(key, None), row)] + list(
        new
    )


def change(connection, number):
    """One commit of somebody else between two runs."""
    rng = np.random.default_rng(number)
    key = int(rng.integers(0, ROWS))
    connection.execute("UPDATE items SET side = %s WHERE id = %s", (text(rng.standard_normal(SIDE)), key))
    connection.execute("DELETE FROM items WHERE id = %s", (int(rng.integers(0, ROWS)),))
    connection.execute(
        "INSERT INTO items VALUES (%s, '', %s, %s)",
        (1000 + number, text(rng.standard_normal(OLD)), text(rng.standard_normal(SIDE))),
    )


def test_killed_again_and_again_no_row_is_lost_or_wrong(postgres, database, rows):
    """Each run gets some statements further than the one before; FCT_KILLS asks for more of them, table after table."""
    kills = int(os.environ.get("FCT_KILLS", "4"))
    killed, step, changes = 0, max(1, 100 // kills), count()
    with postgres.connect(database) as connection:
        while killed < min(kills, 3) or (kills > 4 and killed < kills):
            fill(connection, range(ROWS), *rows)
            url, point, code = postgres.url(database), 20 + killed % step, -signal.SIGKILL
            while code == -signal.SIGKILL:
                code, _, error = run(url, point)
                killed += code == -signal.SIGKILL
                point += step
                change(connection, next(changes))
                view = connection.execute("SELECT to_regclass('items_current')").fetchone()[0]
                assert view is None or code == 0 or not wrong_rows_of_the_view(connection)
            assert code == 0, error
            assert run(url)[0] == 0
            assert wrong_rows(connection) == []
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE EXTENSION vector")
    print(f"client killed {killed} times")  # shown by pytest -s


def wrong_rows_of_the_view(connection):
    """Rows that readers see and that are not h of what the table holds; some may be missing."""
    query = "SELECT id FROM items_current WHERE embedding_version <> 'embedding'"
    present = {key for (key,) in connection.execute(query)}
    return [key for key in wrong_rows(connection) if key in present]


def upgrade(url, column="embedding_v2", **more):
    source = open_source(url)
    destination = open_destination(f"{url}&column={column}")
    return upgrade_gallery(source, H, destination, settings=Settings(index="none", block_rows=20), **more)


def test_a_server_that_dies_is_gone_on_with(rows, monkeypatch):
    """Killed with all its processes, as by a power cut, at each stage; it recovers. FCT_SERVER_KILLS asks for more."""
    monkeypatch.setattr(module, "PART_BYTES", 50 * 4 * (OLD + SIDE))
    kills, killed, changes, server = int(os.environ.get("FCT_SERVER_KILLS", "2")), 0, count(), Server()
    try:
        server.create("killed")
        with server.connect("killed") as connection:
            fill(connection, range(ROWS), *rows)
        while killed < kills:
            column = f"embedding_v{2 + killed}"
            for stage, share in (("transform", 60 + 20 * (killed % 7)), ("verify", 0)):

                def kill(now, done, _, stage=stage, share=share):
                    if now == stage and done >= share:
                        server.kill()

                with pytest.raises(ResourceError, match="the same command goes on"):
                    upgrade(server.url("killed"), column, progress=kill)
                killed += 1
                server.restart()
                with server.connect("killed") as connection:
                    change(connection, next(changes))
            report = upgrade(server.url("killed"), column)
            assert report.resumed_rows >= 100
            with server.connect("killed") as connection:
                assert wrong_rows(connection) == []
        print(f"server killed {killed} times")  # shown by pytest -s
    finally:
        server.stop()


@pytest.mark.parametrize("stage", ["transform", "verify"])
def test_a_connection_that_is_cut_is_gone_on_with(postgres, database, rows, monkeypatch, stage):
    monkeypatch.setattr(module, "PART_BYTES", 50 * 4 * (OLD + SIDE))
    with postgres.connect(database) as connection:
        fill(connection, range(ROWS), *rows)

        def cut(now, done, _):
            if now == stage:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fct_infer'"
                )

        with pytest.raises(ResourceError, match="the same command goes on"):
            upgrade(postgres.url(database), progress=cut)
        change(connection, 1)
        upgrade(postgres.url(database))
        assert wrong_rows(connection) == []


@pytest.mark.parametrize("when", ["begin", "publish"])
def test_a_lock_that_is_not_to_be_had_costs_no_work(postgres, database, rows, monkeypatch, when):
    monkeypatch.setattr(postgres_locks, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(postgres_locks, "LOCK_TRIES", 2)
    monkeypatch.setattr(postgres_work, "LOCK_TRIES", 2)
    with postgres.connect(database) as connection, postgres.connect(database) as writer:
        fill(connection, range(ROWS), *rows)

        def hold(now, done, _):
            if now == "verify" and when == "publish":
                writer.execute("BEGIN; UPDATE items SET side = embedding::text::vector(6) WHERE false")

        if when == "begin":
            writer.execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE")
        with pytest.raises(ResourceError, match=r"lock timeout.*nothing is lost"):
            upgrade(postgres.url(database), progress=hold)
        writer.execute("ROLLBACK")
        report = upgrade(postgres.url(database))
        assert report.rows == ROWS and wrong_rows(connection) == []


def test_limits_of_the_role_do_not_end_an_upgrade(postgres, database):
    with postgres.connect(database) as connection:
        connection.execute("ALTER ROLE postgres SET statement_timeout = '400ms'")
        try:
            with pytest.raises(psycopg.errors.QueryCanceled), postgres.connect(database) as limited:
                limited.execute("SELECT pg_sleep(1)")
            with closing(connect(parse_url(postgres.url(database)))) as ours:
                ours.execute("SELECT pg_sleep(0.6)")
        finally:
            connection.execute("ALTER ROLE postgres RESET ALL")


def test_a_full_disk_of_the_server_costs_no_work(postgres, database, rows, monkeypatch):
    """The server says so in the middle of a COPY; what was done stays."""
    monkeypatch.setattr(module, "PART_BYTES", 50 * 4 * (OLD + SIDE))
    original, calls = postgres_sink._PartWriter.commit, []

    def full(self):
        calls.append(1)
        if len(calls) == 3:
            with postgres_sink.server_errors(self._work.url):
                raise psycopg.errors.DiskFull("could not extend file: No space left on device")
        return original(self)

    with postgres.connect(database) as connection:
        fill(connection, range(ROWS), *rows)
        with monkeypatch.context() as patch:
            patch.setattr(postgres_sink._PartWriter, "commit", full)
            with pytest.raises(ResourceError, match="No space left on device; nothing is lost"):
                upgrade(postgres.url(database))
        assert upgrade(postgres.url(database)).resumed_rows == 100
        assert wrong_rows(connection) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 MiB in memory; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    disk.chmod(0o755)
    tmp_path.chmod(0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_disk_that_really_is_full_costs_no_work(small_disk, monkeypatch):
    """The server runs out of room for the new rows or its log, and may die; FCT_SPARE_KIB says how much it has left."""
    spare = int(os.environ.get("FCT_SPARE_KIB", "2048")) << 10
    monkeypatch.setattr(module, "PART_BYTES", 2000 * 4 * (OLD + SIDE))
    many = 40_000
    rng = np.random.default_rng(0)
    server = Server(small_disk)
    try:
        server.create("full")
        with server.connect("full") as connection:
            fill(
                connection, range(many), rng.standard_normal((many, OLD), "f4"), rng.standard_normal((many, SIDE), "f4")
            )
            connection.execute("CHECKPOINT")
        free = os.statvfs(small_disk)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - spare))
        with pytest.raises(ResourceError, match="the same command goes on"):
            upgrade(server.url("full"))
        ballast.unlink()
        if not is_alive(server):
            server.kill()
            server.restart()
        report = upgrade(server.url("full"))
        print(f"{report.resumed_rows} of {many} rows were kept")
        with server.connect("full") as connection:
            assert wrong_rows(connection) == []
    finally:
        server.stop()


def is_alive(server):
    try:
        with server.connect("full") as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False
