"""ONNX Runtime, PyTorch and TensorRT on arrays on the device: what NumPy arrays give, in order with streams."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.cuda import DEVICE, no_device
from support.cuda_arrays import CudaArray
from support.tensorrt_models import BACKBONE, TRANSFORMATION, backbone, require_tensorrt, transformation
from support.torch_models import PublicTransformation, TinyBackbone, randomized

from fct_infer.artifacts.torch_files import TorchModel
from fct_infer.backends.cuda_memory import CudaMemory, current_gpu
from fct_infer.backends.embedder import Embedder
from fct_infer.backends.onnx_runtime import OnnxRuntimeRunner
from fct_infer.backends.runner import Runner
from fct_infer.backends.runner_transformation import RunnerTransformation
from fct_infer.backends.tensorrt_runtime import TensorRTRunner, build_engine
from fct_infer.backends.torch_runtime import TorchRunner
from fct_infer.errors import ArrayError, FctError

MOST = 256  # rows of a call of an engine
COUNTS = (1, 7, MOST, MOST + 1, 3 * MOST + 5)
CLOSE = 5e-3  # of one runtime called in two ways: kernels may differ, and products be of TF32
MODELS = {"transformation": (transformation, TRANSFORMATION), "backbone": (backbone, BACKBONE)}
Make = Callable[[str], Runner]


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    """The device, as PyTorch calls it."""
    if current_gpu() is None:
        no_device("no CUDA device, driver or cuda-bindings")
    if not torch.cuda.is_available():
        no_device("this PyTorch has no CUDA")
    return torch.device(DEVICE)


@pytest.fixture(scope="module", params=["onnxruntime", "torch", "tensorrt", "tensorrt-rtx"])
def make(request, gpu, tmp_path_factory) -> Make:
    """Make a runner of either model in one runtime."""
    if request.param == "onnxruntime":
        return lambda model: _in_onnx_runtime(model, tmp_path_factory.mktemp("onnx"))
    if request.param == "torch":
        return _in_pytorch
    trt = require_tensorrt(request.param)

    def in_tensorrt(model: str) -> TensorRTRunner:
        onnx_model, interface = MODELS[model][0](), MODELS[model][1]
        built = build_engine(trt, onnx_model, rows=(1, 64, MOST), tf32=False)
        supported = built.engine.compute_capability
        if current_gpu().compute_capability not in supported.split(","):
            pytest.skip(f"{request.param} builds for {supported} only")
        return TensorRTRunner(trt, built.data, interface, engine=built.engine)

    return in_tensorrt


def _in_onnx_runtime(model: str, folder) -> OnnxRuntimeRunner:
    path = folder / "model.onnx"
    path.write_bytes(MODELS[model][0]())
    try:
        return OnnxRuntimeRunner(path, device=DEVICE)
    except FctError as error:
        no_device(str(error))


def _in_pytorch(model: str) -> TorchRunner:
    interface = MODELS[model][1]
    module = randomized(
        TinyBackbone(16) if model == "backbone" else PublicTransformation(24, 8, 16, 64)
    )  # fmt: skip
    shapes = {name: shape if len(shape) == 3 else (*shape, 1, 1) for name, shape in interface.inputs.items()}
    return TorchRunner(TorchModel(model, module, len(shapes)), shapes, device=DEVICE)


@pytest.fixture(scope="module")
def runner(make) -> Runner:
    """A transformation."""
    return make("transformation")


@pytest.fixture
def h(runner) -> RunnerTransformation:
    return RunnerTransformation(runner, digest="d", precision="fp32")


def rows_of(interface, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, *shape), np.float32) for shape in interface.inputs.values()]


def tensors(arrays: list[np.ndarray], gpu: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(array).to(gpu) for array in arrays]


def assert_close(found: torch.Tensor | np.ndarray, wanted: np.ndarray) -> None:
    found = found.cpu().numpy() if isinstance(found, torch.Tensor) else found
    assert found.shape == wanted.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=CLOSE, atol=CLOSE * np.abs(wanted).max())


@pytest.mark.parametrize("count", COUNTS)
def test_tensors_give_what_numpy_arrays_give(gpu, h, count):
    arrays = rows_of(TRANSFORMATION, count)
    assert h.device == DEVICE
    out = torch.full((count, h.new_dim), torch.nan, device=gpu)
    assert h.apply_on_device(*tensors(arrays, gpu), out) is out
    assert_close(out, h(*arrays))
    assert_close(h.apply_on_device(*tensors(arrays, gpu)), h(*arrays))


@pytest.mark.parametrize("count", COUNTS)
def test_images(gpu, make, count):
    runner = make("backbone")
    embed = Embedder(runner, kind="backbone", model_version="v", precision="fp32", preprocessing=None)
    (images,) = rows_of(BACKBONE, count)
    assert_close(embed.embed_on_device(*tensors([images], gpu)), embed(images))


def test_plain_device_memory(gpu, h):
    memory = CudaMemory(0)
    with memory.current():
        stream = memory.create_stream()
    arrays = rows_of(TRANSFORMATION, 300)
    out = CudaArray(memory, np.full((300, h.new_dim), 7, np.float32), stream)
    assert h.apply_on_device(*(CudaArray(memory, array, stream) for array in arrays), out) is out
    assert_close(out.numpy(), h(*arrays))


def late(array: np.ndarray, gpu: torch.device) -> torch.Tensor:
    """A tensor that holds its values only after tens of milliseconds of the current stream's work."""
    target, source = torch.full(array.shape, torch.nan, device=gpu), torch.from_numpy(array).to(gpu)
    eye, ones = torch.eye(4096, device=gpu), torch.ones((4096, 4096), device=gpu)
    for _ in range(40):
        ones = ones @ eye
    target.copy_(source * ones[0, 0])
    return target


