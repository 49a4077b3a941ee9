"""Upgrading parts in another process than the driver's: what it is told, and what it does with one part."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np

from fct_infer.backends.spec import TransformationSpec
from fct_infer.connectors.spec import SourceSpec
from fct_infer.errors import UnsupportedError, UsageError
from fct_infer.gallery import Part
from fct_infer.gallery.destination import SharedDestination, SinkSpec
from fct_infer.gallery.sink import Receipt
from fct_infer.index.parts import IndexOrder
from fct_infer.storage import write_under
from fct_infer.upgrade.computation import Computation
from fct_infer.upgrade.executor import PartDone
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.stream import Outlet, run_stream


@dataclass(frozen=True)
class WorkOrder:
    """All that a worker needs to upgrade parts of a plan; picklable. Rows never pass through the driver.

    Attributes:
        source, transformation, sink: how each is opened.
        dtype, block_rows, side_is_old, metric: see :class:`~fct_infer.upgrade.computation.Computation`.
        kernels: what computes on the driver: another kernel's last bits may differ, and it is refused; None: any will
            do.
        index: what the part of the index is built by that belongs to a part; None: none is built.
    """

    source: SourceSpec
    transformation: TransformationSpec
    sink: SinkSpec | None
    dtype: np.dtype[Any]
    block_rows: int
    side_is_old: bool
    metric: str
    kernels: str | None
    index: IndexOrder | None = None

    @classmethod
    def of(
        cls,
        plan: Plan,
        threads: int | None = None,
        *,
        sink: SinkSpec | None = None,
        index: IndexOrder | None = None,
        mixed_cpus: bool = False,
    ) -> WorkOrder:
        """Describe a plan.

        Args:
            plan: of the upgrade.
            threads: of a worker's transformation; None: all CPUs that the worker may use.
            sink: of the task, whose work has been begun; without it an order only shows that there can be one.
            index: of the task.
            mixed_cpus: let other kernels than the driver's compute, too.

        Raises:
            UsageError: other processes cannot write to the destination.
            UnsupportedError: they cannot open the source, or the transformation.
        """
        if not isinstance(plan.destination, SharedDestination):
            raise UsageError(f"{plan.dest}: only one process can write there; --executor threads does")
        plan.destination.check_shared()
        return cls(
            source=SourceSpec.of(plan.gallery),
            transformation=TransformationSpec.of(plan.transformation).with_threads(threads),
            sink=sink,
            dtype=plan.dtype,
            block_rows=plan.block_rows,
            side_is_old=plan.side_is_old,
            metric=plan.metric,
            kernels=None if mixed_cpus else plan.transformation.executable.description,
            index=index,
        )

    @contextmanager
    def open(self) -> Iterator[Callable[[Part], PartDone]]:
        """See :class:`~fct_infer.gallery.jobs.Job`; errors as of :class:`Worker`."""
        with Worker(self) as worker:
            yield worker.run


class Worker:
    """Upgrades parts, one at a time; opens source, transformation and sink once. A context manager.

    When it ends, the source is closed and the process writes as before.

    Args:
        order: from the driver.

    Attributes:
        computation: source and transformation, opened.
        name: machine and process, for messages.

    Raises:
        GalleryError: the source is not there or not the same.
        ArtifactError: the transformation, or the trained index, is not there or not the same.
        UnsupportedError: the machine lacks something, or computes by other kernels.
    """

    def __init__(self, order: WorkOrder) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._order = order
        with ExitStack() as held:
            # A worker that was given up may still write: under names of its own, until it gives a file its last one.
            write_under(f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
            held.callback(write_under, None)
            h = order.transformation.open()
            kernels = h.executable.description
            if order.kernels not in (None, kernels):
                raise UnsupportedError(
                    f"{self.name} computes by {kernels}, the driver by {order.kernels}: rows would differ in their "
                    "last bits; take machines of one kind, or accept it with --mixed-cpus"
                )
            source = held.enter_context(order.source.open())
            self.computation = Computation(
                gallery=source,
                transformation=h,
                dtype=order.dtype,
                block_rows=order.block_rows,
                side_is_old=order.side_is_old,
                metric=order.metric,
            )
            self._builder = order.index.open(h.threads) if order.index else None
            self._parts = {part.name: part for part in source.parts()}
            self._held = held.pop_all()

    def run(self, part: Part) -> PartDone:
        """Upgrade one part of the source; it, and its part of the index, are durable when this returns.

        Raises:
            GalleryError: the input cannot be read, or a row of it (or its result) is not finite.
            ResourceError: the disk is full or fails.
        """
        own = self._parts.get(part.name)
        if own is None or (own.rows, own.first_row) != (part.rows, part.first_row):
            raise UsageError(f"part {part.name} of {self.computation.gallery.path} is another one on this machine")
        if self._order.sink is None:
            raise UsageError("the order does not say where parts are written to: it lacks the task's sink")
        receipts: list[Receipt] = []
        sink = self._order.sink.open(self.computation.gallery)  # closed by the stream
        outlet = Outlet(sink, lambda _, files: receipts.append(files), lambda _: None, Event())
        h, builder, index = self.computation.transformation, self._builder, None
        if builder is not None:
            builder.begin()
        seconds = run_stream(self.computation, [own], outlet, threads=h.threads, builder=builder)
        if builder is not None:
            assert self._order.index is not None
            index = builder.end(self._order.index.path(part.name)).as_record()
        return PartDone(part, receipts[0], index, seconds, self.name)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
