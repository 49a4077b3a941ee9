"""Which worker does which part, when workers come and go, fail, or are slow: decided by events and a clock alone.

Nothing here starts a process or looks at the time by itself, so that an executor and a simulation run the same code.
Every worker has one part in work; what is lost with a worker is that one.
"""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fct_infer.errors import ResourceError
from fct_infer.gallery import Part
from fct_infer.upgrade.crew import Came, Crew, Failed, Finished, Lost, Policy, may_pass

_MEMORY = 999  # finished parts whose speed is remembered
_ENOUGH = 3  # finished parts before any other is called slow


def run_parts(
    parts: Sequence[Part],
    crew: Crew,
    record: Callable[[Part, Any], None],
    policy: Policy | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Schedule:
    """Have all parts done, each recorded once.

    Args:
        parts: in the order in which they are begun.
        crew: who does them; what it still has in work when this returns or raises is of no use any more.
        record: told of each part and what came of it, once.
        policy: see there.
        clock: seconds; the one that ``crew.wait`` waits by.

    Returns:
        The schedule, for its counts.

    Raises:
        FctError: a part's own error, or, as a ResourceError, that of the last attempt, naming the part and the worker;
            or there is no worker any more.
    """
    schedule = Schedule(parts, policy or Policy(), clock)
    while not schedule.is_finished:
        for worker in schedule.given_up():
            schedule.lost(worker, "it was not heard of for too long")
            crew.stop(worker)
        for worker, part in schedule.assignments():
            crew.start(worker, part)
        for event in crew.wait(schedule.wake_at):
            match event:
                case Came(worker):
                    schedule.came(worker)
                case Lost(worker, why):
                    schedule.lost(worker, why)
                case Failed(worker, part, error):
                    schedule.failed(worker, part, error)
                case Finished(worker, part, result) if schedule.finished(worker, part):
                    record(part, result)
                    for other in schedule.others_at(part):
                        schedule.lost(other, "another worker was faster")
                        crew.stop(other)
    return schedule


@dataclass
class _Worker:
    part: Part | None = None
    since: float = 0.0
    failures: int = 0  # in a row
    rests_until: float = 0.0


@dataclass
class Counts:
    """What happened on the way."""

    failures: int = 0
    losses: int = 0
    repeated: int = 0  # parts begun once more because a worker was slow
    wasted: int = 0  # parts done twice


@dataclass
class Schedule:
    """The state between two events.

    Attributes:
        parts, policy, clock: see :func:`run_parts`.
        counts: of what happened.
    """

    parts: Sequence[Part]
    policy: Policy
    clock: Callable[[], float]
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._ready = deque(self.parts)
        self._later: list[tuple[float, int, Part]] = []  # a heap: not before when, tie-breaker, which
        self._open = {part.name for part in self.parts}
        self._workers: dict[str, _Worker] = {}
        self._idle: dict[str, _Worker] = {}  # those of them without a part, in the order in which they came to be
        self._at: dict[str, set[str]] = {}  # workers by the part they have in work
        self._failures: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._pace: deque[float] = deque(maxlen=_MEMORY)  # seconds a row
        self._usual_pace = 0.0  # their median
        self._hang_from = math.inf  # no worker is given up before; looked at anew then
        self._alone_since: float | None = self.clock()
        self._last_lost = ""
        self._ties = 0

    @property
    def is_finished(self) -> bool:
        """Whether all parts are done."""
        return not self._open

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workers)

    @property
    def wake_at(self) -> float | None:
        """When something is to be done although nothing happens; None: never."""
        moments = [self._later[0][0]] if self._later else []
        if self._alone_since is not None:
            moments.append(self._alone_since + self.policy.patience)
        resting = min((worker.rests_until for worker in self._idle.values()), default=None)
        if resting is not None and self._ready:
            moments.append(resting)
        if resting is not None and not self._ready:
            moments += [max(resting, when) for when, _ in self._slow()]
        if self._hang_from < math.inf:
            moments.append(self._hang_from)
        return min(moments, default=None)

    def assignments(self) -> list[tuple[str, Part]]:
        """Return who is to begin what now.

        Raises:
            ResourceError: there has been no worker for too long.
        """
        now = self.clock()
        if self._alone_since is not None and now - self._alone_since >= self.policy.patience:
            last = f"; the last, {self._last_lost}" if self._last_lost else ""
            raise ResourceError(
                f"no worker for {self.policy.patience:.0f} s, {len(self._open):,} parts are left; what is done is kept"
                f"{last}"
            )
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        found = []
        for name, worker in list(self._idle.items()):
            if worker.rests_until > now:
                continue
            part = self._next(now)
            if part is None:
                break
            del self._idle[name]
            worker.part, worker.since = part, now
            self._hang_from = min(self._hang_from, self._given_up_at(worker))
            self._at.setdefault(part.name, set()).add(name)
            found.append((name, part))
        return found

    def came(self, worker: str) -> None:
        """A worker is ready."""
        if worker not in self._workers:
            self._workers[worker] = self._idle[worker] = _Worker()
        self._alone_since = None

    def lost(self, worker: str, why: str) -> None:
        """A worker is gone; its part is done again, first of all, unless it has lost too many workers.

        Raises:
            ResourceError: it has.
        """
        self._last_lost = f"{worker}, was lost: {why}"
        gone = self._workers.pop(worker, None)
        self._idle.pop(worker, None)
        if not self._workers:
            self._alone_since = self.clock()
        part = None if gone is None else self._leave(worker, gone)
        if part is None or part.name not in self._open:
            return
        self.counts.losses += 1
        self._losses[part.name] += 1
        if (count := self._losses[part.name]) >= self.policy.losses:
            raise ResourceError(
                f"part {part.name}: {count} workers were lost over it, the last, {worker}: {why}; what is done is kept"
            )
        if not self._at.get(part.name):
            self._ready.appendleft(part)

    def failed(self, worker: str, part: Part, error: BaseException) -> None:
        """A part failed; what may pass is tried again later, by a worker that has not just failed.

        Raises:
            FctError: it will not pass, or has not often enough.
            BaseException: it is none of this project's errors.
        """
        if (known := self._workers.get(worker)) is None:
            return  # given up before
        self._let_go(worker, known)
        if part.name not in self._open:
            return
        if not may_pass(error):
            raise error
        self.counts.failures += 1
        known.failures += 1
        known.rests_until = self.clock() + self.policy.wait(known.failures)
        self._failures[part.name] += 1
        if (count := self._failures[part.name]) >= self.policy.attempts:
            raise ResourceError(
                f"part {part.name} failed {count} times, the last time on {worker}: {error}; what is done is kept"
            ) from error
        if not self._at.get(part.name):
            self._ties += 1
            when = self.clock() + self.policy.wait(count)
            heapq.heappush(self._later, (when, self._ties, part))

    def given_up(self) -> list[str]:
        """Return the workers that are so much slower than slow that nothing will come of them."""
        now = self.clock()
        if now < self._hang_from:
            return []
        ends = {name: self._given_up_at(worker) for name, worker in self._workers.items() if worker.part is not None}
        found = [name for name, end in ends.items() if end <= now]
        self._hang_from = min((end for end in ends.values() if end > now), default=math.inf)
        return found

    def _given_up_at(self, worker: _Worker) -> float:
        if worker.part is None or self.policy.hang_times <= 0 or len(self._pace) < _ENOUGH:
            return math.inf
        return worker.since + self._longest(worker.part, self.policy.hang_times)

    def finished(self, worker: str, part: Part) -> bool:
        """A part is durable; return whether that is news."""
        known = self._workers.get(worker)
        if known is not None:
            if known.part is not None and known.part.name == part.name:
                self._pace.append((self.clock() - known.since) / part.rows)
                self._usual_pace = statistics.median(self._pace)
                if len(self._pace) == _ENOUGH:  # from now on it is known what slow is, of parts begun before, too
                    self._hang_from = min(map(self._given_up_at, self._workers.values()))
            known.failures = 0
            self._let_go(worker, known)
        if part.name not in self._open:
            self.counts.wasted += 1
            return False
        self._open.remove(part.name)
        return True

    def others_at(self, part: Part) -> list[str]:
        """Return the workers that still have a part in work."""
        return sorted(self._at.get(part.name, ()))

    def _next(self, now: float) -> Part | None:
        while self._ready:
            part = self._ready.popleft()
            if part.name in self._open and not self._at.get(part.name):
                return part
        slow = min(self._slow(), key=lambda each: each[0], default=None)
        if slow is None or slow[0] > now:
            return None
        self.counts.repeated += 1
        return slow[1]

    def _slow(self) -> Iterator[tuple[float, Part]]:
        """Yield the parts in work, with when each is slow, counted from when it was begun last."""
        if self.policy.slow_factor <= 0 or len(self._pace) < _ENOUGH:
            return
        for workers in self._at.values():
            newest = max((self._workers[name] for name in workers), key=lambda worker: worker.since)
            assert newest.part is not None
            yield newest.since + self._longest(newest.part, 1.0), newest.part

    def _longest(self, part: Part, times: float) -> float:
        """Return the seconds from which on a part is slow, or some times that."""
        usual = self._usual_pace * part.rows
        return times * max(self.policy.slow_seconds, self.policy.slow_factor * usual)

    def _let_go(self, name: str, worker: _Worker) -> Part | None:
        """Have a worker without a part; return the one it had."""
        if name not in self._idle:
            self._idle[name] = worker
        return self._leave(name, worker)

    def _leave(self, name: str, worker: _Worker) -> Part | None:
        part, worker.part = worker.part, None
        if part is not None:
            self._at[part.name].discard(name)
            if not self._at[part.name]:
                del self._at[part.name]
        return part
