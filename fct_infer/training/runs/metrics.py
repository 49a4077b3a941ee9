"""What a run reports while it trains: two CSV files, and TensorBoard's event files where that is installed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fct_infer.storage import append_line, truncate_file, write_bytes

_COLUMNS = ("step", "epoch", "loss", "learning_rate", "seconds")
_FLUSH_SECONDS = 5.0


class MetricsLog:
    """Figures by step, ``metrics.csv``, and by epoch, ``validation.csv``; TensorBoard shows the same.

    An interrupted run goes on in them where it stood.

    The event files are written by TensorBoard's own writer: losing their end loses nothing but a curve's end.

    Args:
        folder: of the run.
        size: bytes of ``metrics.csv`` that count, what :meth:`flush` returned when the run's state was written; what
            was written after it is cut off. 0 begins anew.
        step: the last step that counts.
    """

    def __init__(self, folder: Path, size: int, step: int) -> None:
        self._path, self._validation = folder / "metrics.csv", folder / "validation.csv"
        self._lines, self._flushed = list[str](), time.monotonic()
        if size:
            truncate_file(self._path, size)
        else:
            write_bytes(self._path, (",".join(_COLUMNS) + "\n").encode())
        self._board = _tensorboard(folder, step)

    def add(self, step: int, epoch: int, loss: float, learning_rate: float, seconds: float) -> None:
        """Add one row: the mean loss since the row before it."""
        self._lines.append(f"{step},{epoch},{loss:.9g},{learning_rate:.9g},{seconds:.3f}")
        if self._board is not None:
            self._board.add_scalar("loss", loss, step)
            self._board.add_scalar("learning_rate", learning_rate, step)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def write_validation(self, step: int, epochs: Sequence[Mapping[str, float]]) -> None:
        """Write the validation figures of all epochs so far; the last of them belongs to ``step``."""
        rows = [("epoch", *epochs[-1])]
        rows += [(str(number), *(f"{value:.9g}" for value in each.values())) for number, each in enumerate(epochs, 1)]
        write_bytes(self._validation, "".join(",".join(row) + "\n" for row in rows).encode())
        if self._board is not None:
            for name, value in epochs[-1].items():
                self._board.add_scalar(f"validation/{name}", value, step)

    def flush(self) -> int:
        """Make all rows durable and return the size of the file in bytes."""
        if self._lines:
            append_line(self._path, "\n".join(self._lines))
            self._lines.clear()
        if self._board is not None:
            self._board.flush()
        self._flushed = time.monotonic()
        return self._path.stat().st_size

    def close(self) -> None:
        """Write what is left; a second call does nothing."""
        self.flush()
        if self._board is not None:
            self._board.close()
            self._board = None


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
