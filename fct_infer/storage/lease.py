"""Mutual exclusion in an object store: who creates the next of numbered objects holds it, and says so again and again.

FOLDER/lease-3          whose turn the third is: created where there was none, never changed
FOLDER/beat-TOKEN       what the holder of that token counts up while it lives

A holder that has not counted for some seconds, as the one who waits sees them pass, is taken for dead: no clock of one
machine is compared with another's. A holder that was only asleep finds that the next number exists, and stops.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread

from fct_infer.errors import FctError, OutputError
from fct_infer.storage.claims import is_alive, own_name
from fct_infer.storage.objects import put_new_object, put_object, read_object, remove_objects
from fct_infer.storage.urls import RemotePath

BEAT_SECONDS = 5.0
DEAD_SECONDS = 30.0  # without a beat
_POLL_SECONDS = 0.5
_LAST_BEAT_SECONDS = 10.0  # that a beat on its way is waited for at the end
_MOST_TURNS = 10_000


class Lease:
    """Held from its making until it is released, or taken over by another who thought its holder dead.

    Args:
        folder: of its objects.
        what: is leased, for messages.
        waiting: called while a holder's life is waited for.

    Raises:
        OutputError: another process holds it; or the store creates objects where there are some already, so that
            nobody can know.
        ResourceError: the server cannot be reached or refuses access.
    """

    def __init__(self, folder: RemotePath, what: str, waiting: Callable[[], None] | None = None) -> None:
        self._folder, self._what, self._waiting = folder, what, waiting
        self.token = secrets.token_hex(8)
        self._turn, self._lost, self._stop = 0, False, Event()
        self._beats = 0
        self._beat()
        try:
            self._take()
            self.check()
        except BaseException:
            with suppress(FctError):
                if self._turn and read_object(self._key(self._turn)) == self._said():
                    remove_objects([self._key(self._turn)])
            self._withdraw()
            raise
        self._thread = Thread(target=self._live, name="fct-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise an OutputError if another has taken it over; asks the server."""
        if not self._lost:
            mine, next_one = read_object(self._key(self._turn)), read_object(self._key(self._turn + 1))
            self._lost = mine != self._said() or next_one is not None
        if self._lost:
            raise OutputError(f"{self._what}: another process has taken this one's work over")

    def release(self) -> None:
        """Let the next one have it; a second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join(_LAST_BEAT_SECONDS)
        with suppress(FctError):
            self.check()
            # The lowest first: who creates one anew sees that the next is there, and steps back.
            remove_objects([self._key(turn) for turn in range(1, self._turn + 1)])
        self._withdraw()

    def _take(self) -> None:
        for turn in range(1, _MOST_TURNS):
            self._turn = turn
            found = read_object(self._key(turn))
            if found is None:
                if put_new_object(self._key(turn), self._said()):
                    self._check_store()
                    return
                found = read_object(self._key(turn))
            if found is not None and read_object(self._key(turn + 1)) is None:
                self._wait_for_death(found)
        raise OutputError(f"{self._what} is in use by another process")

    def _check_store(self) -> None:
        """A store that ignores the condition would let two hold it."""
        if put_new_object(self._key(self._turn), self._said() + b" "):
            remove_objects([self._key(self._turn)])
            raise OutputError(
                f"{self._what}: this store replaces an object although it was told to create it (If-None-Match: *), so "
                "two upgrades could not be kept apart; publish a folder and copy it there"
            )

    def _wait_for_death(self, holder: bytes) -> None:
        """Return if whoever holds a turn is dead; raise if it lives."""
        said = _parsed(holder)
        alive = is_alive(said["process"]) if said["process"].count(".") >= 3 else None
        host = said["process"].partition(".")[0]
        in_use = OutputError(f"{self._what} is in use by another process" + (f", on {host}" if host else ""))
        if alive:
            raise in_use
        beat, deadline = self._beat_of(said["token"]), time.monotonic() + DEAD_SECONDS
        while alive is None and time.monotonic() < deadline:
            if self._waiting:
                self._waiting()
            time.sleep(min(_POLL_SECONDS, DEAD_SECONDS / 4))
            if self._beat_of(said["token"]) != beat:
                raise in_use
        remove_objects([self._folder / f"beat-{said['token']}"])

    def _live(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self.check()  # first: who has lost it leaves nothing behind
                self._beat()
                if self._stop.is_set():  # it arrived after release waited for it in vain
                    self._withdraw()
            except OutputError:
                return
            except FctError:  # the network: the next beat may be luckier, and before a step is taken it is asked again
                continue

    def _beat(self) -> None:
        self._beats += 1
        put_object(self._folder / f"beat-{self.token}", str(self._beats).encode())

    def _beat_of(self, token: str) -> bytes | None:
        return read_object(self._folder / f"beat-{token}")

    def _withdraw(self) -> None:
        self._stop.set()
        with suppress(FctError):
            remove_objects([self._folder / f"beat-{self.token}"])

    def _said(self) -> bytes:
        return json.dumps({"token": self.token, "process": own_name()}).encode()

    def _key(self, turn: int) -> RemotePath:
        key: RemotePath = self._folder / f"lease-{turn}"
        return key


def _parsed(holder: bytes) -> dict[str, str]:
    """Return token and process of a holder; of what is damaged nobody beats."""
    try:
        found = json.loads(holder)
        said = {name: str(found[name]) for name in ("token", "process")}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {"token": "damaged", "process": ""}
    safe = said["token"].isalnum()
    return said if safe else {"token": "damaged", "process": ""}
