"""Tables of a real PostgreSQL with pgvector as what is read."""

from __future__ import annotations

import traceback
import uuid
from contextlib import ExitStack

import numpy as np
import psycopg
import pytest
from psycopg import sql
from support.postgres import fill, text

from fct_infer.connectors import SourceOptions, open_source
from fct_infer.connectors import postgres_source as module
from fct_infer.errors import FctError, GalleryError, ResourceError, UsageError
from fct_infer.gallery import SourceReader

ROWS, OLD, SIDE = 23, 6, 3
HOSTILE = "Robert\"; DROP TABLE items; --.'%s{}"


@pytest.fixture(scope="module")
def database(postgres):
    postgres.create("source")
    yield "source"
    postgres.drop("source")


@pytest.fixture
def connection(postgres, database):
    with postgres.connect(database) as connection:
        yield connection
        connection.execute("DROP SCHEMA IF EXISTS other CASCADE")
        for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall():
            connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture
def opened():
    with ExitStack() as held:
        yield lambda *given: held.enter_context(open_source(*given))


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, OLD), np.float32), rng.standard_normal((ROWS, SIDE), np.float32)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 5 * 4 * (OLD + SIDE))


def read_all(source, block=4):
    old, side, ids = [], [], []
    with SourceReader(source) as reader:
        for part in source.parts():
            for start in range(0, part.rows, block):
                stop = min(part.rows, start + block)
                old.append(np.empty((stop - start, source.schema.old_dim), source.schema.embedding_dtype))
                side.append(None)
                if source.schema.side_dim:
                    side[-1] = np.empty((stop - start, source.schema.side_dim), source.schema.side_dtype)
                reader.at(part).read_into(start, stop, old[-1], side[-1])
                ids.append((part, start, stop))
        ids = [reader.at(part).read_ids(start, stop) for part, start, stop in ids]
    return np.concatenate(old), np.concatenate(side) if source.schema.side_dim else None, np.concatenate(ids)


KEYS = {
    "bigint": lambda number: 7 * number - 50,
    "smallint": lambda number: number - 5,
    "uuid": lambda number: str(uuid.UUID(int=(number + 1) << 120)),
    "text": lambda number: f"ключ {number:03d}, \"'\\",
    "bytea": lambda number: f"\\x{number + 16:02x}00",
    "numeric": lambda number: str(number / 8 - 1),
    "timestamptz": lambda number: f"2026-01-{number + 1:02d} 00:00:00+00",
}


@pytest.mark.parametrize("kind", KEYS)
def test_rows_come_in_the_order_of_a_key_of_any_type(opened, postgres, database, connection, rows, small_parts, kind):
    keys = [KEYS[kind](number) for number in range(ROWS)]
    order = np.random.default_rng(1).permutation(ROWS)
    fill(connection, [keys[row] for row in order], rows[0][order], rows[1][order], id_type=kind)
    connection.execute("INSERT INTO items SELECT * FROM items WHERE false")

    source = opened(postgres.url(database))
    assert [part.rows for part in source.parts()] == [4, 5, 4, 5, 5]
    old, side, ids = read_all(source)
    np.testing.assert_array_equal(old, rows[0])
    np.testing.assert_array_equal(side, rows[1])
    expected = [row for (row,) in connection.execute("SELECT id::text FROM items ORDER BY items.id")]
    assert ids.tolist() == (list(map(int, expected)) if kind in ("bigint", "smallint") else expected)
    assert source.schema.columns == {"embedding": "embedding", "side": "side", "id": "id"}
    assert source.schema.other_columns == ("title",)
    chosen = np.array([0, 3, 4, 9, 10, 22])
    sample_old, sample_side = source.read_rows(chosen)
    np.testing.assert_array_equal(sample_old, rows[0][chosen])
    np.testing.assert_array_equal(sample_side, rows[1][chosen])
    assert source.where(9) == f"items.id = {expected[9]}"


def test_a_key_of_several_columns(opened, postgres, database, connection, rows, small_parts):
    connection.execute("CREATE TABLE items (n int, tenant text, v vector(6), PRIMARY KEY (tenant, n))")
    keys = sorted((("acme" if row % 3 else 'b"c'), row) for row in range(ROWS))
    for row, (tenant, number) in enumerate(keys):
        connection.execute("INSERT INTO items VALUES (%s, %s, %s)", (number, tenant, text(rows[0][row])))
    source = opened(postgres.url(database))
    old, side, ids = read_all(source)
    np.testing.assert_array_equal(old, rows[0])
    assert side is None and ids[0] == '["acme", 1]' and ids[-1] == '["b\\"c", 21]'
    assert source.where(0) == "items.(tenant, n) = (acme, 1)"
    assert opened(postgres.url(database), SourceOptions(id_column="tenant, n")).table.key == ("tenant", "n")


