"""Tables of PostgreSQL upgraded into a folder by the commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.postgres import fill
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.cli.gallery import command as gallery_command
from fct_infer.connectors import open_source
from fct_infer.connectors import postgres_source as module
from fct_infer.errors import GalleryError, OutputError
from fct_infer.upgrade.settings import Settings

ROWS, OLD, SIDE, NEW = 61, 12, 6, 10
H = Transformation(paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=1), threads=1)
SETTINGS = Settings(index="Flat", block_rows=7)


@pytest.fixture
def connection(postgres):
    postgres.create("tofolder")
    with postgres.connect("tofolder") as connection:
        yield connection
    postgres.drop("tofolder")


@pytest.fixture
def rows(connection, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 20 * 4 * (OLD + SIDE))
    rng = np.random.default_rng(0)
    old, side = rng.standard_normal((ROWS, OLD), np.float32), rng.standard_normal((ROWS, SIDE), np.float32)
    fill(connection, range(100, 100 + ROWS), old, side)
    return old, side


def test_a_table_becomes_a_folder_with_its_keys_as_ids(postgres, connection, rows, tmp_path):
    with open_source(postgres.url("tofolder")) as source:
        report = upgrade_gallery(source, H, tmp_path / "new", settings=SETTINGS)
    assert (report.rows, report.shards) == (ROWS, 4)
    published = open_source(tmp_path / "new")
    new, _ = published.read_rows(np.arange(ROWS), with_side=False)
    np.testing.assert_array_equal(new, H(*rows))
    ids = np.concatenate([np.load(file) for file in sorted((tmp_path / "new" / "ids").iterdir())])
    np.testing.assert_array_equal(ids, np.arange(100, 100 + ROWS))


def test_killed_it_is_resumed_while_the_table_is_the_same(postgres, connection, rows, tmp_path):
    def stop(stage, done, _):
        if stage == "transform" and done > 30:
            raise KeyboardInterrupt

    arguments = H, tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(postgres.url("tofolder"), *arguments, settings=SETTINGS, progress=stop)
    assert upgrade_gallery(postgres.url("tofolder"), *arguments, settings=SETTINGS).resumed_rows == 30

    arguments = H, tmp_path / "changed"
    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(postgres.url("tofolder"), *arguments, settings=SETTINGS, progress=stop)
    connection.execute("UPDATE items SET title = '' WHERE id = 117")
    with pytest.raises(OutputError, match="different: gallery table versions"):
        upgrade_gallery(postgres.url("tofolder"), *arguments, settings=SETTINGS)


def test_a_row_that_is_not_finite_is_named_by_its_key(postgres, connection, rows, tmp_path):
    connection.execute("ALTER TABLE items ALTER side TYPE real[] USING side::real[]")
    connection.execute("UPDATE items SET side[2] = 'NaN' WHERE id = 142")
    with pytest.raises(GalleryError, match=r"items\.id = 142, column 'side' holds NaN or infinity"):
        upgrade_gallery(postgres.url("tofolder"), H, tmp_path / "new", settings=SETTINGS)


def test_inspect_and_convert_read_tables(postgres, connection, rows, tmp_path):
    run = CliRunner()
    found = run.invoke(gallery_command, ["inspect", postgres.url("tofolder"), "--json"], catch_exceptions=False)
    inspected = json.loads(found.stdout)
    assert (inspected["rows"], inspected["old_dim"], inspected["side_dim"]) == (ROWS, OLD, SIDE)
    assert (inspected["format"], inspected["ids"], inspected["duplicate_ids"]) == ("postgresql", "int64", 0)
    arguments = ["convert", postgres.url("tofolder"), str(tmp_path / "g"), "--json"]
    run.invoke(gallery_command, arguments, catch_exceptions=False)
    np.testing.assert_array_equal(np.load(tmp_path / "g" / "embeddings" / "000000.npy"), rows[0])
