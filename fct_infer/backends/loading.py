"""Opens what production runs: a bundle, or a bare model file, by the runtime asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fct_infer.artifacts.bundle import Bundle, open_bundle
from fct_infer.artifacts.files import GIBIBYTE, digest_file, path_of, read_file
from fct_infer.artifacts.loading import is_code, program_from_bundle, read_program, refuse_data, refuse_untrusted
from fct_infer.artifacts.manifest import BundleFile, is_image
from fct_infer.artifacts.torch_files import TorchModel, load_torch
from fct_infer.backends.device import cuda_index
from fct_infer.backends.embedder import Embedder
from fct_infer.backends.onnx_runtime import OnnxRuntimeRunner
from fct_infer.backends.options import RuntimeOptions
from fct_infer.backends.runner import Interface, Runner, Shapes
from fct_infer.backends.runner_transformation import RunnerTransformation
from fct_infer.cuda import first_device, missing_for
from fct_infer.errors import ArtifactError, DeviceMemoryError, NotAProgramError, UnsupportedError, UsageError
from fct_infer.identity import ModelId
from fct_infer.transformation import INPUTS, Program, Transformation

if TYPE_CHECKING:
    from fct_infer.backends.torch_runtime import TorchRunner

MAX_ENGINE_BYTES = 16 * GIBIBYTE
# The files of a bundle each backend runs, the preferred one first. ONNX is data; the others are code.
_TARGETS = {
    "onnxruntime": ("onnx",),
    "torch": ("pt2", "torchscript"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


def load_transformation(
    path: str | Path,
    precision: str = "fp32",
    threads: int | None = None,
    backend: str = "auto",
    *,
    device: str = "auto",
    device_memory: int = 0,
    normalize: bool = False,
    trust: bool = False,
) -> Transformation:
    """Load a transformation h and make it ready to run.

    Args:
        path: bundle folder, ``.onnx`` file, TorchScript or torch.export archive.
        precision: of the arithmetic. What the core has depends on the device, see
            :class:`~fct_infer.transformation.Transformation`; other backends run a file of the bundle that was exported
            in it. ``auto`` lets the core choose the fastest that proves itself on rows of yours, see
            :func:`~fct_infer.backends.precision.choose_precision`; of a bundle's files it is the most exact one.
        threads: CPU threads a call may use; by default all this process may run on.
        backend: ``auto`` takes the core if a program can hold the transformation and the core runs on the device, else
            ONNX Runtime, else (if ``trust``) whatever there is.
        device: ``cpu``; ``cuda``, ``cuda:N``, or for the core several: ``cuda:0,cuda:1``; never another one than asked
            for. ``auto`` is the first device if the backend can use one and it has the memory, else the CPU; ``device``
            and ``no_device`` of the result say so.
        device_memory: most bytes of each device's memory that the core may use; 0 leaves it to the core.
        normalize: L2-normalise the results. On a device that takes half the memory of doing so afterwards, with
            :meth:`~fct_infer.transformation.Transformation.normalized`.
        trust: TorchScript, torch.export archives and TensorRT engines are code; they are refused unless this is set.

    Raises:
        ArtifactError: the file is malformed, damaged, or holds something else than a transformation.
        UnsupportedError: the backend, the device or the precision does not exist here.
        UsageError: it is code and ``trust`` is not set.
        DeviceMemoryError: a device that was asked for has too little free memory, or ``device_memory`` is too little.
    """
    options = RuntimeOptions(precision, threads, backend, device, device_memory, normalize, trust)
    return open_transformation(path, options)


def open_transformation(path: str | Path, options: RuntimeOptions) -> Transformation:
    """Like :func:`load_transformation`, with its choices in one value."""
    path, backend, device = path_of(path), options.backend, options.device
    bundle = open_bundle(path) if path.is_dir() else None
    program, assignment = None, None
    try:
        if bundle:
            program = program_from_bundle(bundle)
        else:
            read = read_program(path, trust=options.trust)
            program, assignment = read.program, read.assignment
    except NotAProgramError:
        if backend == "core":
            raise
    missing = None  # what the core would need to run on the device
    if backend == "core" or (backend == "auto" and program is not None):
        assert program is not None
        place = first_device() if device == "auto" else device
        missing = missing_for(place)
        if missing is None:
            program = program.with_normalization() if options.normalize else program
            on_core = _on_core(program, options, place)
            on_core.source, on_core.assignment, on_core.is_trusted = path, assignment, options.trust
            on_core.old_model, on_core.new_model = _models(bundle)
            return on_core
        if backend == "core":
            raise UnsupportedError(f"device {device}: {missing}")
    try:
        opened = _open(path, bundle, options)
    except UnsupportedError as error:
        if missing is None:
            raise
        raise UnsupportedError(f"device {device}: {missing}; {error}") from error
    if options.device_memory:
        raise UsageError(f"device_memory bounds the core; backend {opened.runner.backend} has no such limit")
    as_found = replace(
        options,
        precision=opened.precision,
        backend=opened.runner.backend,
        device=opened.runner.device,
        normalize=False,
    )
    h: Transformation = RunnerTransformation(
        opened.runner,
        digest=opened.digest,
        precision=opened.precision,
        program=program,
        threads=options.threads,
        reload=partial(open_transformation, path.absolute(), as_found),
    )
    h.source, h.assignment = path, None if bundle else opened.runner.assignment
    h.is_trusted = options.trust
    h.old_model, h.new_model = _models(bundle)
    return h.normalized() if options.normalize else h


def _models(bundle: Bundle | None) -> tuple[ModelId | None, ModelId | None]:
    models = bundle.manifest.models if bundle else {}
    return models.get("old"), models.get("new")


def _on_core(program: Program, options: RuntimeOptions, device: str) -> Transformation:
    """Compile for the device, or for the CPU if that is a device without enough memory that nobody asked for."""
    precision, threads, device_memory = options.precision, options.threads, options.device_memory
    try:
        if precision == "auto":  # whatever is chosen later takes no more than this
            return Transformation(program, "fp32", threads, device, device_memory).in_precision("auto")
        return Transformation(program, precision, threads, device, device_memory)
    except DeviceMemoryError as full:
        if options.device != "auto":
            raise
        try:
            h = Transformation(program, precision, threads, device_memory=device_memory)
        except UnsupportedError:  # a precision that only the device has
            raise full from None
        h.no_device = f"{device} has too little memory: {full}"
        return h


def load_embedder(
    path: str | Path,
    precision: str = "fp32",
    threads: int | None = None,
    backend: str = "auto",
    *,
    device: str = "auto",
    trust: bool = False,
) -> Embedder:
    """Load a backbone or a side-information model and make it ready to run.

    Args:
        path: bundle folder, ``.onnx`` file or torch.export archive; TorchScript does not tell its image size: export it
            to a bundle.
        precision: of the file to run; ``auto`` is the most exact there is.
        threads: CPU threads of one call; by default what the runtime takes.
        backend: ``auto`` is ONNX Runtime if there is an ONNX file, else (if ``trust``) whatever there is.
        device: as for :func:`load_transformation`.
        trust: likewise.

    Raises:
        ArtifactError: the file is malformed, damaged, or holds something else than an image model.
        UnsupportedError: the backend, the device or the precision does not exist here.
        UsageError: it is code and ``trust`` is not set.
    """
    options = RuntimeOptions(precision, threads, backend, device, trust=trust)
    path = path_of(path)
    bundle = open_bundle(path) if path.is_dir() else None
    if backend == "core":
        raise UnsupportedError("backend core runs transformations; an image model runs in onnxruntime, torch, tensorrt")
    if bundle is not None and bundle.manifest.kind == "transformation":
        raise ArtifactError(f"{path}: holds a transformation, wanted a backbone or side-information model")
    opened = _open(path, bundle, options)
    if "image" not in opened.runner.interface.inputs:
        hint = "; if it does, fct-export --input-shape makes a bundle that says of which size" if bundle is None else ""
        raise ArtifactError(f"{path}: takes {', '.join(opened.runner.interface.inputs)}, wanted images{hint}")
    return Embedder(
        opened.runner,
        kind=bundle.manifest.kind if bundle else "backbone",
        model_version=bundle.manifest.model_version if bundle else opened.digest[:12],
        precision=opened.precision,
        preprocessing=bundle.manifest.preprocessing if bundle else None,
        model=bundle.manifest.model if bundle else ModelId(digest=opened.digest),
    )


@dataclass(frozen=True)
class _Opened:
    runner: Runner
    digest: str
    precision: str


def _open(path: Path, bundle: Bundle | None, options: RuntimeOptions) -> _Opened:
    """Open the file that fits; of a bundle, whose digests have been checked, the first its backend prefers."""
    backend, precision, trust = options.backend, options.precision, options.trust
    if bundle is None:
        refuse_data(path)
        backend = ("torch" if is_code(path) else "onnxruntime") if backend == "auto" else backend
        if precision not in ("auto", "fp32"):
            raise UsageError(f"{path}: a bare file is run as fp32; fct-export makes other precisions")
        runner = _open_bare(path, replace(options, backend=backend))
        digest = runner.sha256 if isinstance(runner, OnnxRuntimeRunner) else digest_file(path)
        return _Opened(runner, digest, "fp32")
    if backend == "auto":
        names = [name for name, targets in _TARGETS.items() if any(map(bundle.has, targets))]
        if not names:
            raise UnsupportedError(f"{path}: has a file for the core only")
        backend = next((name for name in names if trust or name == "onnxruntime"), names[0])
    target = next((target for target in _TARGETS[backend] if bundle.has(target)), _TARGETS[backend][0])
    file = bundle.file(target, precision)
    interface = Interface(bundle.manifest.inputs, bundle.manifest.output_dim)
    runner = open_runner(
        bundle.path / file.name, file, interface, device=options.device, threads=options.threads, trust=trust
    )
    if runner.interface != interface:
        raise ArtifactError(f"{bundle.path / file.name}: has other inputs or outputs than the manifest states")
    return _Opened(runner, file.sha256, file.precision)


def open_runner(
    path: Path, file: BundleFile, interface: Interface, *, device: str = "auto", threads: int | None = None, trust: bool
) -> Runner:
    """Open one file of a bundle, whose digest has been checked, with the runtime it is made for.

    Raises:
        FctError: as :func:`load_transformation`.
    """
    if file.target == "onnx":
        return OnnxRuntimeRunner(path, precision=file.precision, device=device, threads=threads, self_contained=True)
    refuse_untrusted(path, trust)
    if file.target in ("pt2", "torchscript"):
        return _torch_runner(load_torch(path, low_precision=True), interface.inputs, device, threads)
    if file.target in ("tensorrt", "tensorrt-rtx"):
        from fct_infer.backends.tensorrt_runtime import TensorRTRunner, import_tensorrt

        index = cuda_index("cuda" if device == "auto" else device)
        if index is None:
            raise UnsupportedError(f"device {device}: TensorRT runs on CUDA devices only")
        data = read_file(path, MAX_ENGINE_BYTES)
        return TensorRTRunner(import_tensorrt(file.target), data, interface, device=index, engine=file.engine)
    raise UnsupportedError(f"{path}: files for {file.target!r} are run by the core only")


def _open_bare(path: Path, options: RuntimeOptions) -> Runner:
    if options.backend == "onnxruntime" and not is_code(path):
        return OnnxRuntimeRunner(path, device=options.device, threads=options.threads)
    if options.backend == "torch" and is_code(path):
        refuse_untrusted(path, options.trust)
        return _torch_runner(load_torch(path), None, options.device, options.threads)
    raise UsageError(
        f"{path}: backend {options.backend} does not run this kind of file; fct-export makes one that it does"
    )


def _torch_runner(model: TorchModel, inputs: Shapes | None, device: str, threads: int | None) -> TorchRunner:
    from fct_infer.artifacts.input_order import assignment_of, in_order, refuse_untold
    from fct_infer.artifacts.torch_program import accepted_shapes
    from fct_infer.backends.torch_runtime import TorchRunner

    assignment = None
    if inputs is None:
        assignment, model = assignment_of(model), in_order(model)
        shapes = model.shapes or next(accepted_shapes(model), None)
        if shapes is None:
            raise UsageError(f"{model.name}: does not tell the shape of its inputs; run fct-export on it first")
        refuse_untold(model, shapes)
        names = ("image",) if len(shapes) == 1 and is_image(shapes[0]) else INPUTS
        inputs = dict(zip(names, shapes, strict=False))
    runner = TorchRunner(model, inputs, device=device, threads=threads)
    runner.assignment = assignment
    return runner
