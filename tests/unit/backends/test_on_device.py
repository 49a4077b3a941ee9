"""Arrays on a device in other runtimes: host memory said to be a device's, the runtimes themselves real, on the CPU."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from support.fake_devices import DlpackArray, InterfaceArray, NamespaceArray
from support.fake_tensorrt import FakeMemory
from support.images import NumpyRunner, numpy_embedder
from support.onnx_models import image_model, onnx_model, saved, weights
from support.programs import random_rows
from support.torch_models import PublicTransformation, TinyBackbone, randomized
from torch import nn

from fct_infer.artifacts.torch_files import TorchModel
from fct_infer.backends import onnx_runtime, torch_runtime
from fct_infer.backends.embedder import Embedder
from fct_infer.backends.onnx_runtime import OnnxRuntimeRunner
from fct_infer.backends.runner import Interface, Runner
from fct_infer.backends.runner_transformation import RunnerTransformation
from fct_infer.backends.torch_runtime import TorchRunner
from fct_infer.errors import ArrayError, ArtifactError, UnsupportedError

node = helper.make_node


class Recorder(Runner):
    """Takes arrays on a device and remembers what it was given."""

    backend, device, runtime = "recorder", "cuda:0", "recorder"

    def __init__(self, inputs: dict[str, tuple[int, ...]]) -> None:
        self.interface, self.given = Interface(inputs, 5), []

    def run(self, batch):
        raise AssertionError("through host memory")

    def run_on_device(self, batch, out, stream):
        self.given.append((dict(batch), out, stream))


def transformation(runner: Runner) -> RunnerTransformation:
    return RunnerTransformation(runner, digest="d", precision="fp32")


def call(rows: int = 9, **changes) -> dict[str, object]:
    arrays = {"old": random_rows(rows, 6), "side": random_rows(rows, 4, 1), "out": np.full((rows, 5), 7, np.float32)}
    return {name: DlpackArray(array) for name, array in arrays.items()} | changes


@pytest.fixture
def recorder() -> Recorder:
    return Recorder({"old": (6,), "side": (4,)})


# -- the call ----------------------------------------------------------------------------------------------------------


def test_a_runner_gets_the_addresses_and_the_stream_and_nothing_is_copied(recorder):
    arguments = call()
    assert transformation(recorder).apply_on_device(**arguments, stream=77) is arguments["out"]
    ((batch, out, stream),) = recorder.given
    assert {name: rows.address for name, rows in batch.items()} == {
        name: arguments[name].array.ctypes.data for name in ("old", "side")
    }
    assert (out.address, out.rows, stream) == (arguments["out"].array.ctypes.data, 9, 77)
    assert [arguments[name].streams for name in arguments] == [[77]] * 3  # producers order themselves before it


def test_the_result_is_made_by_the_library_of_the_first_input(recorder):
    images = Recorder({"image": (3, 2, 2)})
    embed = Embedder(images, kind="backbone", model_version="v", precision="fp32", preprocessing=None)

    class Library(NamespaceArray):
        device = None

        @staticmethod
        def empty(shape, dtype, device=None):
            return Library(np.empty(shape, dtype))

        def __array_namespace__(self):
            return Library

    made = embed.embed_on_device(Library(np.ones((4, 3, 2, 2), np.float32)))
    assert isinstance(made, Library) and made.array.shape == (4, 5) and made.array.dtype == np.float32
    assert images.given[0][1].address == made.array.ctypes.data
    found = transformation(recorder).apply_on_device(Library(random_rows(3, 6)), DlpackArray(random_rows(3, 4)))
    assert isinstance(found, Library)


def test_no_rows_are_no_call(recorder):
    arguments = call(0)
    assert transformation(recorder).apply_on_device(**arguments) is arguments["out"]
    assert recorder.given == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"old": DlpackArray(random_rows(9, 6).astype(np.float16))}, "old is a float16 .* wanted a .* float32 array"),
        ({"out": DlpackArray(np.zeros((9, 5), np.float16))}, "out is a float16 .* wanted a C-contiguous float32 array"),
        ({"old": DlpackArray(random_rows(9, 5))}, r"old is a float32 array of shape \(9, 5\), .* of shape \(n, 6\)"),
        ({"old": None}, "old is a NoneType"),
        ({"side": None}, "side is missing"),
        ({"side": DlpackArray(random_rows(8, 4))}, "side has 8 rows, old has 9"),
        ({"side": DlpackArray(random_rows(9, 4), device_number=1)}, "side is on cuda:1, the model on cuda:0"),
        ({"old": random_rows(9, 6)}, r"old is a numpy\.ndarray in CPU memory"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_and_nothing_is_computed(recorder, changes, message):
    with pytest.raises(ArrayError, match=message):
        transformation(recorder).apply_on_device(**call(**changes))
    assert recorder.given == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.ones((4, 3, 2), np.float32), r"image is a float32 array of shape \(4, 3, 2\), .* shape \(n, 3, 2, 2\)"),
        (np.ones((4, 2, 2, 3), np.float32), r"image is a float32 array of shape \(4, 2, 2, 3\)"),
        (np.ones((4, 2, 2, 3), np.float32).transpose(0, 3, 1, 2), "image is .* that is not C-contiguous"),
        (np.ones((3, 3, 2, 2), np.float32), "out has 4 rows, image has 3"),
    ],
)
def test_wrong_images_are_refused(images, message):
    runner = Recorder({"image": (3, 2, 2)})
    embed = Embedder(runner, kind="backbone", model_version="v", precision="fp32", preprocessing=None)
    with pytest.raises(ArrayError, match=message):
        embed.embed_on_device(InterfaceArray(images), InterfaceArray(np.zeros((4, 5), np.float32)))
    assert runner.given == []


def test_models_on_the_cpu_take_none(recorder):
    with pytest.raises(UnsupportedError, match="this one runs in numpy on cpu"):
        numpy_embedder(6).embed_on_device(DlpackArray(np.ones((2, 3, 8, 12), np.float32)))
    recorder.device = "cpu"
    with pytest.raises(UnsupportedError, match="this one runs in recorder on cpu"):
        transformation(recorder).apply_on_device(**call())


def test_runners_that_take_none_say_who_does():
    runner = NumpyRunner(5, (3, 2, 2), None)
    runner.device = "cuda:0"
    embed = Embedder(runner, kind="backbone", model_version="v", precision="fp32", preprocessing=None)
    images, out = (DlpackArray(np.ones(shape, np.float32)) for shape in ((2, 3, 2, 2), (2, 5)))
    with pytest.raises(UnsupportedError, match="numpy takes no arrays on a device; the core, ONNX Runtime"):
        embed.embed_on_device(images, out)


def test_results_that_are_to_be_normalised_are_refused_not_left_as_they_are(recorder):
    with pytest.raises(UnsupportedError, match="that recorder makes are not normalised there"):
        transformation(recorder).normalized().apply_on_device(**call())
    assert recorder.given == []


# -- ONNX Runtime ------------------------------------------------------------------------------------------------------


class Events(FakeMemory):
    """Remembers the order of waiting and computing."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[object] = []

    def synchronize(self, stream: int) -> None:
        assert self._thread.current, "the default stream is another one on another device"
        self.order.append(("wait", stream))


