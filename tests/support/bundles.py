"""Bundles made without the export room: weights and manifest only."""

from __future__ import annotations

from pathlib import Path

from fct_infer.artifacts.bundle import write_bundle
from fct_infer.artifacts.manifest import BundleFile, Manifest, Parity, Source
from fct_infer.artifacts.tensors import tensor_bytes
from fct_infer.storage import write_bytes
from fct_infer.transformation import Program


def core_manifest(program: Program, *files: BundleFile) -> Manifest:
    return Manifest(
        kind="transformation",
        model_version="v1",
        inputs={name: (dim,) for name, dim in program.dims.items()},
        output_dim=program.new_dim,
        files=files,
        source=Source("program", program.digest),
        versions={"fct-infer": "0.1.0"},
        created="2025-01-01T00:00:00+00:00",
        program=program.structure(),
    )


NOT_MEASURED = Parity(1, 0.0, 0.0, 1.0, top1_agreement=1.0, real_rows=0, runtime="none", rows_per_second=1.0)


def core_bundle(program: Program, path: Path, *, force: bool = False) -> Path:
    """Write a bundle that holds ``program`` for the core; its parity figures are not measured."""

    def fill(folder: Path) -> Manifest:
        written = write_bytes(folder / "transformation.safetensors", tensor_bytes(program, {}))
        file = BundleFile("transformation.safetensors", "core", "fp32", written.size, written.sha256, NOT_MEASURED)
        return core_manifest(program, file)

    write_bundle(path, fill, force=force)
    return path
