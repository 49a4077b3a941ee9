from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support.onnx_models import image_model, onnx_model, run_onnx, saved, weights
from support.programs import random_rows

from fct_infer.backends.onnx_runtime import OnnxRuntimeRunner
from fct_infer.backends.runner import Interface
from fct_infer.errors import ArtifactError, MissingExtraError, UnsupportedError, UsageError

node = helper.make_node
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def path(tmp_path):
    """Two inputs of another's names, (n, 8, 1, 1) and (n, 5), to (n, 6, 1, 1)."""
    nodes = [
        node("Flatten", ["a"], ["flat"]),
        node("Concat", ["flat", "b"], ["both"], axis=1),
        node("MatMul", ["both", "w"], ["rows"]),
        node("Unsqueeze", ["rows", "axes"], ["out"]),
    ]
    model = onnx_model(
        nodes,
        {"a": ["n", 8, 1, 1], "b": ["n", 5]},
        {"out": ["n", 6, 1, 1]},
        weights(w=(13, 6)) | {"axes": np.array([2, 3])},
    )
    return saved(model, tmp_path / "h.onnx")


@pytest.mark.parametrize("rows", [1, 2, 7, 4096])
def test_any_batch_in_plain_rows_whatever_the_layout_inside(path, rows):
    runner = OnnxRuntimeRunner(path, device="cpu", threads=1)
    assert runner.interface == Interface({"old": (8,), "side": (5,)}, 6)
    old, side = random_rows(rows, 8), random_rows(rows, 5, 1)
    found = runner.run({"old": old, "side": side})
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.flags.writeable
    wanted = np.hstack([old, side]) @ weights(w=(13, 6))["w"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_it_says_what_it_is(path):
    runner = OnnxRuntimeRunner(path)
    assert (runner.backend, runner.device) == ("onnxruntime", "cuda:0" if HAS_CUDA else "cpu")
    assert runner.runtime == f"onnxruntime {onnxruntime.__version__} {runner.device}"


@pytest.mark.skipif(HAS_CUDA, reason="there is a device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_never_replaced_by_the_cpu(path, device):
    with pytest.raises(UnsupportedError, match=f"device {device}: this ONNX Runtime has no CUDA"):
        OnnxRuntimeRunner(path, device=device)


def test_a_silent_fallback_of_the_runtime_is_noticed(path, monkeypatch):
    """It lists the provider, and then quietly makes a session without it."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    make = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda data, options, providers: make(data, options, providers=[providers[-1]])
    )
    with pytest.raises(UnsupportedError, match="device cuda: ONNX Runtime fell back to the CPU"):
        OnnxRuntimeRunner(path, device="cuda")
    assert OnnxRuntimeRunner(path, device="auto").device == "cpu"  # which auto may, and says


def test_devices_and_precisions_that_do_not_exist(path):
    with pytest.raises(UsageError, match="device 'tpu' does not exist"):
        OnnxRuntimeRunner(path, device="tpu")
    with pytest.raises(UnsupportedError, match="no bf16 on the CPU"):
        OnnxRuntimeRunner(path, device="cpu", precision="bf16")


def test_many_threads_share_one_runner(path):
    runner = OnnxRuntimeRunner(path, device="cpu", threads=1)
    batches = [{"old": random_rows(50, 8, seed), "side": random_rows(50, 5, seed + 100)} for seed in range(24)]
    expected = [runner.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(runner.run, batches), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_threads_reach_the_runtime(path, monkeypatch):
    make, given = onnxruntime.InferenceSession, []
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, options, **more: given.append(options.intra_op_num_threads) or make(data, options, **more),
    )
    for threads in (3, None):
        OnnxRuntimeRunner(path, device="cpu", threads=threads)
    assert set(given[: len(given) // 2]) == {3} and set(given[len(given) // 2 :]) == {0}


def test_results_do_not_share_memory(path):
    runner = OnnxRuntimeRunner(path, device="cpu")
    first = runner.run({"old": random_rows(3, 8), "side": random_rows(3, 5)})
    kept = first.copy()
    runner.run({"old": random_rows(3, 8, 1), "side": random_rows(3, 5, 1)})
    np.testing.assert_array_equal(first, kept)


def test_an_image_model(tmp_path):
    runner = OnnxRuntimeRunner(saved(image_model(), tmp_path / "b.onnx"), device="cpu")
    assert runner.interface == Interface({"image": (3, 6, 5)}, 4)
    images = np.random.default_rng(0).standard_normal((7, 3, 6, 5), np.float32)
    np.testing.assert_allclose(
        runner.run({"image": images}), run_onnx(image_model(), x=images).reshape(7, 4), rtol=1e-4, atol=1e-6
    )


def test_a_graph_the_runtime_refuses_is_named(tmp_path):
    model = onnx_model([node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 8]}, {"y": ["n", 6]}, weights(w=(7, 6)))
    with pytest.raises(ArtifactError, match=r"h\.onnx: ONNX Runtime refuses it: .*[Ii]ncompatible dimensions"):
        OnnxRuntimeRunner(saved(model, tmp_path / "h.onnx"))


def test_a_graph_that_makes_other_than_one_row_of_each_is_refused(tmp_path):
    model = onnx_model([node("Reshape", ["x", "s"], ["y"])], {"x": ["n", 8]}, {"y": ["m", 4]}, {"s": np.array([-1, 4])})
    with pytest.raises(ArtifactError, match=r"h\.onnx: makes float32 \(4, 4\) of 2 rows"):
        OnnxRuntimeRunner(saved(model, tmp_path / "h.onnx"))


def test_a_failure_while_it_runs_is_no_traceback(tmp_path):
    """Reshapes batches of even size only, which the trial of two rows cannot tell."""
    nodes = [node("Reshape", ["x", "pairs"], ["a"]), node("Reshape", ["a", "rows"], ["y"])]
    model = onnx_model(nodes, {"x": ["n", 3]}, {"y": ["m", 3]}, {"pairs": np.array([-1, 6]), "rows": np.array([-1, 3])})
    runner = OnnxRuntimeRunner(saved(model, tmp_path / "h.onnx"), device="cpu")
    assert runner.run({"old": random_rows(4, 3)}).shape == (4, 3)
    with pytest.raises(ArtifactError, match=r"onnxruntime .* cpu: does not run on a batch of 3 rows: .*[Rr]eshape"):
        runner.run({"old": random_rows(3, 3)})


def test_a_half_precision_output_is_widened(tmp_path):
    model = onnx_model([node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], {"x": ["n", 3]}, {"y": ["n", 3]})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    found = OnnxRuntimeRunner(saved(model, tmp_path / "h.onnx"), device="cpu").run({"old": random_rows(5, 3)})
    np.testing.assert_array_equal(found, random_rows(5, 3).astype(np.float16).astype(np.float32))


def test_a_missing_package_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed; run: pip install 'fct-infer\[cpu\]'"):
        OnnxRuntimeRunner(path)