@pytest.fixture
def on_device(monkeypatch):
    """Make a runner on the CPU one that says it is on a device."""

    def make(runner: OnnxRuntimeRunner) -> Events:
        memory = Events()
        monkeypatch.setattr(onnx_runtime, "_DEVICE_TYPE", "cpu")
        monkeypatch.setattr(onnx_runtime, "CudaMemory", lambda device_number: memory)
        run = runner._session.run_with_iobinding
        monkeypatch.setattr(
            runner._session, "run_with_iobinding", lambda binding: (memory.order.append("run"), run(binding))
        )
        runner.device = "cuda:0"
        return memory

    return make


def onnx_columns(tmp_path) -> OnnxRuntimeRunner:
    """(n, 6, 1, 1) and (n, 4), named by others, to (n, 5, 1, 1)."""
    nodes = [
        node("Flatten", ["a"], ["flat"]),
        node("Concat", ["flat", "b"], ["both"], axis=1),
        node("MatMul", ["both", "w"], ["rows"]),
        node("Unsqueeze", ["rows", "axes"], ["out"]),
    ]
    constants = weights(w=(10, 5)) | {"axes": np.array([2, 3])}
    model = onnx_model(nodes, {"a": ["n", 6, 1, 1], "b": ["n", 4]}, {"out": ["n", 5, 1, 1]}, constants)
    return OnnxRuntimeRunner(saved(model, tmp_path / "h.onnx"), device="cpu", threads=1)


