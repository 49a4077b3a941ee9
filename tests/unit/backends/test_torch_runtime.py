from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.programs import random_rows
from support.torch_models import PublicTransformation, TinyBackbone, exported, outputs, randomized, scripted, traced
from torch import Tensor, nn

from fct_infer.artifacts.torch_files import TorchModel, load_torch
from fct_infer.backends.runner import Interface
from fct_infer.backends.torch_runtime import TorchRunner
from fct_infer.errors import ArtifactError, UnsupportedError, UsageError

COLUMNS = {"old": (8, 1, 1), "side": (5, 1, 1)}
EXAMPLE = (torch.zeros(2, 8, 1, 1), torch.zeros(2, 5, 1, 1))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return randomized(PublicTransformation(8, 5, 6, 20))


@pytest.fixture(scope="module", params=["scripted", "traced", "pt2", "eager"])
def runner(request, module, tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "h.pt"
    model = {
        "scripted": lambda: load_torch(scripted(module, path)),
        "traced": lambda: load_torch(traced(module, path, *EXAMPLE)),
        "pt2": lambda: load_torch(exported(module, path, *EXAMPLE)),
        "eager": lambda: TorchModel("h", module, 2),
    }[request.param]()
    return TorchRunner(model, COLUMNS, device="cpu")


def batch(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"old": random_rows(rows, 8, seed), "side": random_rows(rows, 5, seed + 1)}


@pytest.mark.parametrize("rows", [1, 2, 7, 4096])
def test_any_batch_in_plain_rows_whatever_the_layout_inside(runner, module, rows):
    assert runner.interface == Interface({"old": (8,), "side": (5,)}, 6)
    found = runner.run(batch(rows))
    assert found.shape == (rows, 6) and found.dtype == np.float32 and found.flags.c_contiguous
    wanted = outputs(module, *(array[..., None, None] for array in batch(rows).values()))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_it_says_what_it_is(runner):
    assert (runner.backend, runner.device) == ("torch", "cpu")
    assert runner.runtime == f"torch {torch.__version__} cpu"


def test_many_threads_share_one_runner(runner):
    batches = [batch(50, 2 * seed) for seed in range(16)]
    expected = [runner.run(each) for each in batches]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(runner.run, batches), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_results_do_not_share_memory():
    runner = TorchRunner(TorchModel("Identity", nn.Identity(), 1), {"old": (3,)}, device="cpu")
    rows = random_rows(4, 3)
    found = runner.run({"old": rows})
    rows[:] = 0
    np.testing.assert_array_equal(found, random_rows(4, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_never_replaced_by_the_cpu(module, device):
    with pytest.raises(UnsupportedError, match=f"device {device}: PyTorch .* finds 0 devices"):
        TorchRunner(TorchModel("h", module, 2), COLUMNS, device=device)
    assert TorchRunner(TorchModel("h", module, 2), COLUMNS, device="auto").device == "cpu"


def test_devices_that_do_not_exist(module):
    with pytest.raises(UsageError, match="device 'meta' does not exist"):
        TorchRunner(TorchModel("h", module, 2), COLUMNS, device="meta")


def test_threads_are_set_and_bounded(module):
    before = torch.get_num_threads()
    try:
        TorchRunner(TorchModel("h", module, 2), COLUMNS, device="cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_an_image_model():
    module = randomized(TinyBackbone(7))
    runner = TorchRunner(TorchModel("b", module, 1), {"image": (3, 8, 6)}, device="cpu")
    assert runner.interface == Interface({"image": (3, 8, 6)}, 7)
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 6), np.float32)
    np.testing.assert_array_equal(runner.run({"image": images}), outputs(module, images))


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


class SmallBatches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 4:
            raise RuntimeError("too many rows at once")
        return x


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.Linear(4, 2), (5,), r"m: does not run on inputs of shape 5: .*cannot be multiplied"),
        (nn.Flatten(0), (5,), r"m: makes \(10,\) of 2 rows, wanted \(n, d\)"),
        (nn.Conv2d(3, 4, 1), (3, 6, 6), r"m: makes \(2, 4, 6, 6\) of 2 rows"),
        (Two(), (5,), "m: makes a tuple, wanted one tensor"),
        (nn.Bilinear(4, 4, 2), (4,), r"m: does not run on inputs of shape 4: .*missing 1 required"),
    ],
)
def test_what_makes_no_embeddings_is_refused(module, shape, message):
    name = "image" if len(shape) == 3 else "old"
    with pytest.raises(ArtifactError, match=message):
        TorchRunner(TorchModel("m", module, 1), {name: shape}, device="cpu")


def test_low_precision_results_are_widened():
    runner = TorchRunner(TorchModel("m", Half(), 1), {"old": (3,)}, device="cpu")
    np.testing.assert_array_equal(
        runner.run({"old": random_rows(4, 3)}), random_rows(4, 3).astype(np.float16).astype(np.float32)
    )


def test_a_failure_while_it_runs_is_no_traceback():
    runner = TorchRunner(TorchModel("m", SmallBatches(), 1), {"old": (3,)}, device="cpu")
    with pytest.raises(ArtifactError, match=r"torch .* cpu: does not run on a batch of 5 rows: too many rows"):
        runner.run({"old": random_rows(5, 3)})
