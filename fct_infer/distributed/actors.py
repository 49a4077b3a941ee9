"""The workers of a Ray cluster as a schedule sees them: one actor a worker, one part at a time.

Ray starts processes and says when they end; which part goes where is decided by :mod:`fct_infer.upgrade.schedule`. An
actor that died is never restarted by Ray, which would hand it its old arguments and have it answer as unavailable
meanwhile: another one is asked for in its place. One that is without work when a job ends is at hand for the next.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from fct_infer.distributed.connecting import short
from fct_infer.errors import FctError, GalleryError, ResourceError, UnsupportedError
from fct_infer.gallery import Part
from fct_infer.gallery.jobs import Job
from fct_infer.upgrade.crew import Came, Event, Failed, Finished, Lost, Policy

_LONGEST_WAIT = 5.0  # seconds in ray.wait, which is deaf to Ctrl-C
_SECONDS_TO_DIE = 30.0
_CANNOT_BEGIN = "raised in its creation task"  # Ray's words for an actor that cannot be made


class _RemoteWorker:
    """In an actor: does parts of one job after another; their errors come back as values, as they are."""

    def __init__(self) -> None:
        self._do: Callable[[Part], Any] | None = None
        self._held = ExitStack()  # the job, as long as it is open

    def open(self, job: Job) -> str | BaseException:
        """Get ready for a job; return the worker's machine and process."""
        self.close()  # two jobs' galleries may not fit into memory
        try:
            self._do = self._held.enter_context(job.open())
        except (FctError, OSError) as error:
            return _portable(error)
        except MemoryError:
            return ResourceError(f"{socket.gethostname()}: out of memory")
        return f"{socket.gethostname()}:{os.getpid()}"

    def run(self, part: Part) -> Any:
        """Do a part; return what comes of it, or its error."""
        assert self._do is not None
        try:
            return self._do(part)
        except (FctError, OSError) as error:
            return _portable(error)
        except MemoryError:  # another machine may have more
            return ResourceError(f"{socket.gethostname()}: out of memory")

    def close(self) -> None:
        """Forget the job, and let go of what it holds open; without one, nothing is done."""
        self._do = None
        self._held.close()


class Actors:
    """The actors of a session: lent to one job after another, as starting a process takes seconds.

    Args:
        ray: the module, connected.
        resources: of each, as Ray calls them.
    """

    def __init__(self, ray: Any, resources: dict[str, int]) -> None:
        self.ray = ray
        self._remote = ray.remote(_RemoteWorker).options(max_restarts=0, max_task_retries=0, **resources)
        self._asked = 0
        self._idle: list[tuple[str, Any]] = []

    def take(self) -> tuple[str, Any]:
        """Return the one given back last, or else ask for another one; with its name, which no other has."""
        if self._idle:
            return self._idle.pop()
        self._asked += 1
        return f"worker {self._asked}", self._remote.remote()

    def give_back(self, name: str, actor: Any) -> None:
        """Take back one that has no part in work; that it is gone meanwhile is seen by who takes it next."""
        self._idle.append((name, actor))

    def close(self) -> None:
        """End those that nobody has; the others end when they are given back, as then no one holds them."""
        while self._idle:
            self.ray.kill(self._idle.pop()[1])


