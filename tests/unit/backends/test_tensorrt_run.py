from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.fake_tensorrt import VERSION, FakeMemory, expected, fake_engine, fake_tensorrt

from fct_infer.artifacts.manifest import Engine
from fct_infer.backends.runner import Interface
from fct_infer.backends.tensorrt_runtime import TensorRTRunner, import_tensorrt
from fct_infer.errors import ArtifactError, MissingExtraError, ResourceError, UnsupportedError, UsageError

TWO_INPUTS = Interface({"old": (6,), "side": (3,)}, 5)
IMAGE = Interface({"image": (3, 4, 4)}, 5)
MOST = 16


class Machine:
    """A fake device with a fake TensorRT on it."""

    def __init__(self) -> None:
        self.memory = FakeMemory()
        self.trt = fake_tensorrt(self.memory)

    def runner(self, interface: Interface = TWO_INPUTS, data: bytes | None = None, **options) -> TensorRTRunner:
        data = data or fake_engine(interface.inputs, interface.output_dim, (1, 4, MOST))
        return TensorRTRunner(self.trt, data, interface, memory=self.memory, **options)

    def assert_clean(self) -> None:
        gc.collect()
        assert not self.memory.live and not self.memory.streams


@pytest.fixture
def machine():
    return Machine()


def batch_of(rows: int, interface: Interface = TWO_INPUTS, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-9, 10, (rows, *shape)).astype(np.float32) for name, shape in interface.inputs.items()}


def assert_runs(runner: TensorRTRunner, rows: int, seed: int = 0) -> None:
    batch = batch_of(rows, runner.interface, seed)
    result = runner.run(batch)
    assert result.dtype == np.float32 and result.flags.c_contiguous and result.flags.owndata
    np.testing.assert_array_equal(result, expected(batch, runner.interface.output_dim))


@pytest.mark.parametrize("interface", [TWO_INPUTS, IMAGE], ids=["transformation", "backbone"])
@pytest.mark.parametrize("rows", [1, 2, 7, MOST, MOST + 1, 3 * MOST + 5])
def test_batches_of_any_size(machine, interface, rows):
    assert_runs(machine.runner(interface), rows)


def test_says_what_it_is(machine):
    runner = machine.runner()
    assert (runner.backend, runner.device) == ("tensorrt", "cuda:0")
    assert runner.runtime == f"tensorrt {VERSION} NVIDIA H200"


def test_calls_larger_than_the_profile_are_cut(machine):
    executed = []
    machine.trt.while_executing = lambda: executed.append(1)
    assert_runs(machine.runner(), 3 * MOST + 5)
    assert len(executed) == 4


def test_buffers_are_kept_and_grow_only(machine):
    runner = machine.runner()
    for rows in (2, 1, 2, 2):
        assert_runs(runner, rows)
    assert machine.memory.calls["allocate"] == 3  # old, side, embedding
    assert_runs(runner, 7)
    assert machine.memory.calls["allocate"] == 6 and machine.memory.calls["free"] == 3
    assert len(machine.memory.live) == 3


def test_gives_everything_back(machine):
    runner = machine.runner()
    assert_runs(runner, 7)
    assert machine.memory.live and machine.memory.streams
    del runner
    machine.assert_clean()


def test_callers_at_once_compute_at_once(machine):
    both = threading.Barrier(2, timeout=10)
    machine.trt.while_executing = both.wait
    runner = machine.runner(contexts=2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(assert_runs, [runner] * 2, [7, 7], range(2)))
    assert len(machine.trt.contexts) == 2
    machine.trt.while_executing = lambda: None
    del runner
    machine.assert_clean()


@pytest.mark.parametrize("contexts", [1, 3])
def test_more_callers_than_contexts_wait(machine, contexts):
    runner = machine.runner(contexts=contexts)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(assert_runs, [runner] * 80, [1 + seed % 40 for seed in range(80)], range(80)))
    finally:
        sys.setswitchinterval(interval)
    assert len(machine.trt.contexts) <= contexts
    del runner
    machine.assert_clean()


def test_one_caller_makes_one_context(machine):
    runner = machine.runner(contexts=4)
    for _ in range(3):
        assert_runs(runner, 3)
    assert len(machine.trt.contexts) == 1


@pytest.mark.parametrize("call", ["allocate", "copy_in", "copy_out", "synchronize"])
def test_a_failing_device_is_a_resource_error_and_leaks_nothing(machine, call):
    runner = machine.runner(contexts=1)
    machine.memory.fail(call)
    with pytest.raises(ResourceError, match=f"cuda:0: cannot {call}"):
        runner.run(batch_of(7))
    machine.assert_clean()
    assert_runs(runner, 7)
    del runner
    machine.assert_clean()


def test_no_room_to_grow_leaks_nothing(machine):
    runner = machine.runner()
    assert_runs(runner, 2)
    machine.memory.fail("allocate")
    with pytest.raises(ResourceError, match="allocate"):
        runner.run(batch_of(7))
    machine.assert_clean()
    assert_runs(runner, 7)


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_tensorrt_refuses_is_a_resource_error_with_its_reason(machine, call):
    runner = machine.runner(contexts=1)
    machine.trt.fail(call, "Error Code 1: Cuda Runtime (out of memory)")
    with pytest.raises(ResourceError, match=r"TensorRT cannot .*: Error Code 1: Cuda Runtime \(out of memory\)"):
        runner.run(batch_of(7))
    machine.assert_clean()
    assert_runs(runner, 7)


