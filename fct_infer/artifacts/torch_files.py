"""Opens TorchScript and torch.export archives. Both are code: loading and running them is for files the user named."""

from __future__ import annotations

import inspect
import io
import itertools
import logging
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fct_infer.artifacts.files import MEBIBYTE, file_size
from fct_infer.artifacts.foreign_code import RAISED, said_by
from fct_infer.errors import ArtifactError, import_error

if TYPE_CHECKING:
    from torch import nn

MAX_INFLATED_BYTES = 64 * MEBIBYTE
MOST_ROWS = 1 << 16  # that a model is asked for at once
MAX_LISTING_BYTES = 4 * MEBIBYTE  # of a zip archive's list of entries, 60,000 of them
_WAY_OUT = "save it as TorchScript: torch.jit.trace(model.eval(), example_inputs).save('model.pt')"
_DYNAMIC = "torch.export.export(model, example, dynamic_shapes=[{0: torch.export.Dim('batch')}, ...])"


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A torch module with what is known of its inputs.

    Attributes:
        name: file or class, for messages.
        module: on the CPU, in eval mode, with float32 weights.
        input_count: inputs ``forward`` needs.
        input_names: of all it can take, optional ones at the end; fewer where they are not known.
        shapes: of the inputs, without the batch axis; None where the file does not tell (TorchScript).
    """

    name: str
    module: nn.Module
    input_count: int
    shapes: tuple[tuple[int, ...], ...] | None = None
    input_names: tuple[str, ...] = ()

    @property
    def optional_inputs(self) -> tuple[str, ...]:
        """Those that may be left out."""
        return self.input_names[self.input_count :]


def load_torch(path: str | Path, *, low_precision: bool = False) -> TorchModel:
    """Load a TorchScript or torch.export archive on the CPU, in eval mode. This may run code of the archive.

    Args:
        path: the archive.
        low_precision: accept weights that are not float32, as in what this project exported so.

    Raises:
        ArtifactError: the file is neither; a pickle of ``torch.save`` is refused unread. Or its weights are not
            float32, or it takes only batches of one size.
        MissingExtraError: torch is not installed.
    """
    path = Path(path)
    entries = _list_entries(path)
    is_exported = _is_exported(path, entries)
    try:
        import torch
    except ImportError as error:
        raise import_error("torch", "export", error) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript's age, and of torch.export's pickled example inputs
            if is_exported:
                with _errors_not_warnings():
                    model = _exported_model(path, torch.export.load(path))
            else:
                module: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
                _check_storages(path, module, entries)
                model = TorchModel(str(path), module.eval(), count_inputs(module), None, input_names(module))
    except ArtifactError:
        raise
    except RAISED as error:  # the two loaders raise whatever the damage leads to, KeyErrors and zip errors included
        kind = "a torch.export archive" if is_exported else "TorchScript"
        raise ArtifactError(f"{path}: cannot be loaded as {kind}: {said_by(error)}") from error
    for name, tensor in itertools.chain(model.module.named_parameters(), model.module.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32 and not low_precision:
            raise ArtifactError(f"{path}: {name} is {tensor.dtype}, wanted float32; save model.float()")
    return model


def count_inputs(module: nn.Module) -> int:
    """Number of inputs that ``forward`` needs."""
    forward: Any = module.forward
    if hasattr(forward, "schema"):  # of TorchScript, the first argument is self
        return sum(not argument.has_default_value() for argument in forward.schema.arguments[1:])
    parameters = inspect.signature(forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters)


def input_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the inputs that ``forward`` can take by position, optional ones included."""
    forward: Any = module.forward
    if hasattr(forward, "schema"):
        return tuple(argument.name for argument in forward.schema.arguments[1:])
    parameters = inspect.signature(forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def _exported_model(path: Path, program: Any) -> TorchModel:
    user_inputs = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in user_inputs]
    values = [node.meta["val"] for node in nodes]
    if any(not len(getattr(value, "shape", ())) for value in values):
        raise ArtifactError(f"{path}: takes an input that is no tensor with a batch axis")
    for value in values:
        if isinstance(value.shape[0], int):
            raise ArtifactError(f"{path}: takes only batches of exactly {value.shape[0]}; export it with {_DYNAMIC}")
        most = program.range_constraints.get(value.shape[0].node.expr)
        if most is not None and most.upper < MOST_ROWS:
            raise ArtifactError(f"{path}: takes batches of at most {most.upper} rows; export it with {_DYNAMIC}")
    # A height or width that is free as well is taken as in the example the model was exported with.
    shapes = (tuple(_hint(size) for size in value.shape[1:]) for value in values)
    names = tuple(node.name for node in nodes)
    return TorchModel(str(path), program.module(), len(values), tuple(shapes), names)


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


@contextmanager
def _errors_not_warnings() -> Iterator[None]:
    """Raise the error that torch.export.load prints, traceback and all, before it raises one that says less."""
    logger, found = logging.getLogger("torch.export"), list[BaseException]()

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            found.append(record.exc_info[1])
        return False

    logger.addFilter(keep)
    try:
        yield
    except Exception as error:
        raise (found[0] if found else error) from None
    finally:
        logger.removeFilter(keep)


def _check_storages(path: Path, module: nn.Module, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse weights longer than what the file has for them: PyTorch fills them from whatever lies in memory there."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    without = Counter(size for size in storages.values() if size) - Counter(entry.file_size for entry in entries)
    if without:
        raise ArtifactError(f"{path}: has a weight of {min(without):,} bytes, but no entry of that size; it is damaged")


class _Listed(io.FileIO):
    """A file that zipfile reads; its list of entries, which it reads at one go, must not be huge."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_LISTING_BYTES:
            raise zipfile.BadZipFile(f"a list of entries of {size:,} bytes, wanted at most {MAX_LISTING_BYTES:,}")
        return super().read(size) or b""


def _list_entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return the entries of the archive; refuse a zip bomb and, as PyTorch does not look at them, wrong checksums."""
    size = file_size(path)
    try:
        with _Listed(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > size + MAX_INFLATED_BYTES:
                raise ArtifactError(f"{path}: a file of {size:,} bytes that would inflate to {unpacked:,}")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError, zlib.error) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path}: not a TorchScript archive ({error}); {_WAY_OUT}") from error
    if damaged is not None:
        raise ArtifactError(f"{path}: its entry {damaged!r} does not match its checksum; the file is damaged")
    return entries


def _is_exported(path: Path, entries: list[zipfile.ZipInfo]) -> bool:
    """Tell the archives from what else ends in .pt, without unpickling."""
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names or "archive_format" in names:
        return "constants.pkl" not in names
    raise ArtifactError(
        f"{path}: a pickle written by torch.save (an nn.Module or a state_dict). What it computes stands in Python "
        f"code that is not in the file, and unpickling it could run any code; {_WAY_OUT}"
    )
