"""``manifest.json`` of a bundle: what the model is, which files hold it, how well they were proven equal."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from fct_infer.artifacts.files import MEBIBYTE, read_file
from fct_infer.artifacts.precisions import PRECISIONS
from fct_infer.errors import ArtifactError
from fct_infer.identity import ModelId
from fct_infer.storage.strict_json import Fields as _Fields
from fct_infer.storage.strict_json import check_seal, parse_strict, sealed_bytes
from fct_infer.storage.strict_json import number_of as _number
from fct_infer.storage.strict_json import positive_of as _positive
from fct_infer.storage.strict_json import typed as _typed

Kind: TypeAlias = Literal["transformation", "backbone", "side-information"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Interpolation: TypeAlias = Literal["bilinear", "bicubic", "lanczos"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
DEFAULT_INTERPOLATION: Interpolation = "bilinear"  # and what bundles mean that do not say
SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 * MEBIBYTE

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # one plain name: no folder, no "..", no absolute path


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether the shape of an input is (channels, height, width) rather than a row: (d,) or (d, 1, 1)."""
    return len(shape) == 3 and shape[1:] != (1, 1)


@dataclass(frozen=True)
class Parity:
    """How far a file's outputs lie from the source model's on the same input, and what ran it.

    Attributes:
        rows: rows compared.
        max_abs_error: largest absolute difference of any output number.
        max_relative_error: the same, divided by the largest absolute output of the source.
        min_cosine: lowest cosine between a row and the source's row.
        top1_agreement: share of rows whose nearest other row, by L2 distance, is the same as with the source's outputs,
            or one that is as near by them, up to 1 %; of the real rows if there are any.
        real_rows: how many of the rows were a user's data; the others were random.
        runtime: what ran the file, with version and device: ``onnxruntime 1.20.0 cpu``.
        rows_per_second: rows of the largest batch by the seconds it took there.
    """

    rows: int
    max_abs_error: float
    max_relative_error: float
    min_cosine: float
    top1_agreement: float
    real_rows: int
    runtime: str
    rows_per_second: float


@dataclass(frozen=True)
class Engine:
    """What a TensorRT engine was built by and for.

    Attributes:
        version: of TensorRT; an engine runs under the version that built it.
        gpu: name of the device it is for; ``any`` if it is compiled for the device when it is loaded.
        compute_capability: of the device, such as ``9.0``, or of all it may run on: ``8.0,8.9,12.0``.
        rows: of a batch (fewest, typical, most): the profile it is tuned for; larger calls are cut.
    """

    version: str
    gpu: str
    compute_capability: str
    rows: tuple[int, int, int]


@dataclass(frozen=True)
class BundleFile:
    """One model file of a bundle: its name, what it is for, its size in bytes and SHA-256, and its proof.

    ``parity`` is None for a file that could not be run where it was made, which was allowed explicitly; ``engine`` is
    for TensorRT engines.
    """

    name: str
    target: str
    precision: str
    size: int
    sha256: str
    parity: Parity | None
    engine: Engine | None = None


