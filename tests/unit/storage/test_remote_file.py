"""Objects read by ranges: every byte asked for, few bytes beyond, or an error that names the object."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.servers import HttpFiles

from fct_infer.errors import GalleryError, ResourceError
from fct_infer.gallery.fingerprint import fingerprint
from fct_infer.storage import ReadFile, SeekableFile, location, remote_errors, remote_file

DATA = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote_errors, "WAITS", (0.0, 0.0))
    with HttpFiles({"x.bin": DATA, "short.bin": DATA[:100]}) as server:
        yield server


def opened(server: HttpFiles, name: str = "x.bin") -> ReadFile:
    return ReadFile(server.url(name))


def test_any_offset_from_many_threads(server):
    with opened(server) as file, ThreadPoolExecutor(4) as pool:
        offsets = [(offset * 7919) % 2_900_000 for offset in range(60)]
        pieces = list(pool.map(lambda offset: file.read(70_000, offset), offsets))
    assert pieces == [DATA[offset : offset + 70_000] for offset in offsets]


def test_a_reader_that_goes_forward_asks_for_more_each_time(server, monkeypatch):
    monkeypatch.setattr(remote_file, "MOST_BYTES", 1 << 19)
    monkeypatch.setattr(remote_file, "KEPT_BYTES", 1 << 20)
    with opened(server) as file:
        server.requests.clear()
        found = b"".join(file.read(min(10_000, 3_000_000 - at), at) for at in range(0, 3_000_000, 10_000))
        kept = sum(size for size, _ in file._file._pieces.values())
    sizes = [stop - start for _, _, start, stop in sorted(server.requests, key=lambda request: request[2])]
    assert found == DATA
    assert sizes == [65_536, 262_144, *[1 << 19] * 5, 50_880], "no byte is fetched twice"
    assert kept <= (1 << 20) + 2 * (1 << 19)


def test_a_reader_that_jumps_gets_little_more_than_it_asks_for(server):
    with opened(server) as file:
        server.requests.clear()
        for offset in range(0, 3_000_000, 600_000):
            assert file.read(500, offset) == DATA[offset : offset + 500]
    assert server.bytes_sent == 5 * 65_536


def test_small_gaps_do_not_stop_a_reader_that_goes_forward(server, monkeypatch):
    monkeypatch.setattr(remote_file, "MOST_BYTES", 1 << 19)
    with opened(server) as file:
        server.requests.clear()
        for offset in range(0, 3_000_000, 8_000):
            assert file.read(500, offset) == DATA[offset : offset + 500]
    assert len(server.requests) <= 9


def test_a_library_that_goes_back_finds_what_it_had(server):
    with SeekableFile(location(server.url("x.bin"))) as file:
        server.requests.clear()
        for _ in range(3):
            file.seek(1_000_000)
            buffer = bytearray(1000)
            assert file.readinto(buffer) == 1000 and bytes(buffer) == DATA[1_000_000:1_001_000]
        file.seek(-7, 2)
        assert file.read() == DATA[-7:] and file.readinto(bytearray(3)) == 0
    assert len(server.requests) == 2


def test_what_passes_is_tried_again(server):
    server.failures = [503, -1]
    with opened(server, "short.bin") as file:
        assert file.read(100) == DATA[:100]


@pytest.mark.parametrize(
    ("failures", "kind", "words"),
    [
        ([503] * 3, ResourceError, "x.bin: cannot be read now, tried 3 times: 503"),
        ([429] * 3, ResourceError, "tried 3 times: 429"),
        ([-1] * 3, ResourceError, "tried 3 times"),
        ([403], ResourceError, "x.bin: access is refused; are credentials set"),
        ([401], ResourceError, "access is refused"),
    ],
)
def test_a_failure_that_stays_is_not_the_objects_fault(server, failures, kind, words):
    with opened(server) as file:
        server.failures = failures
        with pytest.raises(kind, match=words):
            file.read(100)
        assert server.failures == []
        assert file.read(100) == DATA[:100], "the next reader may be luckier"


def test_what_is_not_there(server):
    with pytest.raises(GalleryError, match=r"none\.bin: cannot be read: there is no such object"):
        opened(server, "none.bin")
    with opened(server) as file, pytest.raises(GalleryError, match="ends at byte 3000000, 5 bytes short"):
        file.read(10, 2_999_995)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (None, "has vanished while it was read"),
        (DATA[:1000], "was changed while it was read"),
        (DATA[:2_500_100], "was changed while it was read"),
    ],
)
def test_an_object_that_changes_under_the_reader(server, now, words):
    with opened(server) as file:
        if now is None:
            del server.files["x.bin"]
        else:
            server.files["x.bin"] = now
        with pytest.raises(GalleryError, match=rf"x\.bin: {words}"):
            file.read(100_000, 2_500_000)


def test_a_server_that_sends_everything_is_refused_before_it_does(server):
    server.ranges = False
    with pytest.raises(GalleryError, match=r"x\.bin: the server does not send parts of it; download it first"):
        opened(server)


def test_a_server_that_is_gone_and_a_password_that_is_not_shown(server):
    server.password = "secret"
    with pytest.raises(ResourceError, match="access is refused") as error:
        opened(server, "x.bin?key=secre")
    assert "secre" not in str(error.value) + str(error.value.__cause__)
    with opened(server, "x.bin?key=secret") as file:
        assert file.read(10) == DATA[:10]
    with pytest.raises(ResourceError, match="Cannot connect to host"):
        ReadFile("http://127.0.0.1:9/x.bin")


def test_a_fingerprint_knows_the_etag_and_reads_pieces(server):
    before = fingerprint(server.url("x.bin"))
    assert before.keys() == {"size", "etag", "sha256"} and server.bytes_sent < 19 * 65_536
    assert fingerprint(server.url("x.bin")) == before
    server.files["x.bin"] = DATA[:-1] + bytes([DATA[-1] ^ 1])
    now = fingerprint(server.url("x.bin"))
    assert now["sha256"] != before["sha256"] and now["etag"] != before["etag"]


def test_a_process_that_ends_does_not_wait_for_a_server(server):
    with opened(server) as file:
        file.read(100)
        begun = [thread for thread in threading.enumerate() if thread.name == "fct-remote"]
        silent = threading.Event()
        answer = remote_file._begun(silent.wait)
        assert all(thread.daemon for thread in begun)
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "fct-remote"][-1]
    assert not answer.done()
    silent.set()
    answer.result(10)


def test_secrets_are_cut_from_what_libraries_say():
    text = "GET https://user:pw@host/x?sig=abc failed, url='http://h/y?token=t'"
    assert remote_errors.words_of(ValueError(text)) == "GET https://host/x?... failed, url='http://h/y?...'"
