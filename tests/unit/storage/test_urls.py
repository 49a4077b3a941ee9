"""URLs as paths: what is shown of them, what is refused, what is there."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from fct_infer.errors import MissingExtraError, UsageError
from fct_infer.storage import RemotePath, check_place, location


@pytest.fixture
def bucket():
    memory = fsspec.filesystem("memory")
    for name in ("x.npy", "g/embeddings/a.npy", "g/embeddings/.hidden", "g/deep/er/b.parquet"):
        memory.pipe_file(f"/urls/{name}", b"12345")
    yield location("memory://urls")
    memory.rm("/urls", recursive=True)


def test_a_url_is_a_path_that_keeps_its_slashes():
    path = location("s3://bucket/a/b.parquet")
    assert isinstance(path, RemotePath) and isinstance(path, Path)
    assert str(path) == path.url == "s3://bucket/a/b.parquet"
    assert (path.name, path.suffix, str(path.parent)) == ("b.parquet", ".parquet", "s3://bucket/a")
    assert str(path.parent / "c") == "s3://bucket/a/c" and path.relative_to(path.parent).as_posix() == "b.parquet"
    assert location(path) is path and path.absolute() is path and path.is_relative_to(path.parent)
    assert str(location("S3://bucket/folder/")) == "s3://bucket/folder"
    assert location("file:///tmp/x") == Path("/tmp/x") and not isinstance(location("file:///tmp/x"), RemotePath)
    assert location("a/b") == Path("a/b") and str(location("s3://b/what?")) == "s3://b/what?"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/x.npy", "must not hold a user or a password"),
        ("https://user:secret@host/x.npy", "must not hold a user or a password"),
        ("ftp://secret@host/x", "of no kind that is known"),
        ("s3://bucket/a//b", "a name in it is empty"),
        ("s3://bucket/../b", "a name in it is empty"),
        ("s3://", "a name in it is empty"),
        ("https://host/x::zip://secret", "chain of URLs"),
    ],
)
def test_what_is_no_plain_url_is_refused_without_a_secret(url, words):
    with pytest.raises(UsageError, match=words) as error:
        location(url)
    assert "secret" not in str(error.value).replace("zip://secret", "")


def test_the_query_of_a_signed_url_is_used_and_not_shown():
    path = location("https://host/x.npy?X-Amz-Signature=secret")
    assert str(path) == "https://host/x.npy" and path.name == "x.npy" and "secret" not in repr(path)
    assert path.url == "https://host/x.npy?X-Amz-Signature=secret"


def test_what_is_there(bucket):
    assert bucket.is_dir() and (bucket / "x.npy").is_file() and not (bucket / "x.npy").is_dir()
    assert (bucket / "g").exists() and not (bucket / "no").exists() and not (bucket / "no").is_dir()
    assert (bucket / "x.npy").stat().st_size == 5
    assert sorted(path.name for path in bucket.iterdir()) == ["g", "x.npy"]
    assert [str(path) for path in bucket.rglob("*.parquet")] == ["memory://urls/g/deep/er/b.parquet"]
    assert [path.name for path in (bucket / "g/embeddings").glob("[!.]*.npy")] == ["a.npy"]
    with pytest.raises(FileNotFoundError):
        (bucket / "no").stat()


def test_a_change_is_seen_at_once(bucket):
    before = (bucket / "x.npy").info()
    fsspec.filesystem("memory").pipe_file("/urls/x.npy", b"123456")
    assert (bucket / "x.npy").info() != before
    fsspec.filesystem("memory").rm("/urls/x.npy")
    assert not (bucket / "x.npy").exists()


def test_a_kind_of_url_whose_package_is_missing_names_the_extra(monkeypatch):
    def missing(_scheme, **_options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    for url, extra in (
        ("s3://b/x", "s3"),
        ("gs://b/x", "gcs"),
        ("hf://datasets/a/b/x", "hf"),
        ("http://h/x", "fsspec"),
    ):
        with pytest.raises(MissingExtraError, match=rf"pip install 'fct-infer\[{extra}\]'"):
            location(url).exists()


@pytest.mark.parametrize("dest", ["s3://bucket/new", Path("s3://bucket/new"), "memory://new"])
def test_no_folder_is_made_of_a_url(dest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is a URL; what is published is a folder of this machine"):
        check_place(dest, {})
    assert check_place(tmp_path / "new", {"gallery": location("s3://bucket/x")}) == tmp_path / "new"
