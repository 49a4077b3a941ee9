from __future__ import annotations

import pytest

from fct_infer.backends.device import cuda_index
from fct_infer.errors import UsageError


@pytest.mark.parametrize(("device", "index"), [("cpu", None), ("cuda", 0), ("cuda:0", 0), ("cuda:7", 7)])
def test_a_device_has_one_name(device, index):
    assert cuda_index(device) == index


@pytest.mark.parametrize(
    "device", ["", "auto", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:1 ", "cuda:0:1", "cuda:1234", "cpu:0"]
)
def test_other_names_do_not_exist(device):
    with pytest.raises(UsageError, match="does not exist; there is auto, cpu, cuda, cuda:0, cuda:1"):
        cuda_index(device)


def test_other_runtimes_take_one_device():
    with pytest.raises(UsageError, match="'cuda:0,cuda:1': several devices at once are for the core only"):
        cuda_index("cuda:0,cuda:1")
