"""A gallery in an object store: every request may fail, nothing is whole but one object, and another may be at work."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path
from threading import Event, Thread

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.children import run_code
from support.galleries import write_gallery
from support.programs import linear_map
from support.servers import s3_bucket

from fct_infer import Transformation, open_gallery, open_source, upgrade_gallery
from fct_infer.errors import ArtifactError, FctError, OutputError, ResourceError, UsageError
from fct_infer.gallery.url_place import UrlPlace, read_pointer
from fct_infer.gallery.versions import keep_versions, list_versions, rollback
from fct_infer.index.verify import verify_gallery
from fct_infer.storage import lease, location, objects, remote_errors
from fct_infer.storage.lease import Lease
from fct_infer.storage.objects import read_object
from fct_infer.upgrade import url_work
from fct_infer.upgrade.settings import Settings

FLAT = Settings(index="Flat", block_rows=30)
NO_INDEX = Settings(index="none", block_rows=30)
URL = "memory://store/galleries/new"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote_errors, "WAITS", (0.0,))
    monkeypatch.setattr(lease, "BEAT_SECONDS", 3600.0)  # else a slow machine's beats are counted among the requests
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def lively(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 0.4)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.02)


@pytest.fixture(scope="module")
def h():
    return Transformation(linear_map(12, 10, seed=1))


@pytest.fixture(scope="module")
def other():
    return Transformation(linear_map(12, 10, seed=2))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("g") / "g"
    write_gallery(folder, rows_per_shard=(60, 41, 90), old_dim=12, ids="str", seed=1)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory, gallery, h, other):
    folder = tmp_path_factory.mktemp("expected")
    for name, each in (("h", h), ("other", other)):
        upgrade_gallery(gallery, each, folder / name, settings=FLAT)
    return {name: result_of(folder / name) for name in ("h", "other")}


def result_of(folder: Path) -> dict[str, bytes]:
    """Everything an upgrade promises to be repeatable."""
    names = ("embeddings/*", "ids/*", "index.faiss")
    return {str(p.relative_to(folder)): p.read_bytes() for name in names for p in sorted(folder.glob(name))}


def published(url: str = URL) -> dict[str, bytes] | None:
    """The same of what readers of a URL are led to; None without."""
    current = UrlPlace(location(url)).current()
    if current is None:
        return None
    files = {str(path.relative_to(current[1])): objects.read_object(path) for path in current[1].rglob("*")}
    return {name: data for name, data in files.items() if name.startswith(("embeddings/", "ids/", "index.faiss"))}


class Faults:
    """Lets requests to memory:// fail: those of one kind, from the n-th on, or only that one."""

    def __init__(self, monkeypatch, kind: str, nth: int, error: type[BaseException], *, once: bool) -> None:
        self.calls, self.nth, self.error, self.once = 0, nth, error, once
        real = getattr(MemoryFileSystem, kind)

        def failing(fs, path, *arguments, **named):
            if kind != "info" or "lease-" not in path:  # by which memory:// tells whether there is one to be replaced
                self.count()
            return real(fs, path, *arguments, **named)

        monkeypatch.setattr(MemoryFileSystem, kind, failing)

    def count(self) -> None:
        self.calls += 1
        if self.calls == self.nth or (self.calls > self.nth and not self.once):
            raise self.error("the network is gone")


class Died(BaseException):
    """What ends a run as a kill would, but for the memory of this process."""


def test_the_same_bytes_as_in_a_folder_and_all_that_can_be_done_with_it(gallery, h, other, expected):
    report = upgrade_gallery(gallery, h, URL, settings=FLAT)
    assert str(report.dest) == URL and published() == expected["h"]
    assert not list(location(URL).joinpath(".partial").rglob("*"))
    found = open_gallery(URL)
    assert found.verify().index_opened and not found.verify().damaged and not found.verify().surplus
    rows, _ = open_source(URL).read_rows(np.arange(5))
    ids = found.search(rows, 1)[1][:, 0].tolist()
    assert ids == open_source(URL).open_part(open_source(URL).parts()[0]).read_ids(0, 5).tolist()
    with pytest.raises(OutputError, match="exists already; --force"):
        upgrade_gallery(gallery, other, URL, settings=FLAT)
    upgrade_gallery(gallery, other, URL, settings=FLAT, force=True)
    assert published() == expected["other"]
    new, old = list_versions(URL)
    assert new.is_current and not old.is_current and old.damage is None
    assert rollback(URL).version.version == old.version and published() == expected["h"]
    assert rollback(URL, new.version).replaced.version == old.version and published() == expected["other"]
    assert [each.version for each in keep_versions(URL, 0)] == [old.version]
    assert len({path.parts[-3] for path in location(URL).rglob("*.npy")}) == 1
    upgrade_gallery(open_source(URL), Transformation(linear_map(10, 4, seed=1)), f"{URL}2", settings=NO_INDEX)
    assert open_gallery(f"{URL}2").manifest.dim == 4