@pytest.mark.parametrize(("kind", "dtype"), [("vector", np.float32), ("halfvec", np.float16), ("real[]", np.float32)])
@pytest.mark.parametrize("declared", [True, False])
def test_kinds_of_vectors(opened, postgres, database, connection, rows, kind, dtype, declared):
    name = f"{kind}({OLD})" if declared and kind != "real[]" else kind
    connection.execute(f"CREATE TABLE items (id int PRIMARY KEY, e {name})")
    for row, values in enumerate(rows[0].tolist()):
        connection.execute(
            f"INSERT INTO items VALUES (%s, %s{'::real[]' if kind == 'real[]' else ''})",
            (row, values if kind == "real[]" else str(values)),
        )
    source = opened(postgres.url(database))
    assert (source.schema.old_dim, source.schema.embedding_dtype) == (OLD, dtype)
    np.testing.assert_array_equal(read_all(source)[0], rows[0].astype(dtype))


def test_double_precision_is_narrowed_only_if_asked(opened, postgres, database, connection):
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, e double precision[])")
    connection.execute("INSERT INTO items VALUES (1, '{1, 2, 0.1}')")
    with pytest.raises(GalleryError, match=r"holds float64.*--allow-cast"):
        opened(postgres.url(database))
    source = opened(postgres.url(database), SourceOptions(allow_cast=True))
    np.testing.assert_array_equal(read_all(source)[0], np.array([[1, 2, 0.1]], np.float32))


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("vector", None, "is NULL"),
        ("vector", "[1,2]", "is 2 wide, wanted 6"),
        ("halfvec", "[1,2,3,4,5,6,7]", "is 7 wide, wanted 6"),
        ("real[]", "{{1,2,3},{4,5,6}}", "has 2 dimensions, wanted a flat array of 6 numbers"),
        ("real[]", "{1,2,NULL,4,5,6}", "holds NULL"),
        ("real[]", "{1,2}", "is 2 wide, wanted 6"),
        ("real[]", "[0:5]={1,2,3,4,5,6}", "begins at subscript 0, wanted 1"),
    ],
)
def test_a_row_that_is_no_vector_is_named_by_its_key(opened, postgres, database, connection, kind, value, words):
    connection.execute(f"CREATE TABLE items (id int PRIMARY KEY, e {kind})")
    good = "{1,2,3,4,5,6}" if kind == "real[]" else "[1,2,3,4,5,6]"
    for row in range(9):
        connection.execute("INSERT INTO items VALUES (%s, %s)", (row + 36, value if row == 6 else good))
    source = opened(postgres.url(database))
    with pytest.raises(GalleryError) as caught:
        read_all(source)
    assert str(caught.value) == f"items.id = 42, column 'e': {words}"
    with pytest.raises(GalleryError, match=r"items.id = 42"):
        source.read_rows(np.array([1, 6], np.int64))


def test_a_hostile_table_name_is_a_name(opened, postgres, database, connection, rows, small_parts):
    connection.execute("CREATE TABLE items (id int)")
    fill(connection, range(ROWS), *rows, table=HOSTILE)
    source = opened(postgres.url(database, HOSTILE))
    np.testing.assert_array_equal(read_all(source)[0], rows[0])
    assert connection.execute("SELECT count(*) FROM items").fetchone() == (0,)
    for name in ("nothing", "items; DROP TABLE items", 'x"', "public.items"):
        with pytest.raises(GalleryError, match="there is no table"):
            opened(postgres.url(database, name))


def test_the_schema_is_named_or_found(opened, postgres, database, connection, rows):
    connection.execute("CREATE SCHEMA other; CREATE TABLE items (id int PRIMARY KEY, e vector(2))")
    fill(connection, range(ROWS), *rows, schema="other")
    assert opened(postgres.url(database, schema="other")).schema.rows == ROWS
    with pytest.raises(GalleryError, match="is empty"):
        opened(postgres.url(database))


def test_all_rows_are_of_one_instant(opened, postgres, database, connection, rows, small_parts):
    fill(connection, range(ROWS), *rows)
    source = opened(postgres.url(database))
    before = source.fingerprint()
    connection.execute("UPDATE items SET embedding = %s WHERE id = 3", (text(np.zeros(OLD)),))
    connection.execute(
        "DELETE FROM items WHERE id > 10; INSERT INTO items SELECT -1, 'x', embedding, side FROM items LIMIT 1"
    )
    np.testing.assert_array_equal(read_all(source)[0], rows[0])
    assert source.fingerprint() == before
    assert opened(postgres.url(database)).fingerprint() != before


