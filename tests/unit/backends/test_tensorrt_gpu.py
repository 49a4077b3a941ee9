"""Engines built and run on a real device. Skipped where there is none, unless FCT_REQUIRE_CUDA is 1."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import onnx
import pytest
from support.cuda import no_device
from support.tensorrt_models import (
    BACKBONE,
    BFLOAT16,
    FLOAT,
    FLOAT16,
    TRANSFORMATION,
    backbone,
    quantized,
    random_batch,
    require_tensorrt,
    transformation,
)

from fct_infer.backends.cuda_memory import CudaMemory, Gpu, current_gpu
from fct_infer.backends.tensorrt_runtime import BuiltEngine, TensorRTRunner, build_engine
from fct_infer.errors import ArtifactError, ResourceError

MOST = 256
ROWS = (1, 64, MOST)
# Largest absolute difference by the largest output, against float32 on the CPU.
LIMITS = {"fp32": 1e-5, "tf32": 5e-3, "fp16": 5e-3, "bf16": 4e-2, "int8": 6e-2, "fp8": 1.5e-1}
COMPUTE = {"fp16": FLOAT16, "bf16": BFLOAT16}
MODELS = {"transformation": (transformation, TRANSFORMATION), "backbone": (backbone, BACKBONE)}
FIRST_WITH_FP8 = 8.9


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return current_gpu() or no_device("no CUDA device, driver or cuda-bindings")


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def trt(gpu, request) -> ModuleType:
    module = require_tensorrt(request.param)
    if request.param == "tensorrt-rtx":
        supported = build_engine(module, transformation(), rows=ROWS, tf32=False).engine.compute_capability
        if gpu.compute_capability not in supported.split(","):
            pytest.skip(f"TensorRT for RTX does not run on {gpu.name} ({gpu.compute_capability})")
    return module


@pytest.fixture(scope="module")
def engine(trt) -> BuiltEngine:
    return build_engine(trt, transformation(), rows=ROWS, tf32=False)


def runner_of(trt: ModuleType, built: BuiltEngine, model: str = "transformation", **options) -> TensorRTRunner:
    return TensorRTRunner(trt, built.data, MODELS[model][1], engine=built.engine, **options)


def reference(model: str, batch: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(MODELS[model][0](), providers=["CPUExecutionProvider"])
    return session.run(None, batch)[0]


def batch_of(model: str, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return random_batch(onnx.load_from_string(MODELS[model][0]()), rows, seed)


def assert_close(result: np.ndarray, wanted: np.ndarray, limit: float) -> None:
    assert result.shape == wanted.shape and result.dtype == np.float32
    assert np.abs(result - wanted).max() / np.abs(wanted).max() < limit


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", LIMITS)
def test_computes_what_onnx_runtime_computes(gpu, trt, model, precision, tmp_path):
    if precision == "fp8" and float(gpu.compute_capability) < FIRST_WITH_FP8:
        pytest.skip(f"{gpu.name} has no fp8")
    onnx_model = MODELS[model][0](COMPUTE.get(precision, FLOAT))
    if precision in ("int8", "fp8"):
        onnx_model = quantized(onnx_model, precision, tmp_path)
    runner = runner_of(trt, build_engine(trt, onnx_model, rows=ROWS, tf32=precision == "tf32"), model)
    assert runner.device == "cuda:0" and runner.runtime.endswith(gpu.name)
    for rows in (1, 2, 7, MOST, 3 * MOST + 5):
        batch = batch_of(model, rows)
        assert_close(runner.run(batch), reference(model, batch), LIMITS[precision])


def test_threads_at_once(trt, engine):
    runner = runner_of(trt, engine, contexts=3)
    batches = [batch_of("transformation", 1 + 37 * seed, seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(runner.run, batches))
    for batch, result in zip(batches, results, strict=True):
        assert_close(result, reference("transformation", batch), LIMITS["fp32"])


def test_an_engine_is_made_for_its_device(gpu, trt, engine):
    if trt.__name__ == "tensorrt":
        assert (engine.engine.gpu, engine.engine.compute_capability) == (gpu.name, gpu.compute_capability)
    assert engine.engine.version == trt.__version__


def test_timing_cache_is_kept_and_used_again(trt, tmp_path):
    if trt.__name__ != "tensorrt":
        pytest.skip("measures nothing")
    path = tmp_path / "timing.cache"
    for content in (None, path, b"garbage"):
        if isinstance(content, bytes):
            path.write_bytes(content)
        assert build_engine(trt, transformation(), rows=ROWS, tf32=False, timing_cache=path).data
        assert len(path.read_bytes()) > 100


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: b"\0" * len(data)], ids=["cut", "zeros"])
def test_a_damaged_engine_is_refused(trt, engine, damage):
    with pytest.raises(ArtifactError, match="cannot load this engine; built by"):
        TensorRTRunner(trt, damage(engine.data), TRANSFORMATION, engine=engine.engine)


def test_no_memory_is_an_error_and_the_device_lives_on(trt, engine):
    memory = CudaMemory()
    with memory.current(), pytest.raises(ResourceError, match="cannot allocate"):
        memory.allocate(1 << 50)
    batch = batch_of("transformation", 7)
    assert_close(runner_of(trt, engine).run(batch), reference("transformation", batch), LIMITS["fp32"])


def test_runners_that_come_and_go_leave_no_memory_behind(trt, engine):
    from cuda.bindings import runtime

    def used() -> int:
        gc.collect()
        _, free, total = runtime.cudaMemGetInfo()
        return int(total - free)

    def come_and_go() -> None:
        runner_of(trt, engine).run(batch_of("transformation", MOST))

    come_and_go()
    before = used()
    for _ in range(20):
        come_and_go()
    assert used() - before < 8 << 20
