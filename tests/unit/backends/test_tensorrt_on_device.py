"""TensorRT on arrays that are on the device: a fake device whose streams are as late as they may be."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from support.fake_tensorrt import FakeMemory, expected, fake_engine, fake_tensorrt

from fct_infer.backends.embedder import Embedder
from fct_infer.backends.runner import Interface
from fct_infer.backends.runner_transformation import RunnerTransformation
from fct_infer.backends.tensorrt_runtime import TensorRTRunner
from fct_infer.errors import ArrayError, ArtifactError, ResourceError

H = Interface({"old": (6,), "side": (3,)}, 5)
IMAGE = Interface({"image": (3, 4, 4)}, 5)
MOST = 150


class OnDevice:
    """An array on the fake device, under the CUDA array interface."""

    def __init__(self, memory: FakeMemory, array: np.ndarray, offset: int = 0) -> None:
        self.memory, self.array = memory, array
        with memory.current():
            self.base = memory.allocate(array.nbytes + offset)
        self.address = self.base + offset
        memory.bytes_at(self.address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def numpy(self) -> np.ndarray:
        return self.memory.bytes_at(self.address, self.array.nbytes).view(np.float32).reshape(self.array.shape).copy()


class Machine:
    """A fake device with a fake TensorRT, and a caller's stream."""

    def __init__(self) -> None:
        self.memory = FakeMemory()
        self.trt = fake_tensorrt(self.memory)
        with self.memory.current():
            self.stream = self.memory.create_stream()

    def runner(self, interface: Interface = H, most: int = MOST, **options) -> TensorRTRunner:
        data = fake_engine(interface.inputs, interface.output_dim, (1, 4, most))
        return TensorRTRunner(self.trt, data, interface, memory=self.memory, **options)

    def call(self, rows: int, interface: Interface = H, seed: int = 0) -> tuple[list[OnDevice], OnDevice, np.ndarray]:
        """Inputs and an output on the device, and what the output must become."""
        rng = np.random.default_rng(seed)
        batch = {
            name: rng.integers(-9, 10, (rows, *shape)).astype(np.float32) for name, shape in interface.inputs.items()
        }
        out = OnDevice(self.memory, np.full((rows, interface.output_dim), 7, np.float32))
        return [OnDevice(self.memory, each) for each in batch.values()], out, expected(batch, interface.output_dim)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def transformation(runner: TensorRTRunner) -> RunnerTransformation:
    return RunnerTransformation(runner, digest="d", precision="fp32")


@pytest.mark.parametrize("rows", [1, 7, MOST, MOST + 1, 3 * MOST + 5])
def test_rows_of_any_number_in_the_callers_memory(machine, rows):
    h = transformation(machine.runner())
    inputs, out, wanted = machine.call(rows)
    allocated = machine.memory.calls["allocate"]
    h.apply_on_device(*inputs, out, stream=machine.stream)
    assert (out.numpy() == 7).all(), "the call has waited"
    machine.memory.synchronize(machine.stream)
    np.testing.assert_array_equal(out.numpy(), wanted)
    assert machine.memory.calls["allocate"] == allocated
    assert machine.memory.calls["copy_in"] == machine.memory.calls["copy_out"] == 0


def test_pieces_begin_where_tensorrt_takes_them(machine):
    """Rows of 24, 12 and 20 bytes: only every 64th begins at a multiple of 256."""
    executed = []
    machine.trt.while_executing = lambda: executed.append(1)
    inputs, out, _ = machine.call(300)
    transformation(machine.runner()).apply_on_device(*inputs, out, stream=machine.stream)
    machine.memory.synchronize(machine.stream)
    assert len(executed) == 3  # of 128, 128 and 44 rows


def test_rows_that_cannot_be_cut_are_refused(machine):
    h = transformation(machine.runner(most=40))
    inputs, out, _ = machine.call(41)
    with pytest.raises(ArrayError, match="old has 41 rows, wanted at most 40, the most rows of this engine"):
        h.apply_on_device(*inputs, out, stream=machine.stream)
    inputs, out, wanted = machine.call(40)
    h.apply_on_device(*inputs, out, stream=machine.stream)
    machine.memory.synchronize(machine.stream)
    np.testing.assert_array_equal(out.numpy(), wanted)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_address_that_tensorrt_does_not_take_is_named(machine, place):
    inputs, out, _ = machine.call(9)
    arrays = [*inputs, out]
    arrays[place] = OnDevice(machine.memory, arrays[place].array, offset=64)
    with pytest.raises(ArrayError, match=f"^{('old', 'side', 'out')[place]} is at an address .* 256 bytes"):
        transformation(machine.runner()).apply_on_device(*arrays, stream=machine.stream)
    assert (out.numpy() == 7).all()


