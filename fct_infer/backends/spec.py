"""How to have the same transformation once more, in another process or on another machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fct_infer.backends.loading import open_transformation
from fct_infer.backends.options import RuntimeOptions
from fct_infer.errors import ArtifactError, UnsupportedError
from fct_infer.transformation import Program, Transformation


@dataclass(frozen=True)
class TransformationSpec:
    """Where a transformation comes from and how it runs; picklable, and small where it comes from a file.

    Attributes:
        digest: of the transformation; what is opened must have it.
        options: with backend, device and precision as they were found or chosen, never ``auto`` again.
        path: the file or bundle; a machine that opens it must see it under the same name.
        program: in place of a path, where the transformation was made in memory.
        ranges: of the precisions that need them.
        said: what is known of it besides, and does not change what it computes.
    """

    digest: str
    options: RuntimeOptions
    path: Path | None = None
    program: Program | None = None
    ranges: dict[str, float] | None = None
    said: dict[str, Any] | None = None

    @classmethod
    def of(cls, h: Transformation) -> TransformationSpec:
        """Describe a transformation.

        Raises:
            UnsupportedError: it was made by hand from a runner of another runtime, which nothing tells how to repeat.
        """
        program = h.program if h.backend == "core" else None
        if h.source is None and program is None:
            raise UnsupportedError(
                f"a transformation made of a {h.backend} runner by hand cannot be opened elsewhere; load it from a file"
            )
        options = RuntimeOptions(
            precision=h.precision,
            threads=h.asked_threads,
            backend=h.backend,
            device=h.device,
            device_memory=h.device_memory,
            normalize=h.is_normalized,
            trust=h.is_trusted,
        )
        path = None if h.source is None else h.source.absolute()
        return cls(h.digest, options, path, None if path else program, h.ranges, h.said())

    def with_threads(self, threads: int | None) -> TransformationSpec:
        """Return the same for a place with another number of CPUs; a result does not depend on it."""
        return replace(self, options=replace(self.options, threads=threads))

    def open(self) -> Transformation:
        """Make the transformation.

        Raises:
            ArtifactError: the file is missing or damaged, or is another one by now.
            UnsupportedError: this machine lacks the device, the precision or the runtime.
        """
        options = self.options
        if self.path is not None:
            h = open_transformation(self.path, options)
        else:
            assert self.program is not None
            h = Transformation(
                self.program, options.precision, options.threads, options.device, options.device_memory, self.ranges
            )
        if h.digest != self.digest:
            raise ArtifactError(
                f"{self.path or 'a program'}: holds transformation {h.digest[:12]}, wanted {self.digest[:12]}; "
                "it was changed, or is another file on this machine"
            )
        if self.ranges and not h.is_calibrated:
            h = h.calibrated(self.ranges)
        vars(h).update(self.said or {})
        return h
