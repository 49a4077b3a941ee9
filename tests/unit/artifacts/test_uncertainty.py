"""The layer that tells an uncertainty, read back from files of any kind."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.bundles import NOT_MEASURED, core_bundle, core_manifest
from support.programs import linear_map

from fct_infer.artifacts.bundle import open_bundle, write_bundle
from fct_infer.artifacts.manifest import BundleFile
from fct_infer.artifacts.uncertainty import TARGET, read_uncertainty_program, uncertainty_of
from fct_infer.errors import ArtifactError
from fct_infer.storage import write_bytes

WEIGHT, BIAS = np.full((1, 6), 0.5, np.float32), np.ones(1, np.float32)


def write(path, **tensors):
    save_file({f"log_variance.{name}": tensor for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": WEIGHT}, "holds log_variance.weight, wanted"),
        ({"weight": WEIGHT, "bias": BIAS, "more": BIAS}, "holds log_variance.bias, log_variance.more"),
        ({"weight": np.ones((2, 6), np.float32), "bias": np.ones(2, np.float32)}, r"of shape \(2, 6\), wanted"),
        ({"weight": np.ones(6, np.float32), "bias": BIAS}, "a.safetensors: "),
        ({"weight": np.full((1, 6), np.nan, np.float32), "bias": BIAS}, "a.safetensors: "),
        ({"weight": WEIGHT.astype(np.float64), "bias": BIAS}, "is float64, wanted float32"),
    ],
)
def test_what_is_no_such_layer_is_refused(tmp_path, tensors, words):
    with pytest.raises(ArtifactError, match=words):
        read_uncertainty_program(write(tmp_path / "a.safetensors", **tensors))


def test_a_bundle_whose_layer_reads_other_rows_is_refused(tmp_path):
    assert uncertainty_of(open_bundle(core_bundle(linear_map(5, 6), tmp_path / "without"))) is None
    data = write(tmp_path / "a.safetensors", weight=WEIGHT, bias=BIAS).read_bytes()
    for new_dim in (6, 7):

        def fill(folder, new_dim=new_dim):
            written = write_bytes(folder / "u.safetensors", data)
            file = BundleFile("u.safetensors", TARGET, "fp32", written.size, written.sha256, NOT_MEASURED)
            return core_manifest(linear_map(5, new_dim), file)

        write_bundle(tmp_path / str(new_dim), fill)
    assert uncertainty_of(open_bundle(tmp_path / "6")).dims == {"old": 6}
    with pytest.raises(ArtifactError, match="reads rows 6 wide, the transformation makes 7"):
        uncertainty_of(open_bundle(tmp_path / "7"))
