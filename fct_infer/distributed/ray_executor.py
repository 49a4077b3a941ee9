"""Parts of an upgrade on the machines of a Ray cluster: one actor a worker, one part at a time.

Ray starts processes and says when they end; which part goes where is decided by :mod:`fct_infer.upgrade.schedule`. An
actor that died is never restarted by Ray, which would hand it its old arguments and have it answer as unavailable
meanwhile: another one is asked for in its place.
"""

from __future__ import annotations

import importlib
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fct_infer.errors import FctError, GalleryError, ResourceError, UsageError, import_error
from fct_infer.gallery import Part
from fct_infer.upgrade.crew import Came, Event, Failed, Finished, Lost, Policy
from fct_infer.upgrade.executor import PartDone, RowCount, Task
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.schedule import run_parts
from fct_infer.upgrade.worker import Worker, WorkOrder

_LONGEST_WAIT = 5.0  # seconds in ray.wait, which is deaf to Ctrl-C
_SECONDS_TO_DIE = 30.0
_OBJECT_STORE_BYTES = 80 << 20  # rows never pass through it
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


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


@dataclass(frozen=True)
class RayExecutor:
    """See :class:`~fct_infer.upgrade.executor.Executor`.

    Attributes:
        address: of the cluster, or ``auto``; None starts one on this machine, unless one is connected to already.
        workers: how many; None: as many as the cluster has CPUs and devices for now. More than it has room for wait
            until there is.
        cpus, gpus: that each takes of a machine; its transformation runs on so many threads.
        mixed_cpus: let machines take part whose results may differ in their last bits.
        policy: what is borne with.

    Raises:
        UsageError: a number makes no sense.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: int = 0
    mixed_cpus: bool = False
    policy: Policy = field(default_factory=Policy)

    name = "ray"
    feeds_index = False

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("cpus", 1), ("gpus", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}, wanted at least {least}")

    def check(self, plan: Plan) -> None:
        """Refuse what workers elsewhere cannot open; see :meth:`WorkOrder.of`."""
        ray_module()
        WorkOrder.of(plan, self.cpus)

    def run(self, task: Task) -> dict[str, float]:
        """See :class:`~fct_infer.upgrade.executor.Executor`; seconds are the workers' together, by how many they are.

        Raises:
            ResourceError: there is no such cluster, or what its workers met did not pass.
        """
        ray = ray_module()
        is_ours = self._connect(ray)
        seconds: Counter[str] = Counter()
        count = RowCount(task)

        def record(done: PartDone) -> None:
            task.record(done)
            seconds.update(done.seconds)
            count(done.part.rows)

        crew = None
        try:
            order = WorkOrder.of(task.plan, self.cpus, sink=task.sink, index=task.index)
            crew = _Actors(ray, self, order, min(self._size(ray), len(task.parts)))
            run_parts(task.parts, crew, record, self.policy)
        finally:
            if crew is not None:
                crew.close()
            if is_ours:
                ray.shutdown()
        return {stage: total / crew.size for stage, total in seconds.items()}

    def _connect(self, ray: Any) -> bool:
        """Connect to the cluster; return whether the connection, or the cluster, is ours to close."""
        if ray.is_initialized():
            return False
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        starts_one = self.address is None and not os.environ.get("RAY_ADDRESS")  # Ray reads that where it is told none
        if starts_one:
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        try:
            ray.init(address=self.address, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise ResourceError(f"no Ray cluster at {self._place}: {_short(error)}") from error
        if starts_one:
            self._check_fits(ray)
        return True

    @property
    def _place(self) -> str:
        return self.address or os.environ.get("RAY_ADDRESS") or "this machine"

    def _check_fits(self, ray: Any) -> None:
        """Refuse workers that the one machine never has room for: no other will come."""
        there = ray.cluster_resources()
        for kind, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > (has := int(there.get(kind, 0))):
                ray.shutdown()
                raise UsageError(f"each worker wants {wanted} {kind}s, this machine has {has}; ask for fewer")

    def _size(self, ray: Any) -> int:
        if self.workers is not None:
            return self.workers
        there = ray.cluster_resources()
        sizes = [there.get("CPU", 0) // self.cpus] + ([there.get("GPU", 0) // self.gpus] if self.gpus else [])
        return max(1, int(min(sizes)))


class _RemoteWorker:
    """In an actor: a worker whose errors come back as values, as they are."""

    def __init__(self, order: WorkOrder, mixed_cpus: bool) -> None:
        self._order, self._mixed_cpus = order, mixed_cpus
        self._worker: Worker | None = None

    def open(self) -> str | BaseException:
        """Open source and transformation; return the worker's name."""
        try:
            self._worker = Worker(self._order, mixed_cpus=self._mixed_cpus)
        except (FctError, OSError) as error:
            return _portable(error)
        return self._worker.name

    def run(self, part: Part) -> PartDone | BaseException:
        """Upgrade a part."""
        assert self._worker is not None
        try:
            return self._worker.run(part)
        except (FctError, OSError) as error:
            return _portable(error)


class _Actors:
    """See :class:`~fct_infer.upgrade.crew.Crew`; keeps ``size`` actors asked for, whatever becomes of them."""

    def __init__(self, ray: Any, options: RayExecutor, order: WorkOrder, size: int) -> None:
        self.size = size
        self._ray, self._options = ray, options
        self._order = ray.put(order)
        self._actors: dict[str, Any] = {}
        self._names: dict[str, str] = {}  # machine and process, of those that are open
        self._pending: dict[Any, tuple[str, Part | None]] = {}  # by what Ray will answer; without a part: opening
        self._asked, self._lost_in_a_row = 0, 0
        self._ask_at: list[float] = []  # for others in place of those that were lost
        self._remote = ray.remote(_RemoteWorker).options(
            num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=0, max_task_retries=0
        )
        for _ in range(size):
            self._ask()

    def start(self, worker: str, part: Part) -> None:
        """See :class:`~fct_infer.upgrade.crew.Crew`."""
        self._pending[self._actors[worker].run.options(name=f"part {part.name}").remote(part)] = worker, part

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
        """End all actors, and wait until those that may be writing are gone."""
        self._end(list(self._actors))

    def _event(self, answer: Any, worker: str, part: Part | None) -> Event:
        try:
            value = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:  # the process, its machine, or the way there
            self._end([worker])
            self._lost_in_a_row += 1
            self._ask_at.append(time.monotonic() + self._options.policy.wait(self._lost_in_a_row))
            return Lost(worker, f"{self._names.get(worker, 'before it was open')}: {_short(error)}")
        self._lost_in_a_row = 0
        if part is None:
            if isinstance(value, BaseException):
                raise value
            self._names[worker] = f"{worker} ({value})"
            return Came(worker)
        if isinstance(value, BaseException):
            return Failed(worker, part, value)
        return Finished(worker, value)

    def _ask(self) -> None:
        self._asked += 1
        name = f"worker {self._asked}"
        actor = self._actors[name] = self._remote.remote(self._order, self._options.mixed_cpus)
        self._pending[actor.open.remote()] = name, None

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


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