@pytest.mark.parametrize(
    "change",
    ["UPDATE items SET title = title WHERE id = 3", "DELETE FROM items WHERE id = 3"],
)
def test_any_change_alters_the_fingerprint(opened, postgres, database, connection, rows, change):
    fill(connection, range(ROWS), *rows)
    before = opened(postgres.url(database)).fingerprint()
    assert opened(postgres.url(database)).fingerprint() == before
    connection.execute(change)
    assert opened(postgres.url(database)).fingerprint() != before


def test_what_has_no_key_is_refused(opened, postgres, database, connection, rows):
    connection.execute("CREATE TABLE items (id int, e vector(2)); INSERT INTO items VALUES (1, '[1,2]')")
    with pytest.raises(GalleryError, match="'id' is not; add a primary key"):
        opened(postgres.url(database))
    connection.execute("CREATE VIEW seen AS SELECT * FROM items")
    assert opened(postgres.url(database, "seen")).schema.rows == 1
    connection.execute("INSERT INTO items VALUES (1, '[1,2]')")
    with pytest.raises(GalleryError, match="'id' does not tell its rows apart"):
        opened(postgres.url(database, "seen"))


def test_columns_must_be_named_where_several_could_be_meant(opened, postgres, database, connection):
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, a vector(2), b vector(3), c int)")
    connection.execute("INSERT INTO items VALUES (1, '[1,2]', '[1,2,3]', 1)")
    with pytest.raises(UsageError, match="'a', 'b' hold vectors"):
        opened(postgres.url(database))
    source = opened(postgres.url(database), SourceOptions(embedding_column="b", side_column="a"))
    assert (source.schema.old_dim, source.schema.side_dim) == (3, 2)
    with pytest.raises(UsageError, match="has no column 'x'"):
        opened(postgres.url(database), SourceOptions(id_column="x"))
    with pytest.raises(GalleryError, match="'c' is of type integer, wanted vector"):
        opened(postgres.url(database), SourceOptions(embedding_column="c"))


def test_a_lost_snapshot_is_no_fault_of_the_table(opened, postgres, database, connection, rows):
    fill(connection, range(ROWS), *rows)
    source = opened(postgres.url(database))
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fct_infer' AND pid <> "
        "pg_backend_pid()"
    )
    with pytest.raises(ResourceError, match="same command goes on"):
        read_all(source)


@pytest.mark.parametrize("secret", ["s3cret", "p%40ss%2Fword%3A%25", "%zz"])
def test_a_password_is_never_shown(opened, postgres, database, connection, rows, secret):
    fill(connection, range(ROWS), *rows)
    path = postgres.url(database).replace("postgres@", f"postgres:{secret}@")
    shown = []
    if secret != "%zz":
        source = opened(path + "&sslpassword=" + secret)
        shown += [repr(source.url), str(source.path), str(source.fingerprint()), source.column("x")]
        assert source.schema.rows == ROWS
    for wrong in (path + "&nonsense=1", path.replace("host=", "host=/nowhere"), path + "&table=again", path + "1"):
        with pytest.raises(FctError) as caught:
            opened(wrong)
        shown.append("".join(traceback.format_exception(caught.value)))
    plain = psycopg.conninfo.conninfo_to_dict(path.split("&")[0])["password"] if secret != "%zz" else secret
    assert not any(each in text for text in shown for each in (secret, plain))


def test_a_role_that_may_not_read_is_told_so(opened, postgres, database, connection, rows):
    fill(connection, range(ROWS), *rows)
    connection.execute("DROP ROLE IF EXISTS nobody; CREATE ROLE nobody LOGIN")
    with pytest.raises(UsageError, match=r"permission denied for table items; docs/postgres.md"):
        opened(postgres.url(database, user="nobody"))
    connection.execute("GRANT SELECT ON items TO nobody")
    assert opened(postgres.url(database, user="nobody")).schema.rows == ROWS
    connection.execute("DROP OWNED BY nobody; DROP ROLE nobody")


def test_what_the_server_says_in_the_middle_of_a_copy_is_an_error(opened, postgres, database, connection):
    """Rows have been sent by then, and more were promised."""
    connection.execute("CREATE TABLE raw (id int PRIMARY KEY, n int)")
    connection.execute("INSERT INTO raw SELECT g, g FROM generate_series(1, 2000) g")
    connection.execute(
        "CREATE VIEW items AS SELECT id, ARRAY[1.0 / (1000 - n), 2]::real[] AS e FROM raw WHERE n < 1000 OR id > 0"
    )
    source = opened(postgres.url(database, "items"))
    with pytest.raises(GalleryError, match="division by zero"):
        read_all(source, 100)
    connection.execute("DROP VIEW items; DROP TABLE raw")


def test_an_empty_part_is_read_to_its_end(opened, postgres, database, connection, rows):
    fill(connection, range(ROWS), *rows)
    source = opened(postgres.url(database))
    with source.snapshot.opened() as own, module.copied(own, "SELECT 1 WHERE false") as found:
        assert list(found) == []