def test_parquet(gallery, h, tmp_path):
    settings = Settings(index="none", block_rows=30, format="parquet")
    upgrade_gallery(gallery, h, f"{URL}.parquet", settings=settings)
    upgrade_gallery(gallery, h, tmp_path / "new.parquet", settings=settings)
    assert published(f"{URL}.parquet") == result_of(tmp_path / "new.parquet")
    assert open_source(f"{URL}.parquet").schema.rows == 191
    assert not verify_gallery(f"{URL}.parquet").damaged


@pytest.mark.parametrize("kind", ["pipe_file", "cat_file", "info", "rm_file"])
@pytest.mark.parametrize(("error", "is_typed"), [(ConnectionError, True), (PermissionError, True), (Died, False)])
def test_any_request_may_fail(gallery, h, other, expected, monkeypatch, kind, error, is_typed):
    upgrade_gallery(gallery, h, URL, settings=FLAT)  # to be dropped when the next but one is published
    upgrade_gallery(gallery, other, URL, settings=FLAT, force=True)
    before, failed, nth = dict(MemoryFileSystem.store), 0, 1
    while True:
        with monkeypatch.context() as patch:
            faults = Faults(patch, kind, nth, error, once=error is Died)
            try:
                upgrade_gallery(gallery, h, URL, settings=FLAT, force=True)
            except BaseException as raised:
                failed += 1
                assert isinstance(raised, ResourceError if is_typed else Died), raised
            else:
                assert faults.calls < nth or error is Died or kind in ("rm_file", "cat_file")
            is_over = faults.calls < nth
        assert published() in (expected["h"], expected["other"])
        if is_over:
            break
        forget_the_dead()
        upgrade_gallery(gallery, h, URL, settings=FLAT, force=True)
        assert published() == expected["h"] and not verify_gallery(URL).damaged
        named = {entry.folder for entry in read_pointer(location(URL)).entries}
        assert len(named) == 2 and {path.name for path in (location(URL) / "versions").iterdir()} == named
        MemoryFileSystem.store.clear()
        MemoryFileSystem.store.update(before)
        nth += 1 + nth // 3
    assert failed > 5 or kind == "rm_file"


def forget_the_dead() -> None:
    """What was to be released and could not be, is that of a process which lives on here."""
    for path in list(location(URL).joinpath(".partial").rglob("lease-*")):
        objects.remove_objects([path])


def test_resumed_work_repeats_only_what_was_in_work(gallery, h, expected, monkeypatch):
    resumed = set()
    for nth in (6, 9, 12, 15):
        with monkeypatch.context() as patch, pytest.raises(Died):
            Faults(patch, "pipe_file", nth, Died, once=True)
            upgrade_gallery(gallery, h, URL, settings=FLAT)
        forget_the_dead()
        resumed.add(upgrade_gallery(gallery, h, URL, settings=FLAT).resumed_rows)
        assert published() == expected["h"]
        objects.remove_below(location(URL))
    assert resumed == {0, 60, 101, 191}


def grown(tmp_path: Path) -> Path:
    write_gallery(tmp_path / "g", rows_per_shard=(60, 41, 90, 30), old_dim=12, ids="str", seed=1)
    for folder in (tmp_path / "g").iterdir():
        (folder / "000003.npy").rename(tmp_path / f"{folder.name}-later.npy")
    return tmp_path / "g"


def grow(gallery: Path) -> None:
    for folder in gallery.iterdir():
        gallery.with_name(f"{folder.name}-later.npy").rename(folder / "000003.npy")