def test_images(machine):
    embed = Embedder(
        machine.runner(IMAGE), kind="backbone", model_version="v", precision="fp32", preprocessing=None
    )  # fmt: skip
    inputs, out, wanted = machine.call(2 * MOST, IMAGE)
    embed.embed_on_device(*inputs, out, machine.stream)
    machine.memory.synchronize(machine.stream)
    np.testing.assert_array_equal(out.numpy(), wanted)


def test_the_work_comes_after_what_the_stream_was_given_before(machine):
    inputs, out, wanted = machine.call(9)
    late = machine.memory.bytes_at(inputs[0].address, inputs[0].array.nbytes)
    values = late.copy()
    late[:] = 0xFF
    machine.memory.enqueue(machine.stream, lambda: late.__setitem__(slice(None), values), {inputs[0].address})
    transformation(machine.runner()).apply_on_device(*inputs, out, stream=machine.stream)
    machine.memory.synchronize(machine.stream)
    np.testing.assert_array_equal(out.numpy(), wanted)


def test_calls_on_two_streams_share_one_context_in_order(machine):
    """The second is waited for first; the first, in whose execution context it works, must have gone before."""
    h = transformation(machine.runner(contexts=1))
    with machine.memory.current():
        other = machine.memory.create_stream()
    calls = [machine.call(9 + seed, seed=seed) for seed in range(2)]
    for (inputs, out, _), stream in zip(calls, (machine.stream, other), strict=True):
        h.apply_on_device(*inputs, out, stream=stream)
    machine.memory.synchronize(other)
    for _, out, wanted in calls:
        np.testing.assert_array_equal(out.numpy(), wanted)


def test_calls_with_numpy_arrays_in_between(machine):
    runner = machine.runner(contexts=1)
    h = transformation(runner)
    first, second = machine.call(9), machine.call(20, seed=1)
    batch = {name: each.array for name, each in zip(H.inputs, first[0], strict=True)}
    for inputs, out, wanted in (first, second):
        np.testing.assert_array_equal(runner.run(batch), first[2])
        h.apply_on_device(*inputs, out, stream=machine.stream)
        np.testing.assert_array_equal(runner.run(batch), first[2])
        machine.memory.synchronize(machine.stream)
        np.testing.assert_array_equal(out.numpy(), wanted)


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_tensorrt_refuses_is_a_resource_error_with_its_reason(machine, call):
    h = transformation(machine.runner(contexts=1))
    inputs, out, wanted = machine.call(9)
    machine.trt.fail(call, "Error Code 1: Cuda Runtime (out of memory)")
    with pytest.raises(ResourceError, match=r"TensorRT cannot .*: Error Code 1: Cuda Runtime \(out of memory\)"):
        h.apply_on_device(*inputs, out, stream=machine.stream)
    h.apply_on_device(*inputs, out, stream=machine.stream)
    machine.memory.synchronize(machine.stream)
    np.testing.assert_array_equal(out.numpy(), wanted)


def test_a_failing_device_is_a_resource_error_and_leaks_nothing(machine):
    runner = machine.runner(contexts=1)
    inputs, out, _ = machine.call(9)
    mine = {each.base for each in (*inputs, out)}
    machine.memory.fail("follow")
    with pytest.raises(ResourceError, match="cannot follow"):
        transformation(runner).apply_on_device(*inputs, out, stream=machine.stream)
    assert set(machine.memory.live) == mine and set(machine.memory.streams) == {machine.stream}


def test_a_runner_that_goes_waits_for_the_work_it_has_left(machine):
    inputs, out, wanted = machine.call(9)
    runner = machine.runner()
    h = transformation(runner)
    h.apply_on_device(*inputs, out, stream=machine.stream)
    del h, runner
    gc.collect()
    np.testing.assert_array_equal(out.numpy(), wanted)
    machine.memory.synchronize(machine.stream)
    assert set(machine.memory.streams) == {machine.stream}


def test_an_output_of_another_width_is_refused(machine):
    data = fake_engine(H.inputs, 9, (1, 4, MOST))[:-1] + b', "declared_dim": -1}'
    runner = TensorRTRunner(machine.trt, data, H, memory=machine.memory)
    inputs, out, _ = machine.call(7)
    with pytest.raises(ArtifactError, match=r"makes 'embedding' \(7, 9\), wanted \(7, 5\)"):
        transformation(runner).apply_on_device(*inputs, out, stream=machine.stream)