def test_inputs_that_are_still_being_made_are_waited_for(gpu, h):
    arrays = rows_of(TRANSFORMATION, 3 * MOST)
    wanted = h(*arrays)
    h.apply_on_device(*tensors(arrays, gpu))
    for stream in (torch.cuda.default_stream(gpu), torch.cuda.Stream(gpu)):
        torch.cuda.synchronize(gpu)
        with torch.cuda.stream(stream):
            call = [late(array, gpu) for array in arrays]
            out = h.apply_on_device(*call)
            if h.backend != "onnxruntime":
                assert not stream.query(), "the call has waited for the stream, or the work before it was too short"
            for each in call:
                each.fill_(torch.nan)  # comes after the work has read it
            assert_close(out, wanted)


def test_a_stream_that_was_asked_for(gpu, h):
    arrays = rows_of(TRANSFORMATION, 300)
    other = torch.cuda.Stream(gpu)
    for stream in (other, other.cuda_stream):
        call = [late(array, gpu) for array in arrays]  # on the current stream
        out = h.apply_on_device(*call, stream=stream)
        other.synchronize()
        assert_close(out, h(*arrays))


def test_many_callers_on_streams_of_their_own(gpu, h):
    batches = [rows_of(TRANSFORMATION, 1 + 97 * seed, seed) for seed in range(12)]
    expected = [h(*batch) for batch in batches]

    def call(batch: list[np.ndarray]) -> np.ndarray:
        with torch.cuda.stream(torch.cuda.Stream(gpu)):
            return h.apply_on_device(*tensors(batch, gpu)).cpu().numpy()

    with ThreadPoolExecutor(6) as pool:
        for found, wanted in zip(pool.map(call, batches * 4), expected * 4, strict=True):
            assert_close(found, wanted)


def test_host_and_device_calls_at_once(gpu, h):
    arrays = rows_of(TRANSFORMATION, 2 * MOST)
    wanted, on_device = h(*arrays), tensors(arrays, gpu)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(lambda: h(*arrays)) for _ in range(8)]
        calls += [pool.submit(lambda: h.apply_on_device(*on_device).cpu().numpy()) for _ in range(8)]
        for each in calls:
            assert_close(each.result(), wanted)


def test_tensors_that_do_not_fit_are_refused(gpu, h):
    old, side = tensors(rows_of(TRANSFORMATION, 9), gpu)
    out = torch.full((9, h.new_dim), 7.0, device=gpu)
    for call, message in (
        ((old.half(), side, out), "old is a float16 array"),
        ((old, side, out.half()), "out is a float16 array"),
        ((old.cpu(), side, out), r"old is a torch\.Tensor in CPU memory"),
        ((old, side[:8], out), "side has 8 rows, old has 9"),
    ):
        with pytest.raises(ArrayError, match=message):
            h.apply_on_device(*call)
    torch.cuda.synchronize(gpu)
    assert (out == 7).all()
