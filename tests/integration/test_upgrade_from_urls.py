"""A gallery behind a URL gives the same bytes as the same files on disk, and every promise holds over a network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support import vector_files as files
from support.commands import run_command
from support.galleries import write_gallery
from support.programs import linear_map
from support.servers import HttpFiles, s3_bucket

from fct_infer import SourceOptions, Transformation, open_source, upgrade_gallery
from fct_infer.connectors import parted
from fct_infer.connectors.inspection import inspect
from fct_infer.errors import GalleryError, ResourceError
from fct_infer.evaluation import read_embeddings
from fct_infer.evaluation.inputs import read_study_inputs
from fct_infer.export import Options, export_transformation
from fct_infer.fitting.inputs import read_inputs
from fct_infer.index.verify import verify_gallery
from fct_infer.storage import location, remote_errors, remote_file
from fct_infer.upgrade.settings import Settings

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)
SETTINGS = Settings(index="Flat", block_rows=30)
NO_INDEX = Settings(index="none", block_rows=30)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(parted, "PART_BYTES", 60 * 12 * 4)
    monkeypatch.setattr(remote_errors, "WAITS", (0.0, 0.0))


@pytest.fixture(scope="module")
def h():
    return Transformation(linear_map(12, 10, seed=1))


@pytest.fixture(scope="module")
def expected(tmp_path_factory, h) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    np.save(folder / "a.npy", VECTORS)
    upgrade_gallery(folder / "a.npy", h, folder / "new", settings=SETTINGS)
    return result_of(folder / "new")


def result_of(dest: Path) -> dict[str, bytes]:
    """The new rows as one, and the index."""
    rows = np.concatenate([np.load(path) for path in sorted((dest / "embeddings").iterdir())])
    index = dest / "index.faiss"
    return {"rows": rows.tobytes()} | ({"index": index.read_bytes()} if index.exists() else {})


def content(tmp_path: Path, name: str) -> bytes:
    files.FLOAT32[name](tmp_path / name, VECTORS)
    return (tmp_path / name).read_bytes()


@pytest.fixture
def memory():
    """Puts files into memory:// and returns the URL of their folder."""
    filesystem = fsspec.filesystem("memory")

    def put(**contents: bytes) -> str:
        for name, data in contents.items():
            filesystem.pipe_file(f"/galleries/{name}", data)
        return "memory://galleries"

    yield put
    filesystem.rm("/galleries", recursive=True)


@pytest.fixture(scope="module")
def s3():
    with s3_bucket() as filesystem:
        yield filesystem


def put(name: str, data: bytes) -> str:
    import s3fs

    s3fs.S3FileSystem().pipe_file(f"bucket/{name}", data)
    return f"s3://bucket/{name}"


@pytest.mark.parametrize("name", files.FLOAT32)
def test_every_format_is_read_behind_a_url(tmp_path, memory, h, expected, name):
    root = memory(**{name: content(tmp_path, name)})
    report = upgrade_gallery(f"{root}/{name}", h, tmp_path / "new", settings=SETTINGS)
    assert report.rows == 230 and result_of(tmp_path / "new") == expected


@pytest.mark.parametrize("name", ["a.npy", "lists.parquet", "a.hdf5", "flat.faiss", "a.npz"])
def test_formats_in_a_bucket(tmp_path, s3, h, expected, name):
    upgrade_gallery(put(name, content(tmp_path, name)), h, tmp_path / "new", settings=SETTINGS)
    assert result_of(tmp_path / "new") == expected


def test_folders_ids_beside_and_other_columns(tmp_path, s3, h, expected):
    arrays = write_gallery(tmp_path / "g", (100, 41, 89), 12, ids="str", seed=1)
    for path in (tmp_path / "g").rglob("*.npy"):
        put(f"g/{path.relative_to(tmp_path / 'g')}", path.read_bytes())
    upgrade_gallery("s3://bucket/g", h, tmp_path / "from_s3", settings=SETTINGS)
    upgrade_gallery(tmp_path / "g", h, tmp_path / "local", settings=SETTINGS)
    assert result_of(tmp_path / "from_s3") == result_of(tmp_path / "local")
    for number, rows in enumerate(np.split(VECTORS, [80])):
        pa.parquet.write_table(pa.table({"v": files.lists(rows), "n": range(len(rows))}), tmp_path / "p")
        put(f"p/year=2020/{number}.parquet", (tmp_path / "p").read_bytes())
    ids = put("ids.txt", "\n".join(map(str, range(5, 235))).encode())
    opened = open_source("s3://bucket/p")
    assert list(opened.files) == ["year=2020/0.parquet", "year=2020/1.parquet"] and opened.added_files() == []
    beside = open_source("s3://bucket/p", SourceOptions(ids=location(ids)))
    upgrade_gallery(beside, h, tmp_path / "new", settings=SETTINGS)
    assert result_of(tmp_path / "new")["rows"] == expected["rows"]
    assert np.load(tmp_path / "new/ids/000000.npy")[:3].tolist() == [5, 6, 7]
    assert inspect("s3://bucket/p").source == "s3://bucket/p"
    assert arrays["ids"].size == 230


