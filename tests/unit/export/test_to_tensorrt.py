"""With the real TensorRT for RTX, which builds engines where no device is."""

from __future__ import annotations

import pytest
from support.outputs import rows_for
from support.programs import plain_mlp
from support.tensorrt_models import require_tensorrt

from fct_infer import load_transformation
from fct_infer.artifacts.bundle import open_bundle
from fct_infer.errors import GateError, MissingExtraError, UnsupportedError, UsageError
from fct_infer.export import Options, export_transformation

PROGRAM = plain_mlp(16, 8, 24, hidden=(32,))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Timings measured before must not decide what is tested, nor these tests leave any."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fct_infer"


@pytest.fixture(scope="module")
def trt():
    return require_tensorrt("tensorrt-rtx")


@pytest.fixture
def no_device():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("here engines can be run")


def options(*precisions, **changes):
    return Options(("tensorrt-rtx",), precisions, rows_for(PROGRAM.dims, 64), engine_rows=(8, 64), **changes)


def test_an_engine_that_cannot_be_run_is_not_published(tmp_path, trt, no_device):
    with pytest.raises(GateError, match=r"target tensorrt-rtx, fp32: cannot be run here, so it is not proven: .*"
                                        r"--allow-unproven publishes it"):  # fmt: skip
        export_transformation(PROGRAM, tmp_path / "h", options("fp32"))
    assert not (tmp_path / "h").exists() and not (tmp_path / "h.partial").exists()


def test_it_is_published_unproven_if_that_is_asked_for(tmp_path, cache, trt, no_device):
    precisions = ("fp32", "tf32", "fp16", "bf16", "int8")
    report = export_transformation(PROGRAM, tmp_path / "h", options(*precisions, allow_unproven=True))
    files = open_bundle(tmp_path / "h").manifest.files
    assert files == report.manifest.files
    assert [file.precision for file in files] == [*precisions]
    assert len({file.name for file in files}) == len(files) and all(file.name.endswith(".engine") for file in files)
    for file in files:
        assert file.parity is None
        assert file.engine.version == trt.__version__
        assert file.engine.rows == (1, 8, 64)
        assert file.engine.gpu and file.engine.compute_capability
    assert report.to_json()["manifest"]["files"][files[0].name]["engine"]["version"] == trt.__version__
    sizes = {file.precision: file.size for file in files}
    assert sizes["fp16"] < sizes["fp32"]

    with pytest.raises(UsageError, match=r"holds code that runs when it is loaded; pass trust=True"):
        load_transformation(tmp_path / "h", backend="tensorrt-rtx")
    with pytest.raises(UnsupportedError, match=r"(?i)driver|cuda"):
        load_transformation(tmp_path / "h", backend="tensorrt-rtx", trust=True)
    with pytest.raises(UnsupportedError, match="device cpu: TensorRT runs on CUDA devices only"):
        load_transformation(tmp_path / "h", backend="tensorrt-rtx", device="cpu", trust=True)


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"tensorrt is not installed; run: pip install 'fct-infer\[gpu\]'"):
        export_transformation(PROGRAM, tmp_path / "h", Options(("tensorrt",)))
    assert not (tmp_path / "h").exists()