@pytest.mark.parametrize("wrap", [DlpackArray, InterfaceArray])
@pytest.mark.parametrize("rows", [1, 9, 1000])
def test_onnx_runtime_fills_the_callers_memory_after_waiting_for_its_stream(tmp_path, on_device, wrap, rows):
    runner = onnx_columns(tmp_path)
    old, side, out = (each.array for each in call(rows).values())
    wanted = runner.run({"old": old, "side": side})
    memory = on_device(runner)
    h = transformation(runner)
    h.apply_on_device(wrap(old), wrap(side), wrap(out), stream=77)
    np.testing.assert_array_equal(out, wanted)
    assert memory.order == [("wait", 77), "run"]


def test_onnx_runtime_embeds_images_where_they_are(tmp_path, on_device):
    runner = OnnxRuntimeRunner(saved(image_model(), tmp_path / "b.onnx"), device="cpu")
    images, out = np.random.default_rng(0).standard_normal((7, 3, 6, 5), np.float32), np.zeros((7, 4), np.float32)
    wanted = runner.run({"image": images})
    on_device(runner)
    embed = Embedder(runner, kind="backbone", model_version="v", precision="fp32", preprocessing=None)
    embed.embed_on_device(DlpackArray(images), DlpackArray(out))
    np.testing.assert_allclose(out, wanted, rtol=1e-6)


def test_onnx_runtime_does_not_hand_out_its_input(tmp_path, on_device):
    model = onnx_model([node("Identity", ["x"], ["y"])], {"x": ["n", 3]}, {"y": ["n", 3]})
    runner = OnnxRuntimeRunner(saved(model, tmp_path / "h.onnx"), device="cpu")
    on_device(runner)
    rows, out = random_rows(4, 3), np.zeros((4, 3), np.float32)
    transformation(runner).apply_on_device(DlpackArray(rows), None, DlpackArray(out))
    np.testing.assert_array_equal(out, rows)


def test_a_half_precision_output_of_a_file_is_refused(tmp_path, on_device):
    model = onnx_model([node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], {"x": ["n", 3]}, {"y": ["n", 3]})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    runner = OnnxRuntimeRunner(saved(model, tmp_path / "h.onnx"), device="cpu")
    memory = on_device(runner)
    out = np.full((4, 3), 7, np.float32)
    with pytest.raises(UnsupportedError, match="this model makes float16"):
        transformation(runner).apply_on_device(DlpackArray(random_rows(4, 3)), None, DlpackArray(out))
    assert (out == 7).all() and memory.order == []


def test_a_failure_of_onnx_runtime_is_no_traceback(tmp_path, on_device):
    nodes = [node("Reshape", ["x", "pairs"], ["a"]), node("Reshape", ["a", "rows"], ["y"])]
    model = onnx_model(nodes, {"x": ["n", 3]}, {"y": ["m", 3]}, {"pairs": np.array([-1, 6]), "rows": np.array([-1, 3])})
    runner = OnnxRuntimeRunner(saved(model, tmp_path / "h.onnx"), device="cpu")
    on_device(runner)
    arrays = DlpackArray(random_rows(3, 3)), None, DlpackArray(np.zeros((3, 3), np.float32))
    with pytest.raises(ArtifactError, match=r"onnxruntime .* cpu: does not run on a batch of 3 rows: .*[Rr]eshape"):
        transformation(runner).apply_on_device(*arrays)


