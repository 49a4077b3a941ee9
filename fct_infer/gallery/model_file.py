"""``model.json`` in a gallery that no upgrade made: whose vectors its rows are, under a seal."""

from __future__ import annotations

from pathlib import Path

from fct_infer.errors import ArtifactError, GalleryError
from fct_infer.gallery.manifest import own_manifest
from fct_infer.identity import ModelId
from fct_infer.storage import ReadFile, write_bytes
from fct_infer.storage.strict_json import Fields, check_seal, parse_strict, sealed_bytes

MODEL_NAME = "model.json"
SCHEMA = 1
_MAX_BYTES = 1 << 20


def write_model(folder: Path, model: ModelId) -> None:
    """Say in a gallery whose vectors its rows are."""
    write_bytes(folder / MODEL_NAME, sealed_bytes({"schema": SCHEMA, "kind": "model", "model": model.as_dict()}))


def model_of(folder: Path) -> ModelId | None:
    """Return whose vectors a gallery's rows are, published by an upgrade or not; None where nothing says so.

    Raises:
        ArtifactError: what says so is malformed, altered, or of a schema this version does not know.
    """
    manifest = own_manifest(folder)
    if manifest is not None:
        return manifest.model
    path = folder / MODEL_NAME
    return _read(path) if path.exists() else None


def _read(path: Path) -> ModelId:
    try:
        with ReadFile(path) as file:
            if file.size > _MAX_BYTES:
                raise ArtifactError(f"is {file.size} bytes long, at most {_MAX_BYTES} are accepted")
            data = file.read(file.size)
        fields = Fields(parse_strict(data), "model.json")
        if (schema := fields.take("schema", int)) != SCHEMA:
            raise ArtifactError(f"has schema {schema}; this version reads {SCHEMA}")
        check_seal(data, fields.sha256("sha256"))
        fields.one_of("kind", ("model",))
        model = ModelId.parse(fields.take("model", dict), "model")
        fields.done()
    except (ArtifactError, GalleryError) as error:
        raise ArtifactError(f"{path}: {str(error)[:500]}") from error
    return model
