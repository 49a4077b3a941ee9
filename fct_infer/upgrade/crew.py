"""What a schedule of parts is told of its workers, what it tells them, and how much it bears with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from fct_infer.errors import FctError, ResourceError
from fct_infer.gallery import Part


@dataclass(frozen=True)
class Policy:
    """How much is borne with.

    Attributes:
        attempts: failures of one part before its error is the end.
        losses: workers lost over one part before that is the end: machines come and go, but it may take their memory.
        first_wait, longest_wait: seconds until a part that failed is tried again, and its worker gets another one;
            twice as long each time, up to the longest.
        patience: seconds without any worker before that is the end.
        slow_factor: how many times as long as usual a part takes before an idle worker begins it once more; 0: never.
        slow_seconds: how long at least.
        hang_times: how many times as long as that until its worker is given up; 0: never.
    """

    attempts: int = 8
    losses: int = 16
    first_wait: float = 1.0
    longest_wait: float = 60.0
    patience: float = 600.0
    slow_factor: float = 3.0
    slow_seconds: float = 30.0
    hang_times: float = 20.0

    def wait(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return min(self.longest_wait, self.first_wait * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True)
class Came:
    """A worker is ready for parts."""

    worker: str


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with what it had in work; a message says why."""

    worker: str
    why: str


@dataclass(frozen=True)
class Finished:
    """A worker's part is done, and durable if it is written; with what came of it."""

    worker: str
    part: Part
    result: Any


@dataclass(frozen=True)
class Failed:
    """A worker's part failed; the worker is ready for another."""

    worker: str
    part: Part
    error: BaseException


Event: TypeAlias = Came | Lost | Finished | Failed


class Crew(Protocol):
    """The workers, as the loop sees them."""

    def start(self, worker: str, part: Part) -> None:
        """Have a part done; returns at once."""

    def stop(self, worker: str) -> None:
        """End a worker whose part another one has done meanwhile; it is not heard of again under this name."""

    def wait(self, until: float | None) -> Iterable[Event]:
        """Return what has happened, once something has, or the clock reads ``until``; then maybe nothing.

        Raises:
            FctError: no worker can do what is asked, whatever the part.
        """


def may_pass(error: BaseException) -> bool:
    """Whether a part may succeed if it is tried again: the machine, the disk or the network failed, not the input."""
    if isinstance(error, FctError):
        return isinstance(error, ResourceError)
    return isinstance(error, OSError)
