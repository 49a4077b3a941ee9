"""The way to a Ray cluster: its package, its address, and what is in the way."""

from __future__ import annotations

import importlib
import os
import re
import socket
from typing import Any

from fct_infer.errors import ResourceError, UsageError, import_error

_OBJECT_STORE_BYTES = 80 << 20  # rows never pass through it
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_CONNECT_SECONDS = 5.0  # to a port; Ray itself goes on trying for more than a minute
_CLIENT, _CLIENT_PORT = "ray://", "10001"
_STARTS_ONE = "local"
_TOKEN = "if it asks for a token, as `ray start` has it do by default, set RAY_AUTH_MODE=token here, too"
_HEAD_BYTES, _KIND_AT, _SETTINGS = 9, 3, b"\x04"  # of the frames of HTTP/2
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(_KIND_AT) + _SETTINGS + bytes(_HEAD_BYTES - _KIND_AT - 1)
_PLACE = re.compile(r"(?P<host>\[[^][]+]|[^][:/\s]+)(?::(?P<port>\d{1,5}))?")


def ray_module() -> Any:
    """Return Ray.

    Raises:
        MissingExtraError: it is not installed.
        ResourceError: it is, and cannot be loaded.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise import_error("ray", "ray", error) from error


def connect(ray: Any, address: str | None) -> bool:
    """Connect to a cluster, or start one on this machine; return whether one was started.

    Args:
        ray: the module, not connected.
        address: ``host:port``, ``ray://host:port`` or ``auto``; None: what ``RAY_ADDRESS`` says, else one is started.

    Raises:
        UsageError: the address is none.
        ResourceError: there is no such cluster.
    """
    wanted = address or os.environ.get("RAY_ADDRESS") or _STARTS_ONE  # Ray reads that, where it is told none
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    starts_one = wanted == _STARTS_ONE
    if starts_one:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    elif wanted != "auto":
        _check_reachable(wanted)
    try:
        ray.init(address=wanted, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError, ImportError) as error:
        said = f"no Ray cluster at {_named(wanted)}: {short(error)}"
        raise ResourceError(said if starts_one else f"{said}; {_TOKEN}") from error
    return starts_one


def short(error: BaseException) -> str:
    """Return the first line of an error, however much Ray tells."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _named(address: str) -> str:
    said = {_STARTS_ONE: "this machine", "auto": "auto, which wants a node of one on this machine"}
    return said.get(address, address)


def _check_reachable(address: str) -> None:
    """Refuse an address at which no such server listens: Ray would try for more than a minute before it says so."""
    is_client = address.startswith(_CLIENT)
    found = _PLACE.fullmatch(address.removeprefix(_CLIENT).rstrip("/"))
    port = found["port"] or (_CLIENT_PORT if is_client else None) if found else None
    if found is None or port is None:
        raise UsageError(f"{address[:200]!r} is no address of a Ray cluster: wanted HOST:PORT, ray://HOST:PORT or auto")
    host = found["host"].strip("[]")
    try:
        reason = None if _speaks(host, int(port)) else "what listens there is another kind of server"
    except (OSError, OverflowError, UnicodeError) as error:  # what is no port, and what is no name
        reason = (error.strerror if isinstance(error, OSError) else None) or short(error)
    if reason is not None:
        raise ResourceError(
            f"no Ray cluster at {address}: port {port} of {host} does not answer ({reason}); does it run there "
            f"(`ray status`), is it the port of its {'client server' if is_client else 'head node'}, is one of the "
            "two machines behind a firewall?"
        )


def _speaks(host: str, port: int) -> bool:
    """Whether a server listens that speaks HTTP/2, as gRPC and so Ray does; of encrypted ones only Ray can tell."""
    with socket.create_connection((host, port), _CONNECT_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return True
        connection.sendall(_GREETING)
        answer = connection.recv(_HEAD_BYTES, socket.MSG_WAITALL)
    return answer[_KIND_AT : _KIND_AT + 1] == _SETTINGS