@pytest.mark.parametrize("index", ["none", "Flat", "IVF4,SQ8"])
def test_a_gallery_that_grew(tmp_path, h, index):
    gallery, settings = grown(tmp_path), Settings(index=index, block_rows=30)
    for dest in (URL, tmp_path / "folder"):
        assert upgrade_gallery(gallery, h, dest, settings=settings, append=True).resumed_rows == 0
    before = list_versions(URL)
    assert upgrade_gallery(gallery, h, URL, settings=settings, append=True).rows == 191
    assert list_versions(URL) == before
    grow(gallery)
    for dest in (URL, tmp_path / "folder"):
        report = upgrade_gallery(gallery, h, dest, settings=settings, append=True)
        assert (report.rows, report.resumed_rows) == (221, 191)
        assert index == "none" or "index of 191 rows was extended" in report.index_placement.get("lists", "")
    assert published() == result_of(tmp_path / "folder")
    assert rollback(URL).version.version == before[0].version and open_source(URL).schema.rows == 191
    assert not list(location(URL).joinpath(".partial").rglob("*"))


def test_a_gallery_that_grew_is_stopped_and_resumed(tmp_path, h, monkeypatch):
    gallery, dest, stopped = grown(tmp_path), tmp_path / "folder", 0
    for place in (URL, dest):
        upgrade_gallery(gallery, h, place, settings=FLAT)
    grow(gallery)
    upgrade_gallery(gallery, h, dest, settings=FLAT, append=True)
    for nth in range(1, 40, 3):
        with monkeypatch.context() as patch:
            Faults(patch, "pipe_file", nth, Died, once=True)
            try:
                upgrade_gallery(gallery, h, URL, settings=FLAT, append=True)
            except Died:
                stopped += 1
        forget_the_dead()
    upgrade_gallery(gallery, h, URL, settings=FLAT, append=True)
    assert stopped > 3 and published() == result_of(dest)


def test_what_is_damaged_in_the_store_is_made_again(tmp_path, h):
    gallery, dest = grown(tmp_path), tmp_path / "folder"
    upgrade_gallery(gallery, h, URL, settings=NO_INDEX)
    path = UrlPlace(location(URL)).current()[1] / "embeddings" / "000001.npy"
    data = read_object(path)
    objects.put_object(path, data[:-1] + bytes([data[-1] ^ 1]))
    grow(gallery)
    assert upgrade_gallery(gallery, h, URL, settings=NO_INDEX, append=True).resumed_rows == 150
    upgrade_gallery(gallery, h, dest, settings=NO_INDEX)
    assert published() == result_of(dest)
    other = Transformation(linear_map(12, 10, seed=5))
    with pytest.raises(UsageError, match="rows were made otherwise: transformation"):
        upgrade_gallery(gallery, other, URL, settings=NO_INDEX, append=True)


def test_a_trained_index_is_resumed(tmp_path, gallery, h, monkeypatch):
    settings = Settings(index="IVF4,SQ8", block_rows=30)
    upgrade_gallery(gallery, h, tmp_path / "calm", settings=settings)
    with monkeypatch.context() as patch, pytest.raises(Died):
        Faults(patch, "pipe_file", 9, Died, once=True)
        upgrade_gallery(gallery, h, URL, settings=settings)
    forget_the_dead()
    assert read_object(next(location(URL).joinpath(".partial").rglob("trained.json")))
    upgrade_gallery(gallery, h, URL, settings=settings)
    assert published() == result_of(tmp_path / "calm")


def test_a_store_that_lists_late_gives_all_rows_or_an_error(gallery, h, expected, monkeypatch):
    real = MemoryFileSystem.find
    real_ls = MemoryFileSystem.ls

    def hides(path: object) -> bool:
        return "000001" in str(path["name"] if isinstance(path, dict) else path)

    monkeypatch.setattr(
        MemoryFileSystem, "ls", lambda fs, path, **named: [e for e in real_ls(fs, path, **named) if not hides(e)]
    )
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda fs, path, **named: [e for e in real(fs, path, **named) if not hides(e)]
    )
    with pytest.raises((OutputError, ResourceError)):
        upgrade_gallery(gallery, h, URL, settings=FLAT)
    assert published() is None
    monkeypatch.undo()
    assert upgrade_gallery(gallery, h, URL, settings=FLAT).resumed_rows == 191
    assert published() == expected["h"]
    with monkeypatch.context() as patch:
        patch.setattr(
            MemoryFileSystem, "ls", lambda fs, path, **named: [e for e in real_ls(fs, path, **named) if not hides(e)]
        )
        with pytest.raises(FctError, match=r"000001|lists files of 150 of 191 rows"):
            open_source(URL)