# -- PyTorch -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_device(monkeypatch):
    """PyTorch sees host memory at the addresses; the streams it is put on are returned."""
    streams: list[tuple[int, int]] = []

    def on_stream(module, stream, device_number):
        streams.append((stream, device_number))
        return nullcontext()

    def tensor_at(module, rows, shape):
        memory = (ctypes.c_char * rows.size).from_address(rows.address)
        return torch.from_numpy(np.frombuffer(memory, np.float32).reshape(shape))

    monkeypatch.setattr(torch_runtime, "_on_stream", on_stream)
    monkeypatch.setattr(torch_runtime, "_tensor_at", tensor_at)
    return streams


def torch_runner(module: nn.Module, inputs: dict[str, tuple[int, ...]]) -> TorchRunner:
    runner = TorchRunner(TorchModel("m", module, len(inputs)), inputs, device="cpu")
    runner.device = "cuda:0"
    return runner


def test_pytorch_fills_the_callers_memory_on_its_stream(torch_device):
    runner = torch_runner(randomized(PublicTransformation(6, 4, 5, 20)), {"old": (6, 1, 1), "side": (4, 1, 1)})
    arguments = call()
    transformation(runner).apply_on_device(**arguments, stream=77)
    runner.device = "cpu"
    wanted = runner.run({name: arguments[name].array for name in ("old", "side")})
    np.testing.assert_allclose(arguments["out"].array, wanted, rtol=1e-6)
    assert torch_device == [(77, 0)]


def test_pytorch_embeds_images_where_they_are(torch_device):
    runner = torch_runner(randomized(TinyBackbone(7)), {"image": (3, 8, 6)})
    images, out = np.random.default_rng(0).standard_normal((5, 3, 8, 6), np.float32), np.zeros((5, 7), np.float32)
    embed = Embedder(runner, kind="backbone", model_version="v", precision="fp32", preprocessing=None)
    embed.embed_on_device(DlpackArray(images), DlpackArray(out))
    runner.device = "cpu"
    np.testing.assert_allclose(out, runner.run({"image": images}), rtol=1e-6)


def test_pytorch_widens_what_the_module_makes(torch_device):
    class Half(nn.Module):
        def forward(self, x):
            return x.half()

    rows, out = random_rows(4, 3), np.zeros((4, 3), np.float32)
    transformation(torch_runner(Half(), {"old": (3,)})).apply_on_device(DlpackArray(rows), None, DlpackArray(out))
    np.testing.assert_array_equal(out, rows.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("fail", [lambda x: x[:1], lambda x: x @ x], ids=["one row for all", "its own error"])
def test_a_failure_of_pytorch_is_no_traceback_and_leaves_the_result_alone(torch_device, fail):
    class SmallBatches(nn.Module):
        def forward(self, x):
            return x if len(x) <= 2 else fail(x)

    runner, out = torch_runner(SmallBatches(), {"old": (3,)}), np.full((4, 3), 7, np.float32)
    with pytest.raises(ArtifactError, match=r"torch .* cpu: does not run on a batch of 4 rows"):
        transformation(runner).apply_on_device(DlpackArray(random_rows(4, 3)), None, DlpackArray(out))
    assert (out == 7).all()


def test_the_default_stream_is_pytorchs_own(monkeypatch):
    """As an external stream its number, 1, would be taken for one of PyTorch's pool."""
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device_number: ("default", device_number))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: ("external", handle, device))
    assert torch_runtime._on_stream(torch, 1, 3) == ("default", 3)
    assert torch_runtime._on_stream(torch, 0x7F00, 3) == ("external", 0x7F00, 3)
