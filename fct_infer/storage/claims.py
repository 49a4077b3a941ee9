"""Mutual exclusion by files alone, for file systems without locks."""

from __future__ import annotations

import os
import random
import socket
import time
from contextlib import suppress
from pathlib import Path

from fct_infer.errors import OutputError, ResourceError

_TRIES = 4  # those who begin at the same moment see each other and both step back
_LONGEST_WAIT = 0.2  # seconds


class Claim:
    """A file beside ``path`` that names its process: whoever sees another's steps back.

    Every process has a name of its own, so nobody can remove a claim that is still in use, which taking over one common
    file would risk. What a process of this machine left when it was killed is removed; another machine's is believed.

    Raises:
        OutputError: another process holds it; names the file to remove if that process is gone.
        ResourceError: the file cannot be made.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = path.with_name(f"{path.name}.{own_name()}.{id(self):x}")
        for _ in range(_TRIES):
            self._make()
            claims = (path.parent / name for name in os.listdir(path.parent) if name.startswith(path.name + "."))
            others = [claim for claim in claims if claim != self._path and _is_held(claim, path.name)]
            if not others:
                return
            self.release()
            time.sleep(random.uniform(0, _LONGEST_WAIT))
        raise OutputError(f"{what} is in use by another process; if there is none, remove {others[0]}")

    def _make(self) -> None:
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise ResourceError(f"{self._path}: cannot be made: {error.strerror}") from error

    def release(self) -> None:
        """Let go of it."""
        with suppress(FileNotFoundError):
            self._path.unlink()


def own_name() -> str:
    """Return a name that no other process has, here or on another machine."""
    return f"{_host()}.{_boot()}.{os.getpid()}.{_start_of(os.getpid())}"


def _host() -> str:
    """The machine, and which processes of it are seen: containers number theirs each for itself."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}-{namespace}"


def _is_held(claim: Path, lock: str) -> bool:
    """Whether a claim's process may be alive; if it cannot be, its claim is removed."""
    name, dot, _ = claim.name.removeprefix(lock + ".").rpartition(".")
    if not dot or name.count(".") < 3:
        return False  # not a claim
    if is_alive(name) is not False:
        return True
    with suppress(FileNotFoundError):
        claim.unlink()
    return False


def is_alive(name: str) -> bool | None:
    """Whether the process of an :func:`own_name` is alive; None if it is another machine's, which cannot be told."""
    host, boot, pid, start = name.rsplit(".", 3)
    if host != _host():
        return None
    return boot == _boot() and pid.isdigit() and start != "" and _start_of(int(pid)) == start


def _boot() -> str:
    """Which run of the machine this is: process numbers begin anew with each."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "unknown"


def _start_of(pid: int) -> str:
    """When a process began, in clock ticks: numbers are used again. Empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
