"""The way to a cluster: which address, who listens there, what the one machine has room for."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from threading import Thread
from types import SimpleNamespace

import pytest

from fct_infer.distributed import connecting, ray_executor
from fct_infer.distributed.connecting import connect
from fct_infer.distributed.ray_executor import RayExecutor
from fct_infer.errors import ResourceError, UsageError


class StartedRay:
    """Ray as far as connecting to it goes: a cluster of one machine with two CPUs."""

    def __init__(self):
        self.options, self.runs = {}, False

    def is_initialized(self):
        return self.runs

    def init(self, **options):
        self.options, self.runs = options, True

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, kind):
        return SimpleNamespace(options=lambda **options: None)

    def shutdown(self):
        self.runs = False


@pytest.mark.parametrize("wanted", [{"cpus": 3}, {"gpus": 1}])
def test_workers_that_this_machine_never_has_room_for(monkeypatch, wanted):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    started = StartedRay()
    monkeypatch.setattr(ray_executor, "ray_module", lambda: started)
    with pytest.raises(UsageError, match="this machine has"), RayExecutor(**wanted).session():
        pytest.fail("was let in")
    assert not started.runs
    with RayExecutor(cpus=2).session():
        assert started.options["address"] == "local"
        with RayExecutor(cpus=2).session():
            pass
        assert started.runs
    assert not started.runs


def test_a_cluster_that_the_environment_names_may_grow_and_has_its_own_memory(monkeypatch, listening):
    monkeypatch.setenv("RAY_ADDRESS", listening)
    started = StartedRay()
    monkeypatch.setattr(ray_executor, "ray_module", lambda: started)
    with RayExecutor(cpus=64).session():
        assert started.options["address"] == listening
        assert "object_store_memory" not in started.options


@contextmanager
def server(answer):
    """Somebody who says that to all who call, and hears nothing; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with suppress(OSError):
                while True:
                    calls.append(listening.accept()[0])
                    calls[-1].sendall(answer)

        calls = []
        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for call in calls:
            call.close()


@pytest.fixture
def listening():
    """The address of one who speaks HTTP/2, as Ray does."""
    with server(b"\0\0\0\4\0\0\0\0\0") as address:
        yield address


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_another_server_s_port(monkeypatch, answer):
    monkeypatch.setattr(connecting, "_CONNECT_SECONDS", 0.2)
    started = StartedRay()
    with server(answer) as address:
        with pytest.raises(ResourceError, match=rf"no Ray cluster at {address}: .*(timed out|another kind)"):
            connect(started, address)
        assert not started.runs
        monkeypatch.setenv("RAY_USE_TLS", "1")  # then only Ray can tell
        connect(started, address)
    assert started.runs


@pytest.mark.parametrize("kind", ["", "ray://"])
def test_an_address_at_which_nobody_listens_is_said_at_once(listening, kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = StartedRay()
    with pytest.raises(
        ResourceError, match=rf"no Ray cluster at {kind}127.0.0.1:{port}: port {port} .*refused.*ray status"
    ):
        connect(started, f"{kind}127.0.0.1:{port}")
    assert not started.runs
    connect(started, f"{kind}{listening}")
    assert started.options["address"] == f"{kind}{listening}"


def test_the_port_of_a_client_server_need_not_be_named():
    with pytest.raises(ResourceError, match=r"port 10001 of no-such-host\.invalid does not answer"):
        connect(StartedRay(), "ray://no-such-host.invalid")


@pytest.mark.parametrize("wrong", ["nonsense", "host:", ":6379", "host:port", "http://host:80", "a b:1", "h:123456"])
def test_what_is_no_address(wrong):
    with pytest.raises(UsageError, match="wanted HOST:PORT, ray://HOST:PORT or auto"):
        connect(StartedRay(), wrong)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": 0}, {"gpus": -1}])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(UsageError, match="wanted at least"):
        RayExecutor(**wrong)