def test_readers_meanwhile_see_one_gallery_whole(gallery, h, other, expected):
    upgrade_gallery(gallery, h, URL, settings=FLAT)
    stop, seen = Event(), []

    def read():
        while not stop.is_set():
            seen.append(open_source(URL).read_rows(np.arange(191))[0].tobytes())

    def rows(name):
        return b"".join(data[-rows * 40 :] for data, rows in zip(shards(name), (60, 41, 90), strict=True))

    def shards(name):
        return [data for file, data in sorted(expected[name].items()) if file.startswith("embeddings/")]

    reader = Thread(target=read)
    reader.start()
    for each in (other, h, other):
        upgrade_gallery(gallery, each, URL, settings=FLAT, force=True)
    stop.set()
    reader.join()
    assert seen and set(seen) <= {rows("h"), rows("other")}


# --- of two at once ---------------------------------------------------------------------------------------------------


def test_of_two_one_goes_on(gallery, h):
    held = Lease(UrlPlace(location(URL)).below(".partial"), URL)
    with pytest.raises(OutputError, match=f"{URL} is in use by another process"):
        upgrade_gallery(gallery, h, URL, settings=NO_INDEX)
    with pytest.raises((OutputError, ArtifactError)):
        rollback(URL)
    held.release()
    upgrade_gallery(gallery, h, URL, settings=NO_INDEX)


def test_of_many_that_begin_at_the_same_moment_one_holds_it():
    folder, held, refused = UrlPlace(location(URL)).below(".partial"), [], []

    def take():
        try:
            held.append(Lease(folder, URL))
        except OutputError:
            refused.append(1)

    threads = [Thread(target=take) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) <= 1 and len(held) + len(refused) == 12
    for each in held:
        each.check()
        each.release()
    Lease(folder, URL).release()


def test_another_machine_that_lives_is_not_disturbed_and_a_dead_one_is_taken_over(monkeypatch, lively):
    folder = UrlPlace(location(URL)).below(".partial")
    monkeypatch.setattr(lease, "own_name", lambda: "elsewhere-1.boot.7.1")
    far = Lease(folder, URL)
    with pytest.raises(OutputError, match="in use by another process, on elsewhere-1"):
        Lease(folder, URL)
    far._stop.set()  # its machine sleeps
    far._thread.join()
    far._beat()  # the last that was heard
    waited = []
    near = Lease(folder, URL, lambda: waited.append(1))
    assert waited
    with pytest.raises(OutputError, match="has taken this one's work over"):
        far.check()  # and wakes up
    near.check()
    near.release()
    assert not list(folder.rglob("lease-*"))


def test_who_lost_it_leaves_nothing_behind(lively):
    folder = UrlPlace(location(URL)).below(".partial")
    held = Lease(folder, URL)
    MemoryFileSystem.store.clear()
    held._thread.join()
    assert not MemoryFileSystem.store
    held.release()
    with pytest.raises(OutputError, match="has taken this one's work over"):
        held.check()


def test_a_beat_that_arrives_after_the_end_is_removed(monkeypatch, lively):
    folder, under_way, arrives = UrlPlace(location(URL)).below(".partial"), Event(), Event()
    monkeypatch.setattr(lease, "_LAST_BEAT_SECONDS", 0.01)
    held = Lease(folder, URL)
    real = lease.put_object

    def slow(path, data):
        under_way.set()
        arrives.wait()
        real(path, data)

    monkeypatch.setattr(lease, "put_object", slow)
    assert under_way.wait(10)
    held.release()
    arrives.set()
    held._thread.join()
    assert not list(folder.rglob("*"))


def test_a_sleeper_that_was_taken_over_publishes_nothing(gallery, h, expected, monkeypatch, lively):
    monkeypatch.setattr(lease, "own_name", lambda: "elsewhere-1.boot.7.1")

    def sleep(stage: str, done: int, _rows: int) -> None:
        if stage == "verify" and not slept:
            slept.append(1)
            MemoryFileSystem().pipe_file(f"{URL}/.partial/lease-2".removeprefix("memory:/"), b"{}")

    slept: list[int] = []
    with pytest.raises(OutputError, match="has taken this one's work over"):
        upgrade_gallery(gallery, h, URL, settings=FLAT, progress=sleep)
    assert published() is None
    assert upgrade_gallery(gallery, h, URL, settings=FLAT).resumed_rows == 191
    assert published() == expected["h"]


def test_a_store_that_cannot_keep_two_apart_is_refused(gallery, h, monkeypatch):
    real = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda fs, path, value, mode="": real(fs, path, value))
    with pytest.raises(OutputError, match="If-None-Match"):
        upgrade_gallery(gallery, h, URL, settings=NO_INDEX)
    assert published() is None


