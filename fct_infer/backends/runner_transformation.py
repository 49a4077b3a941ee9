"""A transformation computed by another runtime than the core, behind the same call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fct_infer.backends.runner import Runner, call_on_device
from fct_infer.errors import ArtifactError, UnsupportedError
from fct_infer.transformation import Float32Array, Program, Transformation, thread_count


class RunnerTransformation(Transformation):
    """Like :class:`~fct_infer.transformation.Transformation`, with casts and checks by the core around a runner.

    Results may depend, in the last bits, on how many rows a call has: that is up to the runtime.

    Args:
        runner: with inputs ``old`` and maybe ``side``.
        digest: SHA-256 of the file it runs.
        precision: of that file.
        program: what it computes, if a program can hold it: results are then verified in float64.
        threads: as told to the runner.
        normalize: L2-normalise the results.
        reload: makes the same transformation once more, in another process for instance; can itself be pickled.

    Raises:
        ArtifactError: the runner is no transformation.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        digest: str,
        precision: str,
        program: Program | None = None,
        threads: int | None = None,
        normalize: bool = False,
        reload: Callable[[], Transformation] | None = None,
    ) -> None:
        from fct_infer import _core

        inputs = runner.interface.inputs
        if "old" not in inputs:
            raise ArtifactError(f"takes {', '.join(inputs)}, wanted a transformation of old and maybe side")
        self._runner, self._normalize, self._reload = runner, normalize, reload
        self.program, self.precision, self.threads = program, precision, thread_count(threads)
        self.asked_threads = threads
        self.digest = f"{digest}+normalize" if normalize else digest
        self.backend, self.device = runner.backend, runner.device
        self.old_dim, self.side_dim = inputs["old"][0], inputs["side"][0] if "side" in inputs else 0
        self.new_dim = runner.interface.output_dim
        self._executable = _core.Executable.from_function(
            partial(_compute, runner),  # not a method: C++ would keep self alive for ever
            old_dim=self.old_dim,
            side_dim=self.side_dim,
            new_dim=self.new_dim,
            normalize=normalize,
            description=runner.runtime,
        )

    @property
    def is_normalized(self) -> bool:
        """Whether the core normalises the runtime's results; a model may do so itself."""
        return self._normalize

    def normalized(self) -> RunnerTransformation:
        """Return the same transformation with its results L2-normalised."""
        if self._normalize:
            return self
        h = RunnerTransformation(
            self._runner,
            digest=self.digest,
            precision=self.precision,
            program=self.program and self.program.with_normalization(),
            threads=self.asked_threads,
            normalize=True,
            reload=self._reload,
        )
        vars(h).update(self.said())
        return h

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the name of its file, which must be the same where it arrives."""
        if self._reload is None:
            raise UnsupportedError(
                f"a transformation made of a {self.backend} runner by hand cannot be pickled or copied"
            )
        return _reloaded, (self._reload, self.digest, self._normalize)

    def apply_on_device(self, old: Any, side: Any = None, out: Any = None, stream: Any = None) -> Any:
        """Like :meth:`Transformation.apply_on_device`, with these differences.

        All arrays are float32, as the model's own inputs and output are: nothing is cast. Nothing looks for rows that
        are not finite: what comes of one is up to the runtime. ONNX Runtime waits for the stream before it starts and
        for the result before it returns; PyTorch and TensorRT wait for neither. TensorRT wants addresses that are
        multiples of 256 bytes, as those of whole tensors are.

        Raises:
            ArrayError: wrong dtype, layout, shape, address or device, naming the argument.
            ResourceError: the runtime fails, for instance for want of memory.
            UnsupportedError: the runtime computes on the CPU, or results are to be normalised, which the core does on
                the CPU.
        """
        if self._normalize:
            raise UnsupportedError(
                f"rows on a device that {self.backend} makes are not normalised there: export the transformation with "
                "normalisation, or normalise the result"
            )
        return call_on_device(self._runner, {"old": old, "side": side}, out, stream)


def _reloaded(reload: Callable[[], Transformation], digest: str, normalize: bool) -> Transformation:
    h = reload()
    h = h.normalized() if normalize else h
    if h.digest != digest:
        raise ArtifactError("the file of a transformation that was pickled or copied has changed since")
    return h


def _compute(runner: Runner, old: Float32Array, side: Float32Array | None, out: Float32Array) -> None:
    out[:] = runner.run({"old": old} if side is None else {"old": old, "side": side})
