from pathlib import Path

import pytest

from fct_infer.gallery.places import place_of, scheme_of


@pytest.mark.parametrize("url", ["postgresql://me@host/db?table=items", "s3://bucket/x", "a+b.c-d://"])
def test_a_url_stays_as_it_is(url):
    assert place_of(url) == url and scheme_of(url) == url.split(":")[0]
    assert scheme_of(url.upper()) == url.split(":")[0]


@pytest.mark.parametrize("path", ["folder", "/a//b", "x:y", "C:\\x", "./postgresql://x", ":// ", "1://x", ""])
def test_anything_else_is_a_path(path):
    assert place_of(path) == Path(path) and scheme_of(path) is None
    assert scheme_of(Path("postgresql://x")) is None
