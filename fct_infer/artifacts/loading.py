"""Reads a program from whatever holds one: a bundle, an ONNX file, a TorchScript or torch.export archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fct_infer.artifacts.bundle import Bundle, open_bundle
from fct_infer.artifacts.files import path_of
from fct_infer.artifacts.onnx_file import parse_onnx
from fct_infer.artifacts.onnx_graph import program_from_onnx, program_of_graph
from fct_infer.artifacts.onnx_signature import assignment_of_graph
from fct_infer.artifacts.tensors import read_tensors
from fct_infer.artifacts.torch_files import load_torch
from fct_infer.errors import ArtifactError, NotAProgramError, UsageError
from fct_infer.transformation import Program

DATA_SUFFIXES = (".safetensors", ".json")  # a part of a bundle or of a checkpoint


def refuse_data(path: Path) -> None:
    """Say of a file that is only a part of something what to name instead.

    Raises:
        ArtifactError: it is one.
    """
    if path.is_file() and path.suffix in DATA_SUFFIXES:
        raise ArtifactError(
            f"{path}: is no model by itself; name the bundle's folder, or make one of a checkpoint with fct-export"
        )


@dataclass(frozen=True)
class NamedProgram:
    """A transformation as data.

    Attributes:
        program: the data.
        assignment: which input of the file was taken for which, for people; None of a bundle, whose are old and side.
    """

    program: Program
    assignment: str | None = None


def load_program(path: str | Path, *, trust: bool = False, input_widths: Sequence[int] | None = None) -> Program:
    """Return the program that :func:`read_program` reads; arguments and errors are the same."""
    return read_program(path, trust=trust, input_widths=input_widths).program


def read_program(path: str | Path, *, trust: bool = False, input_widths: Sequence[int] | None = None) -> NamedProgram:
    """Read a transformation h as data.

    Args:
        path: bundle folder, ``.onnx`` file, TorchScript or torch.export archive.
        trust: the archives are code that runs when loaded; they are refused unless this is set.
        input_widths: of a TorchScript archive whose weights do not tell them: (d_old,) or (d_old, d_side).

    Raises:
        ArtifactError: the file is malformed, damaged, or holds something else than a transformation; names the file.
        NotAProgramError: it is one, but no program can hold it; names the operations.
        UsageError: it is code and ``trust`` is not set.
        MissingExtraError: it takes onnx or torch to read it, which is not installed.
    """
    path = path_of(path)
    if path.is_dir():
        return NamedProgram(program_from_bundle(open_bundle(path)))
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or bundle")
    refuse_data(path)
    if not is_code(path):
        graph = parse_onnx(path).graph
        return NamedProgram(program_of_graph(graph, path), assignment_of_graph(graph))
    refuse_untrusted(path, trust)
    model = load_torch(path)  # first: it says so if torch is missing, which the next import needs
    from fct_infer.artifacts.input_order import assignment_of, in_order
    from fct_infer.artifacts.torch_program import program_from_torch

    return NamedProgram(program_from_torch(in_order(model), input_widths), assignment_of(model))


def is_code(path: Path) -> bool:
    """Whether ``path`` is opened as TorchScript or torch.export archive, which are code, rather than as ONNX."""
    return path.is_file() and path.suffix not in (".onnx", *DATA_SUFFIXES)


def refuse_untrusted(path: Path, trust: bool) -> None:
    """Raise UsageError unless ``trust`` is set: what the file holds runs when it is loaded."""
    if not trust:
        raise UsageError(f"{path}: holds code that runs when it is loaded; pass trust=True if you trust it")


def program_from_bundle(bundle: Bundle) -> Program:
    """Read the transformation of an opened bundle as data; errors as :func:`load_program`."""
    manifest = bundle.manifest
    if manifest.kind != "transformation":
        raise ArtifactError(f"{bundle.path}: holds a {manifest.kind} model, wanted a transformation")
    if bundle.has("core"):
        program = _program_from_tensors(bundle)
    elif manifest.program is None or not bundle.has("onnx", "fp32"):
        targets = ", ".join(dict.fromkeys(file.target for file in manifest.files))
        raise NotAProgramError([f"{bundle.path}: the bundle holds no program, only files for {targets}"])
    else:
        program = program_from_onnx(bundle.path / bundle.file("onnx", "fp32").name, self_contained=True)
    shapes = {name: (dim,) for name, dim in program.dims.items()}
    if shapes != manifest.inputs or program.new_dim != manifest.output_dim:
        raise ArtifactError(f"{bundle.path}: its program and its manifest state different dimensions")
    return program


def _program_from_tensors(bundle: Bundle) -> Program:
    path = bundle.path / bundle.file("core").name
    tensors = read_tensors(path)
    try:
        program = Program.from_structure(bundle.manifest.program, tensors)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    unused = tensors.keys() - program.tensors().keys()
    if unused:
        raise ArtifactError(f"{path}: tensors that the program does not use: {', '.join(sorted(unused))}")
    return program
