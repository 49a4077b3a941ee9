"""The folder of one training run: what was asked for, how far it got, what came out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fct_infer.artifacts.files import GIBIBYTE, MEBIBYTE, read_file
from fct_infer.errors import ArtifactError, FctError, OutputError, UsageError
from fct_infer.storage import DurableWriter, FileLock, remove_tree, write_bytes, write_json
from fct_infer.training.config import from_plain, read_config, to_plain, to_yaml
from fct_infer.training.runs.devices import launch
from fct_infer.training.runs.loop import TrainingConfig
from fct_infer.training.runs.metrics import MetricsLog

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

_CONFIG, _STATE, _RESULT, _LOCK = "config.yaml", "state.pt", "result.json", ".lock"
_DIGEST_BYTES = 32  # SHA-256 at the end of a state
_OUTPUT = (_RESULT, _STATE, "*.csv", "events.out.tfevents.*", "*.safetensors", "*.json", "*.npy", "best", "last")


class RunFolder:
    """One training run on disk, resumed by opening it again with the same configuration.

    ::

        config.yaml                  the command, and its configuration with all defaults filled in
        metrics.csv, validation.csv  loss and learning rate by step; figures of held-out data by epoch
        events.*                     the same for TensorBoard
        state.pt                     all that the next epoch depends on, written whole at every epoch's end
        checkpoint.safetensors/.json the trained model (and others, such as the classifier), written at the end
        best/ or last/               the same of the epoch that ``training.result`` did not ask for
        features/                    embeddings that were computed for this run
        result.json                  the figures of a finished run, written last

    Use as a context manager, then :meth:`open`, the training with ``fit(..., run=run)``, and :meth:`finish`. Nothing
    that is there is touched before :meth:`begin`, which ``fit`` calls: data and models are opened before. Of several
    processes only the first writes; all read.

    Attributes:
        path: the folder.
        fabric: the devices; there after :meth:`open`.
        was_finished: whether :meth:`open` found a result.
    """

    fabric: Fabric
    was_finished = False

    def __init__(self, path: str | Path, *, restart: bool = False) -> None:
        self.path, self._restart = Path(path), restart
        self._lock: FileLock | None = None
        self._has_begun = False
        self._metrics: MetricsLog | None = None

    def open(self, command: str, config: Any, training: TrainingConfig | None = None) -> dict[str, Any] | None:
        """Take the folder for a run, or for the rest of one; return the result if it is finished already.

        Args:
            command: what is trained.
            config: a dataclass that :func:`fct_infer.training.config.to_plain` takes.
            training: whose devices are used; without one, a single CPU.

        Raises:
            OutputError: the folder holds something else, another run, or is in use.
            UnsupportedError: the devices are not there.
            ResourceError: an I/O error.
        """
        devices = training or TrainingConfig(1, 0.0)
        self.fabric = launch(devices.accelerator, devices.devices, devices.precision)
        self._title, self._config = f"# fct-train {command}", config
        self.first(self._take)
        result = self.path / _RESULT
        self.was_finished = result.exists() and not self._restart
        return dict(_read_json(result)) if self.was_finished else None

    def begin(self) -> None:
        """Write the configuration; with ``restart``, drop what is there first. A second call does nothing.

        Raises:
            ResourceError: the disk is full, or another I/O error.
        """

        def write() -> None:
            if self._restart:
                # The configuration last: it is what tells a run's folder from any other.
                for file in (file for name in (*_OUTPUT, _CONFIG) for file in self.path.glob(name)):
                    remove_tree(file)
            if not self.is_resumed:
                text = f"{self._title}\n{to_yaml(to_plain(self._config))}"
                write_bytes(self.path / _CONFIG, text.encode())

        if not self._has_begun:
            self.first(write)
            self._has_begun = True

    @property
    def is_resumed(self) -> bool:
        """Whether there is a state to go on from."""
        return not self._restart and (self.path / _STATE).exists()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.fabric.is_global_zero

    def first(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the first process only; all get what it returned or raised."""
        outcome: T | FctError | None = None
        if self.fabric.is_global_zero:
            try:
                outcome = work()
            except FctError as error:
                if self.fabric.world_size == 1:
                    raise
                outcome = error
        outcome = self.fabric.broadcast(outcome)
        if isinstance(outcome, FctError):
            raise outcome
        return outcome  # type: ignore[return-value]  # of the first process, sent to all

    def load_state(self) -> dict[str, Any] | None:
        """Begin, and return what :meth:`save_state` wrote last, on the CPU, or None at the start of a run.

        Raises:
            ArtifactError: the file is damaged.
            ResourceError: the disk is full, or another I/O error.
        """
        self.begin()
        path = self.path / _STATE
        state = _read_state(path) if path.exists() else None
        if self.is_first:
            size, step = (state["metrics_size"], state["step"]) if state else (0, 0)
            self._metrics = MetricsLog(self.path, size, step)
        return state

    def log(self, step: int, epoch: int, loss: float, learning_rate: float, seconds: float) -> None:
        """Add a row to the metrics; ``loss`` is the mean over the steps since the row before."""
        if self._metrics is not None:
            self._metrics.add(step, epoch, loss, learning_rate, seconds)

    def log_validation(self, step: int, epochs: Sequence[Mapping[str, float]]) -> None:
        """Put down the validation figures of all epochs so far; the last of them belongs to ``step``."""
        if self._metrics is not None:
            self._metrics.write_validation(step, epochs)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state by one of tensors, numbers, strings, lists and dictionaries; it has a key ``step``.

        Raises:
            ResourceError: the disk is full, or another I/O error. The state before it is still whole.
        """

        def write() -> None:
            assert self._metrics is not None
            buffer = io.BytesIO()
            torch.save({**state, "metrics_size": self._metrics.flush()}, buffer)
            with DurableWriter(self.path / _STATE) as writer:
                writer.write(buffer.getbuffer())
                writer.write(hashlib.sha256(buffer.getbuffer()).digest())

        self.first(write)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the figures of the finished run, strict JSON, drop its state, and return them."""

        def write() -> None:
            write_json(self.path / _RESULT, dict(result))
            remove_tree(self.path / _STATE)

        self.first(write)
        return dict(result)

    def close(self) -> None:
        """Leave the folder; what is unfinished can be resumed. A second call does nothing."""
        if self._metrics is not None:
            with suppress(FctError):  # the disk is full: the run's own error is on its way
                self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            with suppress(OSError):  # goes if it is empty: nothing was begun in it
                self.path.rmdir()

    def _take(self) -> None:
        config = self.path / _CONFIG
        if self.path.exists() and not config.exists() and _is_foreign(self.path):
            raise OutputError(f"{self.path}: exists and is no training run (it has no {_CONFIG})")
        self._lock = FileLock(self.path / _LOCK, str(self.path))
        # Before the first epoch's end nothing is kept that another configuration could spoil.
        is_kept = any((self.path / name).exists() for name in (_STATE, _RESULT))
        if not is_kept or not config.exists() or self._restart:
            return
        if difference := _difference(config, self._title, self._config):
            raise OutputError(
                f"{self.path}: holds another run ({difference}); choose another folder, or --restart to begin anew"
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_foreign(folder: Path) -> bool:
    """Whether a folder holds more than what a run leaves that was killed before its configuration was whole."""
    return not folder.is_dir() or any(file.name not in (_LOCK, f"{_CONFIG}.tmp") for file in folder.iterdir())


def _difference(path: Path, title: str, wanted: Any) -> str:
    """Say what a run's configuration has other than wanted; nothing if nothing."""
    try:
        found_title = path.read_text(encoding="utf-8").partition("\n")[0]
        if found_title != title:
            return f"of {found_title.removeprefix('# ')}"
        values = from_plain(type(wanted), read_config(path))  # what was written before a key existed has its default
    except UsageError as error:
        return str(error)
    found, asked = _flat(to_plain(values)), _flat(to_plain(wanted))
    keys = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
    shown = [f"{key} is {found.get(key)!r}, asked for {asked.get(key)!r}" for key in keys[:3]]
    return "; ".join([*shown, *(["..."] if len(keys) > 3 else [])])


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {name: value for key, each in values.items() for name, value in _flat(each, f"{prefix}{key}.").items()}


def _read_state(path: Path) -> dict[str, Any]:
    data = memoryview(read_file(path, 64 * GIBIBYTE))
    state, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(state).digest() != digest:  # a flipped bit in a weight is still a weight
        raise ArtifactError(f"{path}: is damaged: its SHA-256 is another one; --restart begins anew")
    try:
        loaded: dict[str, Any] = torch.load(io.BytesIO(state), "cpu", weights_only=True)
        return loaded
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises whatever the damage leads to
        raise ArtifactError(f"{path}: is damaged: {error}; --restart begins anew") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_file(path, MEBIBYTE))
    except ValueError as error:
        raise ArtifactError(f"{path}: is damaged: {error}") from error
