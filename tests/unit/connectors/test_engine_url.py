"""URLs of tables and collections taken apart, the user's and a stranger's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fct_infer.connectors.engine_url import parse_engine_url
from fct_infer.errors import UsageError


def test_what_a_url_names():
    url = parse_engine_url("SQLite:///a/b%20c.db?table=it%22ems&column=v2&view=now")
    assert (url.scheme, url.path, url.table, url.column, url.view) == (
        "sqlite",
        Path("/a/b c.db"),
        'it"ems',
        "v2",
        "now",
    )
    assert parse_engine_url(url.name) == url
    assert parse_engine_url("duckdb://shop.db?table=t&schema=s", ("schema",)).more == {"schema": "s"}
    server = parse_engine_url("qdrant://host:6333?collection=items&alias=now", has_servers=True)
    assert (server.path, server.server, server.table, server.view) == (None, "host:6333", "items", "now")
    assert parse_engine_url("milvus://./x.db?collection=items", has_servers=True).path == Path("x.db")


def test_one_file_by_two_names_is_one_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.db").touch()
    (tmp_path / "b.db").symlink_to("a.db")
    places = {parse_engine_url(f"sqlite://{name}?table=t").place for name in ("a.db", "./b.db", f"{tmp_path}/a.db")}
    assert len(places) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///a.db", "names no table"),
        ("sqlite:///a.db?table=", "is empty"),
        ("sqlite:///a.db?table=a%00b", "holds a NUL"),
        ("sqlite:///a.db?table=a&collection=b", "twice"),
        ("sqlite:///a.db?table=a&what=b", "not known"),
        ("sqlite:///a.db?table=a#b", "%23"),
        ("sqlite://?table=a", "names no file"),
        ("qdrant://me:hush@host?table=a", "must not hold a user or a password"),
        ("qdrant://host/deep?table=a", "wanted qdrant://host:port"),
    ],
)
def test_what_is_refused(url, words):
    with pytest.raises(UsageError, match=words) as found:
        parse_engine_url(url, has_servers=url.startswith("qdrant"))
    assert "hush" not in str(found.value)
