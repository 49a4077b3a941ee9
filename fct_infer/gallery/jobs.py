"""What is done with many parts by whoever is there for it: workers of this process, or on other machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from fct_infer.gallery.source import Part


class Job(Protocol):
    """What is done with each part; picklable, with all that a worker needs to know."""

    def open(self) -> AbstractContextManager[Callable[[Part], Any]]:
        """Have what does one part, from before a worker's first one until it has done its last one.

        Raises:
            FctError: this machine cannot do it, as is said here or where the context is entered.
        """
        ...


@runtime_checkable
class Workers(Protocol):
    """Who does the parts of a job, each at least once.

    Attributes:
        cpus: that each of them has.
        mixed_cpus: whether machines take part whose results may differ in their last bits.
    """

    @property
    def cpus(self) -> int:
        """See above."""

    @property
    def mixed_cpus(self) -> bool:
        """See above."""

    def session(self) -> AbstractContextManager[None]:
        """Have them at hand for several jobs, which the same ones do; without, each job looks for them itself.

        Raises:
            ResourceError: there are none.
        """
        ...

    def each(self, job: Job, parts: Sequence[Part], record: Callable[[Part, Any], None]) -> None:
        """Have all parts done.

        Args:
            job: the same for all.
            parts: named differently; the more rows one has, the longer it may take.
            record: told of each part and what was returned of it, once, in this process, in any order.

        Raises:
            FctError: a part's own error, or there is nobody who could do it.
        """
        ...