def test_a_network_that_fails_keeps_the_work_and_it_is_resumed(tmp_path, h, expected):
    resumed = 0
    with HttpFiles({"a.parquet": content(tmp_path, "lists.parquet")}) as server:
        for rows in (60, 120, 230):

            def cut(stage: str, done: int, _rows: int, rows: int = rows) -> None:
                if stage == "transform" and done >= rows:
                    server.failures = [503] * 1000

            dest = tmp_path / f"new{rows}"
            with pytest.raises(ResourceError, match=r"a\.parquet: cannot be read now, tried 3 times: 503"):
                upgrade_gallery(server.url("a.parquet"), h, dest, settings=SETTINGS, progress=cut)
            server.failures = []
            resumed += upgrade_gallery(server.url("a.parquet"), h, dest, settings=SETTINGS).resumed_rows
            assert result_of(dest) == expected
    assert resumed > 0


@pytest.mark.parametrize(("what", "words"), [("edited", "was changed"), ("gone", "vanished|no such object")])
def test_an_object_that_changes_meanwhile_is_named_and_nothing_is_published(tmp_path, memory, h, what, words):
    root = memory(**{"a.npy": content(tmp_path, "a.npy")})

    def edit(stage: str, done: int, _rows: int) -> None:
        if stage == "transform" and done >= 60:
            if what == "gone":
                fsspec.filesystem("memory").rm("/galleries/a.npy")
                memory(other=b"x")
            else:
                np.save(tmp_path / "a.npy", VECTORS + 1)
                memory(**{"a.npy": (tmp_path / "a.npy").read_bytes()})

    with pytest.raises(GalleryError, match=rf"memory://galleries/a\.npy: .*({words})"):
        upgrade_gallery(f"{root}/a.npy", h, tmp_path / "new", settings=SETTINGS, progress=_once(edit))
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.partial").exists()


def _once(edit):
    done: list[bool] = []

    def progress(stage: str, rows: int, of: int) -> None:
        if not done and stage == "transform" and rows >= 60:
            done.append(True)
            edit(stage, rows, of)

    return progress


@pytest.mark.parametrize("name", ["lists.parquet", "a.hdf5", "a.fbin", "a.npz", "a.feather", "flat.faiss"])
def test_a_truncated_object_is_named(tmp_path, memory, h, name):
    root = memory(**{name: content(tmp_path, name)[:-9]})
    with pytest.raises(GalleryError, match=f"memory://galleries/{name}"):
        upgrade_gallery(f"{root}/{name}", h, tmp_path / "new", settings=SETTINGS)


@pytest.mark.parametrize("name", ["lists.parquet", "a.hdf5", "a.npz", "a.feather", "flat.faiss", "a.safetensors"])
def test_libraries_pass_on_a_network_that_fails(tmp_path, name):
    with HttpFiles({name: content(tmp_path, name)}) as server:
        for answers in range(1, 4):  # the first tells the format
            server.failures = [0] * answers + [503] * 1000
            try:
                open_source(server.url(name)).read_rows(np.arange(230))
            except ResourceError as error:
                assert f"{name}: cannot be read now, tried 3 times: 503" in str(error)
                break
        else:
            pytest.fail("was read in three answers")


def test_a_bad_row_of_an_object_is_named(tmp_path, memory, h):
    vectors = VECTORS.copy()
    vectors[157, 3] = np.nan
    pa.parquet.write_table(pa.table({"v": files.lists(vectors)}), tmp_path / "a.parquet", row_group_size=100)
    root = memory(**{"a.parquet": (tmp_path / "a.parquet").read_bytes()})
    with pytest.raises(GalleryError, match=r"memory://galleries/a\.parquet, row group 1, row 57 holds NaN"):
        upgrade_gallery(f"{root}/a.parquet", h, tmp_path / "new", settings=NO_INDEX)


