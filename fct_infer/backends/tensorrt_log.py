"""Why TensorRT refused: it tells its logger only, and returns None or False."""

from __future__ import annotations

import re
import threading
from collections import deque
from types import ModuleType
from typing import Any

from fct_infer.errors import ArtifactError, ResourceError

_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|insufficient memory", re.IGNORECASE)


class TensorRTLog:
    """The last errors of TensorRT, oldest first; what two threads do at once mixes here.

    Attributes:
        logger: for TensorRT to write to.
    """

    def __init__(self, base: type[Any]) -> None:
        lines: deque[str] = deque(maxlen=6)

        class Logger(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)  # as the bindings ask for: super() does not reach the C++ side

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(base.ERROR) and message not in lines:
                    lines.append(message)

        self._lines = lines
        self.logger = Logger()

    def clear(self) -> None:
        """Forget what was said before."""
        self._lines.clear()

    def reason(self) -> str:
        """Return the last errors."""
        return "; ".join(tuple(self._lines)) or "it does not say why"

    def failure(self, what: str) -> ArtifactError | ResourceError:
        """Return the error for a model or an engine that TensorRT refuses."""
        reason = self.reason()
        return (ResourceError if _OUT_OF_MEMORY.search(reason) else ArtifactError)(f"{what}: {reason}")

    def made(self, what: str, factory: Any, *arguments: Any) -> Any:
        """Return what ``factory`` makes; None, or a constructor's TypeError, is how TensorRT says that it cannot.

        Raises:
            ResourceError: it cannot.
        """
        try:
            made = factory(*arguments)
        except (TypeError, RuntimeError) as error:
            raise ResourceError(f"TensorRT makes no {what}: {self.reason()} ({error})") from error
        if made is None:
            raise ResourceError(f"TensorRT makes no {what}: {self.reason()}")
        return made


_logs: dict[type[Any], TensorRTLog] = {}
_lock = threading.Lock()


def log_of(trt: ModuleType) -> TensorRTLog:
    """Return the log of this TensorRT, empty: one for the process, as TensorRT ignores every logger but the first."""
    with _lock:
        if trt.ILogger not in _logs:
            _logs[trt.ILogger] = TensorRTLog(trt.ILogger)
    log = _logs[trt.ILogger]
    log.clear()
    return log