@dataclass(frozen=True)
class Preprocessing:
    """What an image must go through before the model: scaling, then ``(x - mean) / std`` per channel.

    Attributes:
        size: (height, width) the model takes.
        mean: one per channel, of ``x`` in RGB on the scale 0 to 1.
        std: likewise, positive.
        resize: the shorter side becomes this long and the middle ``size`` is cut out; None resizes to ``size`` whatever
            the aspect.
        interpolation: how it is scaled, antialiased as Pillow's and torchvision's.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: Interpolation = DEFAULT_INTERPOLATION


@dataclass(frozen=True)
class Source:
    """What was exported: a file's name and SHA-256, or ``"program"`` / ``"module"`` and a digest of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``.

    Attributes:
        kind: what the model is.
        model_version: name of this model; by default the first 12 digits of the source's digest.
        inputs: shape of each input without the batch axis: ``{"old": (96,), "side": (32,)}`` or
            ``{"image": (3, 32, 32)}``.
        output_dim: width of the output ``embedding``.
        files: the model files.
        source: what they were made from.
        versions: of this package and the libraries that wrote the files.
        created: UTC, ISO 8601.
        program: :meth:`fct_infer.transformation.Program.structure`; None for image models, and for transformations
            that no program can hold.
        preprocessing: for image models; None where the source did not tell.
        models: of a transformation, whose vectors it takes and makes, as ``old`` and ``new``; of an image model that
            came out of another bundle, ``self``: which model it is. As far as they are known.
    """

    kind: Kind
    model_version: str
    inputs: dict[str, tuple[int, ...]]
    output_dim: int
    files: tuple[BundleFile, ...]
    source: Source
    versions: dict[str, str]
    created: str
    program: dict[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    models: dict[str, ModelId] = field(default_factory=dict)

    @property
    def model(self) -> ModelId:
        """Which model an image model is: by the name its user gave it, and by what it was exported from."""
        if known := self.models.get("self"):
            return known
        digest = self.source.sha256
        name = None if self.model_version == digest[:12] else self.model_version
        preprocessing = None if self.preprocessing is None else json.loads(json.dumps(asdict(self.preprocessing)))
        return ModelId(name, digest, preprocessing)

    def to_json(self) -> dict[str, Any]:
        """Return what ``manifest.json`` holds, as strict JSON."""
        document: dict[str, Any] = json.loads(self.to_bytes())
        return document

    def to_bytes(self) -> bytes:
        """Return ``manifest.json``, its last field a SHA-256 over all bytes before that digest."""
        document = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        document["files"] = {file.pop("name"): file for file in document["files"]}
        del document["models"]
        if self.models:
            document["models"] = {name: model.as_dict() for name, model in self.models.items()}
        return sealed_bytes(document)


def read_manifest(bundle: str | Path) -> Manifest:
    """Read and check ``manifest.json`` of a bundle, but none of the files it lists.

    Raises:
        ArtifactError: it is missing, malformed, altered, or of a schema this version does not know.
    """
    path = Path(bundle) / MANIFEST_NAME
    data = read_file(path, MAX_MANIFEST_BYTES)
    try:
        document = parse_strict(data)
        fields = _Fields(document, "manifest")
        version = fields.take("schema_version", int)
        if version != SCHEMA_VERSION:
            raise ArtifactError(f"schema version {version}, this fct-infer reads {SCHEMA_VERSION}; install a newer one")
        check_seal(data, fields.sha256("sha256"))
        return _parse(fields)
    except (ValueError, OverflowError) as error:  # of JSON, UTF-8, numbers out of range, and ArtifactErrors of _parse
        raise ArtifactError(f"{path}: {str(error)[:500]}") from error


def _parse(fields: _Fields) -> Manifest:
    program, preprocessing = fields.take_optional("program", dict), fields.take_optional("preprocessing", dict)
    manifest = Manifest(
        kind=fields.one_of("kind", KINDS),
        model_version=fields.take("model_version", str),
        inputs={name: _shape(shape, f"inputs.{name}") for name, shape in fields.take("inputs", dict).items()},
        output_dim=fields.positive("output_dim"),
        program=program,
        preprocessing=None if preprocessing is None else _parse_preprocessing(preprocessing),
        files=tuple(_parse_file(name, value) for name, value in fields.take("files", dict).items()),
        source=_parse_source(fields.nested("source")),
        versions={name: _typed(text, str, f"versions.{name}") for name, text in fields.take("versions", dict).items()},
        created=fields.take("created", str),
        models=_parse_models(fields),
    )
    fields.done()
    if manifest.kind != "transformation" and program is not None:
        raise ArtifactError(f"kind {manifest.kind!r} has a program, which only a transformation can have")
    names = {"old", "side"} if manifest.kind == "transformation" else {"image"}
    if not manifest.inputs or not set(manifest.inputs) <= names:
        raise ArtifactError(f"kind {manifest.kind!r} with inputs {', '.join(manifest.inputs)}")
    if not manifest.files:
        raise ArtifactError("lists no files")
    return manifest


def _parse_models(fields: _Fields) -> dict[str, ModelId]:
    models = fields.take_if_there("models", dict) or {}
    if not set(models) <= {"old", "new", "self"}:
        raise ArtifactError(f"models: are of {', '.join(models)}, wanted old and new, or self")
    return {name: ModelId.parse(model, f"models.{name}") for name, model in models.items()}


def _parse_file(name: str, value: Any) -> BundleFile:
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST_NAME:
        raise ArtifactError(f"file name {name[:80]!r} is not a plain name inside the bundle")
    fields = _Fields(value, f"files.{name}")
    file = BundleFile(
        name,
        target=fields.take("target", str),
        precision=fields.one_of("precision", PRECISIONS),
        size=fields.positive("size"),
        sha256=fields.sha256("sha256"),
        parity=_parse_parity(fields.nested_optional("parity")),
        engine=_parse_engine(fields.nested_optional("engine")),
    )
    fields.done()
    return file


def _parse_parity(fields: _Fields | None) -> Parity | None:
    if fields is None:
        return None
    parity = Parity(
        rows=fields.positive("rows"),
        max_abs_error=fields.number("max_abs_error"),
        max_relative_error=fields.number("max_relative_error"),
        min_cosine=fields.number("min_cosine"),
        top1_agreement=fields.number("top1_agreement"),
        real_rows=fields.take("real_rows", int),
        runtime=fields.take("runtime", str),
        rows_per_second=fields.number("rows_per_second"),
    )
    fields.done()
    return parity


def _parse_engine(fields: _Fields | None) -> Engine | None:
    if fields is None:
        return None
    version, gpu, capability = (fields.take(key, str) for key in ("version", "gpu", "compute_capability"))
    rows = _shape(fields.take("rows", list), "engine.rows")
    fields.done()
    if len(rows) != 3 or list(rows) != sorted(rows):
        raise ArtifactError(f"engine.rows is {list(rows)}, wanted the fewest, typical and most rows of a batch")
    return Engine(version, gpu, capability, (rows[0], rows[1], rows[2]))


def _parse_source(fields: _Fields) -> Source:
    source = Source(fields.take("name", str), fields.sha256("sha256"))
    fields.done()
    return source


def _parse_preprocessing(document: dict[str, Any]) -> Preprocessing:
    fields = _Fields({"interpolation": DEFAULT_INTERPOLATION, **document}, "preprocessing")
    size = _shape(fields.take("size", list), "preprocessing.size")
    mean, std = (tuple(_number(item, key) for item in fields.take(key, list)) for key in ("mean", "std"))
    resize = fields.take_optional("resize", int)
    interpolation = fields.one_of("interpolation", INTERPOLATIONS)
    fields.done()
    if len(size) != 2 or len(mean) != len(std) or not mean or min(std) <= 0:
        raise ArtifactError("preprocessing: wanted size [h, w] and as many means as (positive) standard deviations")
    if resize is not None and resize < max(size):
        raise ArtifactError(f"preprocessing: cuts {size[0]}x{size[1]} out of images resized to {resize}")
    return Preprocessing((size[0], size[1]), mean, std, resize, interpolation)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    return tuple(_positive(size, where) for size in _typed(value, list, where))
