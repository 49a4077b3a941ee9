"""Parts of an upgrade, or of any other job, on the machines of a Ray cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fct_infer.distributed.actors import ActorCrew, Actors
from fct_infer.distributed.connecting import connect, ray_module
from fct_infer.errors import UsageError
from fct_infer.gallery import Part
from fct_infer.gallery.jobs import Job
from fct_infer.upgrade.crew import Policy
from fct_infer.upgrade.executor import PartDone, RowCount, Task
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.schedule import run_parts
from fct_infer.upgrade.worker import WorkOrder


@dataclass(frozen=True)
class RayExecutor:
    """See :class:`~fct_infer.upgrade.executor.Executor`, and :class:`~fct_infer.gallery.jobs.Workers`.

    Attributes:
        address: of the cluster (``host:port``, ``ray://host:port``), or ``auto``; None starts one on this machine,
            unless one is connected to already.
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

    _lent: list[Actors] = field(default_factory=list, init=False, repr=False, compare=False)  # of the session, if any

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

    @contextmanager
    def session(self) -> Iterator[None]:
        """See :class:`~fct_infer.gallery.jobs.Workers`; a cluster that this process is connected to already stays so.

        Raises:
            UsageError: no worker has room on the one machine there is.
        """
        with self._actors():
            yield

    def run(self, task: Task) -> dict[str, float]:
        """See :class:`~fct_infer.upgrade.executor.Executor`; seconds are the workers' together, by how many they are.

        Raises:
            ResourceError: there is no such cluster, or what its workers met did not pass.
        """
        seconds: Counter[str] = Counter()
        count = RowCount(task)

        def record(part: Part, done: PartDone) -> None:
            task.record(done)
            seconds.update(done.seconds)
            count(part.rows)

        order = WorkOrder.of(task.plan, self.cpus, sink=task.sink, index=task.index, mixed_cpus=self.mixed_cpus)
        workers = self._do(order, task.parts, record)
        return {stage: total / workers for stage, total in seconds.items()}

    def each(self, job: Job, parts: Sequence[Part], record: Callable[[Part, Any], None]) -> None:
        """See :class:`~fct_infer.gallery.jobs.Workers`.

        Raises:
            ResourceError: there is no such cluster, or what its workers met did not pass.
        """
        if parts:
            self._do(job, parts, record)

    def _do(self, job: Job, parts: Sequence[Part], record: Callable[[Part, Any], None]) -> int:
        """Have parts done; return by how many workers."""
        with self._actors() as actors:
            crew = ActorCrew(actors, job, min(self._size(actors.ray), len(parts)), self.policy)
            try:
                run_parts(parts, crew, record, self.policy)
            finally:
                crew.close()
        return crew.size

    @contextmanager
    def _actors(self) -> Iterator[Actors]:
        """Have the actors of the session; without one, begin it."""
        if lent := self._lent[:]:
            yield lent[0]
            return
        with self._connected() as ray:
            actors = Actors(ray, {"num_cpus": self.cpus, "num_gpus": self.gpus})
            self._lent.append(actors)
            try:
                yield actors
            finally:
                self._lent.remove(actors)
                actors.close()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Have Ray, connected; what was connected before stays so."""
        ray = ray_module()
        if ray.is_initialized():
            yield ray
            return
        starts_one = connect(ray, self.address)
        try:
            if starts_one:
                self._check_fits(ray)
            yield ray
        finally:
            ray.shutdown()

    def _check_fits(self, ray: Any) -> None:
        """Refuse workers that the one machine never has room for: no other will come."""
        there = ray.cluster_resources()
        for kind, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > (has := int(there.get(kind, 0))):
                raise UsageError(f"each worker wants {wanted} {kind}s, this machine has {has}; ask for fewer")

    def _size(self, ray: Any) -> int:
        if self.workers is not None:
            return self.workers
        there = ray.cluster_resources()
        sizes = [there.get("CPU", 0) // self.cpus] + ([there.get("GPU", 0) // self.gpus] if self.gpus else [])
        return max(1, int(min(sizes)))
