from pathlib import Path

import pytest

from fct_infer.gallery.places import place_of, scheme_of
from fct_infer.storage import RemotePath


@pytest.mark.parametrize("url", ["postgresql://me@host/db?table=items", "postgres://host/db?table=items"])
def test_the_url_of_a_table_stays_as_it_is(url):
    assert place_of(url) == url and scheme_of(url) == url.split(":")[0]
    assert place_of(url.upper()) == url.upper() and scheme_of(url.upper()) == url.split(":")[0]


def test_the_url_of_files_is_a_path():
    assert isinstance(place_of("s3://bucket/x"), RemotePath) and str(place_of("s3://bucket/x")) == "s3://bucket/x"
    assert scheme_of("a+b.c-d://") == "a+b.c-d"


@pytest.mark.parametrize("path", ["folder", "/a//b", "x:y", "C:\\x", "./postgresql://x", ":// ", "1://x", ""])
def test_anything_else_is_a_path(path):
    assert place_of(path) == Path(path) and scheme_of(path) is None
    assert scheme_of(Path("postgresql://x")) is None
