"""What a URL of a table says; no server is needed."""

from __future__ import annotations

import pytest

from fct_infer.connectors import open_destination, open_source
from fct_infer.connectors.postgres import parse_url
from fct_infer.connectors.registry import kind_of
from fct_infer.errors import UsageError


def test_what_is_ours_is_taken_out_and_the_rest_goes_to_libpq():
    url = parse_url("postgresql://me@a:1,[::1]:2/db?table=it%22ems&sslmode=require&schema=s+t&column=v2&view=w")
    assert (url.table, url.schema, url.column, url.view) == ('it"ems', "s t", "v2", "w")
    assert url.conninfo == "postgresql://me@a:1,[::1]:2/db?sslmode=require"
    assert parse_url(url.name) == url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@host/db?table=t",
        "postgres://me:s3cret@host?table=t&password=s3cret",
        "postgresql://:s3cret@/db?host=/socket&table=t&sslpassword=s3cret",
        "postgresql:///db?user=me&password=s3cret&table=t",
    ],
)
def test_a_password_reaches_libpq_and_nobody_else(url):
    found = parse_url(url)
    assert "s3cret" in found.conninfo and "s3cret" not in found.name + repr(found)
    assert found.scrubbed("it is s3cret") == "it is ***"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:s3cret@host/db", "names no table"),
        ("postgresql://me:s3cret@host/db?table=", "names no table"),
        ("postgresql://me:s3cret@host/db?table=a&table=b", "twice"),
        ("postgresql://me:s3cret@host/db?table=a#b", "without a #"),
        ("postgresql://me:s3cret@host/db?table=" + "x" * 64, "at most 63 bytes"),
        ("postgresql://me:s3cret@host/db?table=a%00b", "no name that PostgreSQL has"),
    ],
)
def test_what_is_no_url_of_a_table_is_refused_without_its_password(url, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse_url(url)
    assert "s3cret" not in str(caught.value)


def test_places_that_nothing_here_speaks_are_named_by_their_scheme_only():
    for call in (kind_of, open_source, open_destination):
        with pytest.raises(UsageError, match=r"^nosql://.* known") as caught:
            call("nosql://me:s3cret@host/db")
        assert "s3cret" not in str(caught.value)
