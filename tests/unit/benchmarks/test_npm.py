"""Packages of npm are fetched once, whole or not at all; what is missing is said in a line."""

from __future__ import annotations

import os

import pytest

from benchmarks import npm

NPM = """#!/bin/sh
echo "$@" >>"{calls}"
case "$3" in
  broken@*) echo "npm error 404 not found" >&2; exit 1 ;;
esac
mkdir package && echo hello >package/data.txt && tar czf it.tgz package && rm -r package
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    place = tmp_path / "bin" / "npm"
    place.parent.mkdir()
    place.write_text(NPM.format(calls=tmp_path / "calls"))
    place.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(npm, "WORK", tmp_path / "work")
    return tmp_path / "calls"


def test_a_package_is_fetched_once(calls):
    for _ in range(2):
        assert (npm.package("it", "1.2.3") / "data.txt").read_text() == "hello\n"
    assert calls.read_text().splitlines() == ["pack --silent it@1.2.3"]


def test_what_cannot_be_fetched_leaves_nothing(calls):
    with pytest.raises(npm.MissingPackageError, match=r"npm cannot fetch broken@1: npm error 404 not found"):
        npm.package("broken", "1")
    assert not list(npm.WORK.iterdir())


def test_without_npm_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(npm, "WORK", tmp_path / "work")
    with pytest.raises(npm.MissingPackageError, match="npm, which is not installed"):
        npm.package("it", "1")
