"""Opens TorchScript archives. TorchScript is code: loading and running it is for files the user named."""

from __future__ import annotations

import itertools
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fct_infer.artifacts.files import MEBIBYTE, file_size
from fct_infer.errors import ArtifactError, MissingExtraError

if TYPE_CHECKING:
    import torch

MAX_INFLATED_BYTES = 64 * MEBIBYTE
_WAY_OUT = "save it as TorchScript: torch.jit.trace(model.eval(), example_inputs).save('model.pt')"


def load_torchscript(path: str | Path) -> torch.jit.ScriptModule:
    """Load a TorchScript archive on the CPU, in eval mode. This may run code of the archive.

    Raises:
        ArtifactError: the file is no TorchScript archive; a pickle of ``torch.save`` is refused unread.
        MissingExtraError: torch is not installed.
    """
    path = Path(path)
    _check_archive(path)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "export") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
            module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be loaded as TorchScript: {last_line(error)}") from error
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ArtifactError(f"{path}: {name} is {tensor.dtype}, wanted float32; save model.float()")
    return module.eval()


def count_inputs(module: torch.jit.ScriptModule) -> int:
    """Number of inputs that ``forward`` needs."""
    forward: Any = module.forward
    arguments = forward.schema.arguments[1:]  # without self
    return sum(not argument.has_default_value() for argument in arguments)


def last_line(error: Exception) -> str:
    """What an error of TorchScript says; its message puts its own traceback first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _check_archive(path: Path) -> None:
    """Tell TorchScript from what else ends in .pt, without unpickling; refuse a zip bomb."""
    file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{path}: not a TorchScript archive ({error}); {_WAY_OUT}") from error
    inflated = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
    if inflated > MAX_INFLATED_BYTES:
        raise ArtifactError(f"{path}: would inflate to {inflated:,} bytes; PyTorch compresses nothing but code")
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        return
    if "archive_format" in names:
        raise ArtifactError(f"{path}: a torch.export archive (.pt2), which is not read; {_WAY_OUT}")
    raise ArtifactError(
        f"{path}: a pickle written by torch.save (an nn.Module or a state_dict). What it computes stands in Python "
        f"code that is not in the file, and unpickling it could run any code; {_WAY_OUT}"
    )