# --- what lies there already, and what does not fit -------------------------------------------------------------------


def test_what_was_not_published_is_not_replaced(gallery, h):
    fsspec.filesystem("memory").pipe_file("/store/galleries/new/thesis.txt", b"x")
    with pytest.raises(OutputError, match=r"holds thesis\.txt, which fct-upgrade-gallery did not publish"):
        upgrade_gallery(gallery, h, URL, settings=NO_INDEX, force=True)
    assert [path.name for path in location(URL).rglob("*")] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("dest", "words"),
    [
        ("http://127.0.0.1:9/new", "http:// is only read here"),
        ("hf://datasets/a/b", "hf:// is only read here"),
        ("memory://store/source/inside", "lie in each other"),
        ("memory://store", "lie in each other"),
    ],
)
def test_places_that_are_refused(gallery, h, dest, words):
    for path in gallery.rglob("*.npy"):
        name = f"/store/source/{path.relative_to(gallery)}"
        fsspec.filesystem("memory").pipe_file(name, path.read_bytes())
    with pytest.raises(FctError, match=words):
        upgrade_gallery("memory://store/source", h, dest, settings=NO_INDEX)


def test_who_may_read_one_object_only_reads_it(tmp_path, h, monkeypatch):
    np.save(tmp_path / "a.npy", np.random.default_rng(1).standard_normal((50, 12), np.float32))
    fsspec.filesystem("memory").pipe_file("/store/a.npy", (tmp_path / "a.npy").read_bytes())
    real = MemoryFileSystem.cat_file

    def only(fs, path, *arguments, **named):
        if "published.json" in path:
            raise PermissionError(13, "Access Denied")
        return real(fs, path, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", only)
    assert upgrade_gallery("memory://store/a.npy", h, tmp_path / "new", settings=NO_INDEX).rows == 50
    with pytest.raises(ResourceError, match="access is refused"):
        upgrade_gallery(tmp_path / "a.npy", h, URL, settings=NO_INDEX)


@pytest.mark.parametrize("damage", [b"{}", b"\xff", None])
def test_a_damaged_pointer_is_named_and_nothing_is_guessed(gallery, h, damage):
    upgrade_gallery(gallery, h, URL, settings=NO_INDEX)
    path = location(URL) / "published.json"
    data = objects.read_object(path)
    objects.put_object(path, data.replace(b'"number": 1', b'"number": 2') if damage is None else damage)
    for call in (open_gallery, open_source, verify_gallery, list_versions, rollback):
        with pytest.raises(ArtifactError, match=r"published\.json: "):
            call(URL)
    with pytest.raises(OutputError, match=r"published\.json"):
        upgrade_gallery(gallery, h, URL, settings=NO_INDEX, force=True)


def test_damage_of_what_was_written_is_found_before_it_is_published(gallery, h, expected):
    def damage(stage: str, done: int, _rows: int) -> None:
        if stage == "verify" and not done_once:
            done_once.append(1)
            path = next(path for path in location(URL).rglob("*.npy") if path.name == "000001.npy")
            data = objects.read_object(path)
            objects.put_object(path, data[:-1] + bytes([data[-1] ^ 1]))

    done_once: list[int] = []
    with pytest.raises((ResourceError, FctError)):
        upgrade_gallery(gallery, h, URL, settings=NO_INDEX, progress=damage)
    assert published() is None
    report = upgrade_gallery(gallery, h, URL, settings=NO_INDEX)
    assert report.resumed_rows >= 150 - 60
    assert published() == {name: data for name, data in expected["h"].items() if name != "index.faiss"}


def test_unfinished_work_of_another_upgrade_is_named(gallery, h, other, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Died):
        Faults(patch, "pipe_file", 14, Died, once=True)
        upgrade_gallery(gallery, h, URL, settings=NO_INDEX)
    forget_the_dead()
    with pytest.raises(OutputError, match=r"unfinished work of another upgrade; different: transformation"):
        upgrade_gallery(gallery, other, URL, settings=NO_INDEX)
    upgrade_gallery(gallery, other, URL, settings=NO_INDEX, restart=True)
    pointer = read_pointer(location(URL))
    folders = {path.relative_to(location(URL)).parts[1] for path in location(URL).rglob("*.npy")}
    assert folders == {pointer.current.folder}


def test_a_large_object_is_sent_in_pieces_and_never_held_whole(monkeypatch):
    import tracemalloc

    monkeypatch.setattr(objects, "PIECE_BYTES", 1 << 20)
    sent = []

    class Sink:
        def write(self, data):
            sent.append(len(data))

        def close(self): ...

        def commit(self): ...

    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: Sink())
    writer, block = objects.ObjectWriter(location(URL)), memoryview(bytes(700_000))
    tracemalloc.start()
    for _ in range(40):
        writer.write(block)
    writer.commit()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sent) == 28_000_000 and max(sent) == 1 << 20 and peak < 5 << 20