def test_a_device_that_fails_for_good_raises_the_first_error(machine):
    runner = machine.runner()
    machine.trt.fail("execute_async_v3", "the device fell off the bus")
    for call in ("synchronize", "free", "destroy_stream"):
        machine.memory.fail(call, times=100)
    with pytest.raises(ResourceError, match="fell off the bus"):
        runner.run(batch_of(7))


@pytest.mark.parametrize("stage", ["create_execution_context", "create_stream"])
def test_a_second_context_that_cannot_be_had(machine, stage):
    both = threading.Barrier(2, timeout=10)
    runner = machine.runner(contexts=2)

    def fail_second() -> None:
        machine.trt.while_executing = lambda: None
        both.wait()  # the first is busy: the second needs a context of its own
        both.wait()

    machine.trt.while_executing = fail_second
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(assert_runs, runner, 3)
        both.wait()
        machine.memory.fail(stage) if stage == "create_stream" else machine.trt.fail(stage, "no memory left")
        with pytest.raises(ResourceError, match=r"told to fail|makes no execution context: no memory left"):
            runner.run(batch_of(3))
        both.wait()
        first.result()
    assert_runs(runner, 3)
    del runner
    machine.assert_clean()


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("The engine plan file is generated on an incompatible device, expecting compute 9.0 got 8.6", ArtifactError),
        (
            "The engine plan file is not compatible with this version of TensorRT, expecting 10.3 got 10.9",
            ArtifactError,
        ),
        ("Error Code 2: OutOfMemory (Requested size was 1234 bytes.)", ResourceError),
    ],
)
def test_an_engine_that_cannot_be_loaded_says_why(machine, reason, error):
    machine.trt.fail("deserialize_cuda_engine", reason)
    made = Engine("10.9.0", "NVIDIA A10", "8.6", (1, 4, MOST))
    with pytest.raises(error) as caught:
        machine.runner(engine=made)
    assert reason in str(caught.value)
    assert f"built by 10.9.0 for NVIDIA A10 (8.6), here is {VERSION} on NVIDIA H200 (9.0)" in str(caught.value)
    assert "a warning" not in str(caught.value)
    machine.assert_clean()


def test_damaged_engine(machine):
    with pytest.raises(ArtifactError, match=r"cannot load this engine; here is 10\.3\.0 .*magicTag"):
        machine.runner(data=b"\0" * 100)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (fake_engine({"old": (6,), "side": (4,)}, 5, (1, 4, MOST)), r"'side': \(4,\)"),
        (fake_engine({"old": (6,)}, 5, (1, 4, MOST)), r"maps {'old': \(6,\)}"),
        (fake_engine(TWO_INPUTS.inputs, 7, (1, 4, MOST)), r"'embedding': \(7,\).*wanted .*one output \(5,\)"),
        (fake_engine(TWO_INPUTS.inputs, 5, (2, 4, MOST)), "no fewer than 2 rows"),
        (fake_engine(TWO_INPUTS.inputs, 5, (1, 4, MOST))[:-1] + b', "dtype": 1}', "wanted float32"),
    ],
    ids=["width", "missing", "output", "fewest", "dtype"],
)
def test_an_engine_of_another_model_is_refused(machine, data, message):
    with pytest.raises(ArtifactError, match=message):
        machine.runner(data=data)
    machine.assert_clean()


def test_an_output_that_shows_its_width_late(machine):
    late = b', "declared_dim": -1}'
    assert_runs(machine.runner(data=fake_engine(TWO_INPUTS.inputs, 5, (1, 4, MOST))[:-1] + late), 7)
    runner = machine.runner(data=fake_engine(TWO_INPUTS.inputs, 9, (1, 4, MOST))[:-1] + late)
    with pytest.raises(ArtifactError, match=r"makes 'embedding' \(7, 9\), wanted \(7, 5\)"):
        runner.run(batch_of(7))


def test_import_names_the_extra(monkeypatch):
    for target, module, extra in (("tensorrt", "tensorrt", "gpu"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"{target} is not installed.*\[{extra}\]"):
            import_tensorrt(target)
    with pytest.raises(UsageError, match="no TensorRT is called 'tensor'"):
        import_tensorrt("tensor")


@pytest.mark.parametrize("version", ["10.3.0", "11.0.0.1"])
def test_import_takes_10_and_11(monkeypatch, machine, version):
    machine.trt.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", machine.trt)
    assert import_tensorrt("tensorrt") is machine.trt


def test_import_refuses_what_is_too_old(monkeypatch, machine):
    machine.trt.__version__ = "8.6.1"
    monkeypatch.setitem(sys.modules, "tensorrt", machine.trt)
    with pytest.raises(UnsupportedError, match=r"TensorRT 8\.6\.1 is installed, wanted 10"):
        import_tensorrt("tensorrt")
