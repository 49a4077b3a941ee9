"""Opens whatever holds a transformation: a bundle, an ONNX file or a TorchScript archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fct_infer.artifacts.bundle import Bundle, open_bundle
from fct_infer.artifacts.onnx_graph import program_from_onnx
from fct_infer.artifacts.tensors import read_tensors
from fct_infer.artifacts.torchscript import load_torchscript
from fct_infer.errors import ArtifactError, UnsupportedError, UsageError
from fct_infer.transformation import Program, Transformation

BACKENDS = ("auto", "core")


def load_transformation(
    path: str | Path,
    precision: str = "auto",
    threads: int | None = None,
    backend: str = "auto",
    *,
    trust: bool = False,
) -> Transformation:
    """Load a transformation h and make it ready to run.

    Args:
        path: bundle folder, ``.onnx`` file or TorchScript archive.
        precision: see :class:`fct_infer.transformation.Transformation`.
        threads: CPU threads a call may use; by default all this process may run on.
        backend: ``core`` is the compiled core; ``auto`` takes it.
        trust: see :func:`load_program`.

    Raises:
        ArtifactError: the file is malformed, damaged, or holds something else than a transformation.
        UnsupportedError: the backend or the precision does not exist here.
    """
    if backend not in BACKENDS:
        raise UnsupportedError(f"backend {backend!r} does not exist; there is {', '.join(BACKENDS)}")
    return Transformation(load_program(path, trust=trust), precision, threads)


def load_program(path: str | Path, *, trust: bool = False, input_widths: Sequence[int] | None = None) -> Program:
    """Read a transformation h as data.

    Args:
        path: bundle folder, ``.onnx`` file or TorchScript archive.
        trust: TorchScript is code that runs when loaded; it is refused unless this is set.
        input_widths: of a TorchScript archive whose weights do not tell them: (d_old,) or (d_old, d_side).

    Raises:
        ArtifactError: the file is malformed, damaged, or holds something else than a transformation; names the file.
        UsageError: it is TorchScript and ``trust`` is not set.
        MissingExtraError: it takes onnx or torch to read it, which is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _program_from_bundle(open_bundle(path))
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or bundle")
    if not is_torchscript(path):
        return program_from_onnx(path)
    if not trust:
        raise UsageError(f"{path}: TorchScript is code that runs when it is loaded; pass trust=True if you trust it")
    module = load_torchscript(path)  # first: it says so if torch is missing, which the next import needs
    from fct_infer.artifacts.torch_program import program_from_torchscript

    return program_from_torchscript(module, path, input_widths)


def is_torchscript(path: Path) -> bool:
    """Whether :func:`load_program` opens ``path`` as TorchScript, which is code."""
    return path.is_file() and path.suffix != ".onnx"


def _program_from_bundle(bundle: Bundle) -> Program:
    manifest = bundle.manifest
    if manifest.kind != "transformation":
        raise ArtifactError(f"{bundle.path}: holds a {manifest.kind} model, wanted a transformation")
    if "core" not in {file.target for file in manifest.files}:
        program = program_from_onnx(bundle.file("onnx"))
    else:
        program = _program_from_tensors(bundle)
    shapes = {name: (dim,) for name, dim in program.dims.items()}
    if shapes != manifest.inputs or program.new_dim != manifest.output_dim:
        raise ArtifactError(f"{bundle.path}: its program and its manifest state different dimensions")
    return program


def _program_from_tensors(bundle: Bundle) -> Program:
    path = bundle.file("core")
    tensors = read_tensors(path)
    try:
        program = Program.from_structure(bundle.manifest.program, tensors)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    unused = tensors.keys() - program.tensors().keys()
    if unused:
        raise ArtifactError(f"{path}: tensors that the program does not use: {', '.join(sorted(unused))}")
    return program