# --- a server ---------------------------------------------------------------------------------------------------------

DYING = textwrap.dedent("""
    import itertools, os, signal, sys
    from support.programs import linear_map
    from fct_infer import Transformation, upgrade_gallery
    from fct_infer.storage import objects
    from fct_infer.upgrade.settings import Settings

    objects.PIECE_BYTES = 5 << 20
    calls, real = itertools.count(), objects.ObjectWriter._tell
    def counted(self, call):
        if next(calls) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, call)
    objects.ObjectWriter._tell = counted
    upgrade_gallery(sys.argv[1], Transformation(linear_map(12, 640, seed=1)), sys.argv[2],
                    settings=Settings(index="none", block_rows=500))
""")


@pytest.fixture(scope="module")
def s3():
    with s3_bucket() as filesystem:
        yield filesystem


@pytest.mark.parametrize("call", [4, 6])
def test_killed_while_it_is_sent_to_s3_and_resumed(tmp_path, s3, monkeypatch, call):
    """By multipart upload: between the last piece of the first object and its end, and in the second."""
    write_gallery(tmp_path / "g", rows_per_shard=(6000, 5000), old_dim=12, ids="int", seed=1)
    url = f"s3://bucket/killed{call}"
    done = run_code(DYING, tmp_path / "g", url, call)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert published(url) is None
    assert s3.call_s3("list_multipart_uploads", Bucket="bucket", Prefix=f"killed{call}/").get("Uploads")
    monkeypatch.setattr(objects, "PIECE_BYTES", 5 << 20)
    h = Transformation(linear_map(12, 640, seed=1))
    settings = Settings(index="none", block_rows=500)
    assert upgrade_gallery(tmp_path / "g", h, url, settings=settings).resumed_rows == (6000 if call == 6 else 0)
    assert not s3.call_s3("list_multipart_uploads", Bucket="bucket", Prefix=f"killed{call}/").get("Uploads")
    upgrade_gallery(tmp_path / "g", h, tmp_path / "calm", settings=settings)
    assert published(url) == result_of(tmp_path / "calm")
    assert not s3.find(f"bucket/killed{call}/.partial")


def test_as_a_user_types_it(tmp_path, s3, gallery):
    from click.testing import CliRunner

    from fct_infer.cli.gallery import command as gallery_command
    from fct_infer.cli.upgrade_gallery import command as upgrade_command
    from fct_infer.export import Options, export_transformation

    export_transformation(linear_map(12, 10, seed=1), tmp_path / "h", Options(targets=("core",)))
    url, runner = "s3://bucket/typed", CliRunner()

    def run(command, *arguments: str, code: int = 0) -> str:
        done = runner.invoke(command, [*map(str, arguments)], standalone_mode=False)
        assert done.exception is None and (done.return_value or 0) == code, (done.output, done.exception)
        return done.output

    upgrade = (gallery, "--transformation", tmp_path / "h", "-o", url, "--index", "Flat")
    said = run(upgrade_command, *upgrade, "--dry-run")
    assert "published.json, which is put last" in said and "If-None-Match" not in said and not s3.find("bucket/typed")
    assert f"fct-gallery verify {url}" in run(upgrade_command, *upgrade)
    assert "none" in run(gallery_command, "verify", url)
    np.save(tmp_path / "q.npy", open_source(url).read_rows(np.arange(3))[0])
    assert "3 queries of s3://bucket/typed by" in run(gallery_command, "search", url, "--queries", tmp_path / "q.npy")
    run(upgrade_command, *upgrade, "--force", "--normalize")
    assert run(gallery_command, "versions", url).count("\n") >= 3
    assert "is version" in run(gallery_command, "rollback", url)
    assert "191 rows" in run(gallery_command, "inspect", url)
    assert os.environ["AWS_ENDPOINT_URL"] and url_work.WORK == ".partial"