def test_a_sample_does_not_read_the_object(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((40_000, 64), np.float32)
    np.save(tmp_path / "a.npy", vectors)
    with HttpFiles({"a.npy": (tmp_path / "a.npy").read_bytes()}) as server:
        source = open_source(server.url("a.npy"))
        server.requests.clear()
        chosen, old, _ = source.sample(20, seed=1)
        assert (old == vectors[chosen]).all()
        assert server.bytes_sent <= 30 * remote_file.FIRST_BYTES < vectors.nbytes / 5


def test_a_published_gallery_that_was_copied_to_a_bucket_is_checked_there(tmp_path, s3, h):
    import s3fs

    np.save(tmp_path / "a.npy", VECTORS)
    upgrade_gallery(tmp_path / "a.npy", h, tmp_path / "new", settings=SETTINGS)
    s3fs.S3FileSystem().put(str(tmp_path / "new"), "bucket/published", recursive=True)
    whole = verify_gallery("s3://bucket/published")
    assert whole.rows == 230 and not whole.damaged and not whole.surplus and whole.index_opened
    assert open_source("s3://bucket/published").schema.rows == 230
    assert (read_embeddings("s3://bucket/published") == read_embeddings(tmp_path / "new")).all()
    shard = (tmp_path / "new/embeddings/000001.npy").read_bytes()
    put("published/embeddings/000001.npy", shard[:-1] + bytes([shard[-1] ^ 1]))
    s3fs.S3FileSystem().rm("bucket/published/index.faiss")
    damaged = verify_gallery("s3://bucket/published").damaged
    assert damaged.keys() == {"embeddings/000001.npy", "index.faiss"} and damaged["index.faiss"] == "is missing"


def test_fct_fit_and_fct_evaluate_read_the_same_places(tmp_path, memory):
    new = VECTORS[::-1].copy()
    np.save(tmp_path / "labels.npy", np.arange(230) % 7)
    root = memory(
        **{"old.parquet": content(tmp_path, "lists.parquet"), "labels.npy": (tmp_path / "labels.npy").read_bytes()}
    )
    np.save(tmp_path / "new.npy", new)
    memory(**{"new.npy": (tmp_path / "new.npy").read_bytes()})
    urls = {name: location(f"{root}/{name}") for name in ("old.parquet", "new.npy", "labels.npy")}
    pairs, _ = read_inputs({"old": urls["old.parquet"], "new": urls["new.npy"], "labels": urls["labels.npy"]})
    assert (pairs.old == VECTORS).all() and (pairs.new == new).all() and pairs.labels is not None
    labels = dict.fromkeys(("query_labels", "gallery_labels"), urls["labels.npy"])
    found = read_study_inputs({"gallery": urls["old.parquet"], "queries": urls["new.npy"], **labels})
    assert (found.gallery == VECTORS).all() and (found.queries == new).all()


# --- as a user types it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "h"
    export_transformation(linear_map(12, 10, seed=1), path, Options(targets=("core",)))
    return path


def arguments(source: str, bundle: Path, dest: Path | str) -> list[str]:
    return [source, "--transformation", str(bundle), "-o", str(dest), "--index", "none"]


def run(source: str, bundle: Path, dest: Path | str) -> subprocess.CompletedProcess[str]:
    return run_command("upgrade_gallery", *arguments(source, bundle, dest))


def test_what_a_user_sees(tmp_path, s3, bundle, monkeypatch):
    url = put("a.parquet", content(tmp_path, "lists.parquet"))
    done = run(url, bundle, tmp_path / "new")
    assert done.returncode == 0 and "s3://bucket/a.parquet: embedding 'v'" in done.stderr, done.stderr
    for source, code, words in (
        ("s3://bucket/none.parquet", 4, "s3://bucket/none.parquet: cannot be read: there is no such object"),
        ("s3://key:secret@bucket/a.parquet", 2, "must not hold a user or a password"),
    ):
        done = run(source, bundle, tmp_path / "other")
        assert done.returncode == code and words in done.stderr and "secret" not in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = run(url, bundle, "hf://datasets/somebody/new")
    assert done.returncode == 2 and "hf:// is only read here; choose a folder, or s3://" in done.stderr
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    # In another process: this one has a connection that was opened with them.
    command = [sys.executable, "-m", "fct_infer.cli.upgrade_gallery", *arguments(url, bundle, tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "access is refused; are credentials set" in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.parquet", "new"]


def test_a_signed_url_is_used_and_written_down_nowhere(tmp_path, bundle):
    with HttpFiles({"a.npy": content(tmp_path, "a.npy")}) as server:
        server.password = "geheim"
        done = run(f"{server.url('a.npy')}?sig=geheim", bundle, tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert "geheim" not in done.stderr + done.stdout
    assert not any(b"geheim" in path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file())


def test_killed_and_resumed_from_a_bucket(tmp_path, s3, bundle):
    vectors = np.random.default_rng(4).standard_normal((60_000, 12), np.float32)
    pa.parquet.write_table(pa.table({"v": files.fixed_size(vectors)}), tmp_path / "big.parquet", row_group_size=500)
    url = put("big.parquet", (tmp_path / "big.parquet").read_bytes())
    script = (
        "import sys; from fct_infer.connectors import parted; parted.PART_BYTES = 1500 * 48;"
        "from fct_infer.cli.upgrade_gallery import main; main()"
    )
    program = [sys.executable, "-c", script, *arguments(url, bundle, tmp_path / "new")]
    killed = subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    journal = tmp_path / "new.partial/journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and killed.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 5:
            os.kill(killed.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    done = subprocess.run([*program, "--json"], capture_output=True, text=True, check=True)
    assert '"resumed_rows": 0' not in done.stdout
    program[program.index(str(tmp_path / "new"))] = str(tmp_path / "whole")
    subprocess.run(program, capture_output=True, check=True)
    found = {path.name: path.read_bytes() for path in (tmp_path / "new/embeddings").iterdir()}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "whole/embeddings").iterdir()}
    assert len(found) == 40