class ActorCrew:
    """See :class:`~fct_infer.upgrade.crew.Crew`; keeps ``size`` actors at a job, whatever becomes of them.

    Args:
        actors: of the session.
        job: what is done with each part.
        size: how many.
        policy: how long to wait before another one is asked for.
    """

    def __init__(self, actors: Actors, job: Job, size: int, policy: Policy) -> None:
        self.size = size
        self._of_session, self._ray, self._policy = actors, actors.ray, policy
        self._job, self._stage = self._ray.put(job), f"{type(job).__name__} parts"
        self._actors: dict[str, Any] = {}
        self._names: dict[str, str] = {}  # machine and process, of those that are open
        self._pending: dict[Any, tuple[str, Part | None]] = {}  # by what Ray will answer; without a part: opening
        self._lost_in_a_row = 0
        self._ask_at: list[float] = []  # for others in place of those that were lost
        for _ in range(size):
            self._ask()

    def start(self, worker: str, part: Part) -> None:
        """See :class:`~fct_infer.upgrade.crew.Crew`."""
        # One name for all: the dashboard shows them as a stage, and Ray keeps some KiB for each name it ever hears.
        self._pending[self._actors[worker].run.options(name=self._stage).remote(part)] = worker, part

    def stop(self, worker: str) -> None:
        """See :class:`~fct_infer.upgrade.crew.Crew`; another one is asked for."""
        if worker in self._actors:
            self._end([worker])
            self._ask_at.append(time.monotonic())

    def wait(self, until: float | None) -> Iterable[Event]:
        """See :class:`~fct_infer.upgrade.crew.Crew`."""
        now = time.monotonic()
        for _ in [when for when in self._ask_at if when <= now]:
            self._ask()
        self._ask_at = [when for when in self._ask_at if when > now]
        moments = self._ask_at if until is None else [*self._ask_at, until]
        longest = min([_LONGEST_WAIT, *(when - now for when in moments)])
        if not self._pending:
            time.sleep(max(0.0, longest))
            return []
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=max(0.0, longest))
        return [self._event(answer, *self._pending.pop(answer)) for answer in ready]

    def close(self) -> None:
        """Close the job of what has no part in work, and give it back; end the others, who may be writing, and wait."""
        busy = {worker for worker, part in self._pending.values() if part is not None}
        self._end([worker for worker in self._actors if worker in busy])
        closed = {worker: actor.close.remote() for worker, actor in self._actors.items()}
        begun = [answer for worker, answer in closed.items() if worker in self._names]
        if begun:  # those that still open their job, or wait for room, are not waited for
            self._ray.wait(begun, num_returns=len(begun), timeout=_SECONDS_TO_DIE)
        for worker in sorted(self._actors, key=self._names.__contains__):  # last, to be taken first, those that began
            self._of_session.give_back(worker, self._actors.pop(worker))

    def _event(self, answer: Any, worker: str, part: Part | None) -> Event:
        try:
            value = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            is_raised = isinstance(error, self._ray.exceptions.RayTaskError)  # there, by our code or on the way to it
            is_unreadable = is_raised and isinstance(error, self._ray.exceptions.RaySystemError)  # the job, by Ray
            if part is None and (is_unreadable or _CANNOT_BEGIN in str(error)):
                raise UnsupportedError(f"{worker} cannot begin: {_reason(error)}") from error
            if is_raised:
                raise  # a bug of ours: another worker would meet it, too
            # else the process, its machine, or the way there
            self._end([worker])
            self._lost_in_a_row += 1
            self._ask_at.append(time.monotonic() + self._policy.wait(self._lost_in_a_row))
            return Lost(worker, f"{self._names.get(worker, 'before it was open')}: {short(error)}")
        self._lost_in_a_row = 0
        if part is None:
            if isinstance(value, BaseException):
                raise value
            self._names[worker] = f"{worker} ({value})"
            return Came(worker)
        if isinstance(value, BaseException):
            return Failed(worker, part, value)
        return Finished(worker, part, value)

    def _ask(self) -> None:
        name, actor = self._of_session.take()
        self._actors[name] = actor
        self._pending[actor.open.remote(self._job)] = name, None

    def _end(self, workers: list[str]) -> None:
        for worker in workers:
            self._ray.kill(self._actors.pop(worker))
        left = [answer for answer, (worker, part) in self._pending.items() if worker in workers and part is not None]
        if left:  # answers come, as errors, when the processes are gone
            self._ray.wait(left, num_returns=len(left), timeout=_SECONDS_TO_DIE)
        self._pending = {answer: of for answer, of in self._pending.items() if of[0] in self._actors}


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent, of the same kind as far as the loop looks at it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its constructor wants
        kind = ResourceError if isinstance(error, ResourceError | OSError) else GalleryError
        return kind(str(error))
    return error


def _reason(error: BaseException) -> str:
    """Return the last line that Ray tells of a traceback: the exception itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
