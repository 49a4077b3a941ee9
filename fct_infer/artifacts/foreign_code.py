"""The seam to code that others wrote, models and the libraries that run them: what it raises becomes one typed line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fct_infer.errors import ArtifactError, FctError, ResourceError
from fct_infer.storage import read_error

RAISED = (Exception, SystemExit)  # of a model: a model does not end the program; Ctrl-C does
# A runtime raises the same class for both. These are the machine's, all others say that the model is wrong.
_OF_THE_MACHINE = re.compile(
    r"out of memory|not enough memory|can't allocate|failed to allocate|bad_alloc|start new thread|"
    r"cuda error|cuda failure|cublas_status|cublas failure|cudnn_status|cudnn failure",
    re.IGNORECASE,
)
_LONGEST = 300  # characters of somebody else's message


@contextmanager
def foreign_code(what: str) -> Iterator[None]:
    """Run somebody else's code in the ``with`` block.

    Args:
        what: is wrong then; the message is ``what: theirs``.

    Raises:
        ResourceError: the code ran out of memory, or the device failed.
        ArtifactError: it raised anything else; KeyboardInterrupt passes.
    """
    try:
        yield
    except FctError:
        raise
    except RAISED as error:
        kind = ResourceError if is_of_the_machine(error) else ArtifactError
        raise kind(f"{what}: {said_by(error)}") from error


def is_of_the_machine(error: BaseException) -> bool:
    """Whether the same call could succeed on another machine, or later."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return isinstance(read_error("a model", error), ResourceError)
    is_pythons = isinstance(error, ValueError | TypeError | LookupError | AttributeError)
    return not is_pythons and _OF_THE_MACHINE.search(_text(error)) is not None


def said_by(error: BaseException) -> str:
    """Return the message of an error as one line: all of it, or the last of its lines where it is long.

    TorchScript and torch.export put tracebacks of their own first, PyTorch's exporter to ONNX puts the graph behind.
    """
    text = _text(error).partition("[Caused by the value")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    whole = " ".join(lines)
    text = lines[-1] if lines and (len(whole) > _LONGEST or "Traceback" in whole) else whole
    name = type(error).__name__
    return f"{name} {text}" if text and isinstance(error, KeyError | SystemExit) else text or name


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of theirs whose message cannot be had
        return ""
