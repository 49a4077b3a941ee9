"""Engines from the real builder: TensorRT for RTX builds without a GPU, by the calls that TensorRT has.

Where the two differ, its module is put in TensorRT's place.
"""

from __future__ import annotations

import errno
import os
import time
from types import ModuleType
from typing import Any

import pytest
from support.bundles import core_manifest
from support.fake_tensorrt import FakeMemory
from support.faults import FailNth
from support.programs import linear_map
from support.tensorrt_models import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    TRANSFORMATION,
    backbone,
    one_node,
    quantized,
    require_tensorrt,
    transformation,
)

from fct_infer.artifacts.manifest import MANIFEST_NAME, BundleFile, Engine, read_manifest
from fct_infer.backends.tensorrt_log import log_of
from fct_infer.backends.tensorrt_runtime import TensorRTRunner, build_engine, engine_file_name
from fct_infer.errors import ArtifactError, UnsupportedError, UsageError
from fct_infer.storage import use_filesystem

ROWS = (1, 64, 1024)
SECONDS = 60


@pytest.fixture(scope="module")
def rtx():
    return require_tensorrt("tensorrt-rtx")


class Watched:
    """The module with a builder that remembers what was asked of it, under either module's name."""

    def __init__(self, rtx: ModuleType, name: str = "tensorrt_rtx", **changes: Any) -> None:
        self.network_flags: list[int] = []
        self.configs: list[Any] = []
        self.profiles: list[Any] = []
        watched = self

        class Builder(rtx.Builder):
            def create_network(self, flags: int) -> Any:
                watched.network_flags.append(flags)
                return super().create_network(flags)

            def create_builder_config(self) -> Any:
                watched.configs.append(super().create_builder_config())
                return watched.configs[-1]

            def create_optimization_profile(self) -> Any:
                watched.profiles.append(super().create_optimization_profile())
                return watched.profiles[-1]

        self.module = ModuleType(name)
        vars(self.module).update({**vars(rtx), "__name__": name, "Builder": Builder, **changes})


@pytest.mark.parametrize("model", [transformation, backbone])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8", "fp8"])
def test_every_precision_builds(rtx, model, precision, tmp_path):
    onnx_model = model({"fp16": FLOAT16, "bf16": BFLOAT16}.get(precision, FLOAT))
    if precision in ("int8", "fp8"):
        onnx_model = quantized(onnx_model, precision, tmp_path)
    begin = time.monotonic()
    built = build_engine(rtx, onnx_model, rows=ROWS, tf32=precision == "tf32")
    assert time.monotonic() - begin < SECONDS
    assert len(built.data) > 1000
    assert built.engine == Engine(rtx.__version__, "any", "8.0,8.6,8.9,12.0,12.1", ROWS)


def test_a_reduced_graph_gives_another_engine(rtx):
    full, half = (build_engine(rtx, transformation(kind), rows=ROWS, tf32=False).data for kind in (FLOAT, FLOAT16))
    assert full != half


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_set_either_way(rtx, tf32):
    watched = Watched(rtx)
    build_engine(watched.module, transformation(), rows=ROWS, tf32=tf32)
    assert watched.configs[0].get_flag(rtx.BuilderFlag.TF32) is tf32


@pytest.mark.parametrize(
    ("model", "row_shapes"),
    [(transformation, {"old": (24,), "side": (8,)}), (backbone, {"image": (3, 16, 16)})],
)
def test_every_input_has_the_profile(rtx, model, row_shapes):
    watched = Watched(rtx)
    build_engine(watched.module, model(), rows=ROWS, tf32=False)
    assert watched.configs[0].num_optimization_profiles == 1
    for name, shape in row_shapes.items():
        assert [tuple(each) for each in watched.profiles[0].get_shape(name)] == [(count, *shape) for count in ROWS]


@pytest.mark.parametrize("rows", [(1, 1, 1), (1, 1, 65536)])
def test_profiles_at_the_limits(rtx, rows):
    assert build_engine(rtx, transformation(), rows=rows, tf32=False).engine.rows == rows


@pytest.mark.parametrize("rows", [(0, 4, 8), (2, 4, 8), (1, 9, 8)])
def test_rows_that_are_no_profile(rtx, rows):
    with pytest.raises(UsageError, match="wanted 1, the typical and the most rows"):
        build_engine(rtx, transformation(), rows=rows, tf32=False)


@pytest.mark.parametrize(("name", "domain"), [("strange", "somebodys.ops"), ("Det", "")])
def test_a_node_that_tensorrt_lacks_is_named(rtx, name, domain):
    with pytest.raises(ArtifactError, match=rf"cannot read this ONNX model: node 0 'the culprit' \({name}\): \w+"):
        build_engine(rtx, one_node(name, "the culprit", domain), rows=ROWS, tf32=False)


@pytest.mark.parametrize("data", [b"", b"not a model", transformation()[:500]], ids=["empty", "text", "truncated"])
def test_what_is_no_onnx_file(rtx, data):
    with pytest.raises(ArtifactError, match=r"cannot (read|build) this (ONNX )?model"):
        build_engine(rtx, data, rows=ROWS, tf32=False)


def test_an_input_that_is_not_float32(rtx):
    with pytest.raises(ArtifactError, match=r"input 'x' is DataType.HALF .*wanted float32"):
        build_engine(rtx, one_node("Relu", "r", compute=FLOAT16), rows=ROWS, tf32=False)


def test_an_input_with_a_fixed_batch(rtx):
    with pytest.raises(ArtifactError, match=r"input 'x' is .*\(2, 4, 4\), wanted float32 with a dynamic first axis"):
        build_engine(rtx, one_node("Relu", "r", batch=2), rows=ROWS, tf32=False)


def test_a_failed_build_tells_what_tensorrt_said(rtx):
    # Turing has no float32 products in TensorRT for RTX.
    with pytest.raises(ArtifactError, match=r"cannot build this model: .*Turing"):
        build_engine(rtx, transformation(), rows=ROWS, tf32=False, compute_capabilities=("7.5",))


def test_reasons_of_one_failure_do_not_reach_the_next(rtx):
    with pytest.raises(ArtifactError, match="Turing"):
        build_engine(rtx, transformation(), rows=ROWS, tf32=False, compute_capabilities=("7.5",))
    with pytest.raises(ArtifactError) as caught:
        build_engine(rtx, one_node("Det", "d"), rows=ROWS, tf32=False)
    assert "Turing" not in str(caught.value)


def test_one_logger_serves_the_process(rtx):
    # TensorRT says so, and ignores others, where it has had one before.
    assert log_of(rtx).logger is log_of(Watched(rtx).module).logger


def test_compute_capabilities_are_what_was_named(rtx):
    watched = Watched(rtx)
    built = build_engine(watched.module, transformation(), rows=ROWS, tf32=False, compute_capabilities=("8.9", "12.0"))
    assert built.engine.compute_capability == "8.9,12.0"
    config, known = watched.configs[0], rtx.ComputeCapability
    named = [config.get_compute_capability(place) for place in range(config.num_compute_capabilities)]
    assert named == [known.SM89, known.SM120]


def test_a_compute_capability_it_does_not_know(rtx):
    with pytest.raises(UnsupportedError, match=r"builds for 7\.5, 8\.0, .*12\.1, not for 9\.0"):
        build_engine(rtx, transformation(), rows=ROWS, tf32=False, compute_capabilities=("8.9", "9.0"))


def test_networks_are_strongly_typed_where_that_is_a_choice(rtx):
    newer = Watched(rtx, NetworkDefinitionCreationFlag=type("NetworkDefinitionCreationFlag", (), {}))
    older = Watched(rtx)
    for watched in (newer, older):
        build_engine(watched.module, transformation(FLOAT16), rows=ROWS, tf32=False)
    assert newer.network_flags == [0]
    assert older.network_flags == [1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)]


def test_the_real_loader_refuses_what_is_no_engine(rtx):
    with pytest.raises(ArtifactError, match=r"tensorrt-rtx cannot load this engine; here is 1\..*Serialization"):
        TensorRTRunner(rtx, b"\0" * 4096, TRANSFORMATION, memory=FakeMemory())


# What follows differs in TensorRT: it builds for a device, and measures on it.


@pytest.fixture
def tensorrt(rtx):
    return Watched(rtx, "tensorrt").module


def build_on_device(tensorrt: ModuleType, **options: Any) -> Any:
    return build_engine(tensorrt, transformation(), rows=ROWS, tf32=False, memory=FakeMemory(), **options)


def test_tensorrt_builds_for_its_device(tensorrt):
    assert build_on_device(tensorrt).engine == Engine(tensorrt.__version__, "NVIDIA H200", "9.0", ROWS)


def test_tensorrt_takes_no_compute_capabilities(tensorrt):
    with pytest.raises(UsageError, match="TensorRT builds for the device it runs on"):
        build_on_device(tensorrt, compute_capabilities=("8.9",))


@pytest.fixture
def attached(rtx, monkeypatch):
    """The timing caches TensorRT was given, in order; ``refuses`` names the call that refuses all but empty ones."""

    class Attached(list):
        refuses = ""

    attached, create, attach = Attached(), rtx.IBuilderConfig.create_timing_cache, rtx.IBuilderConfig.set_timing_cache

    def create_timing_cache(config: Any, data: bytes) -> Any:
        attached.append(data)
        return None if data and attached.refuses == "create" else create(config, data)

    def set_timing_cache(config: Any, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return False if attached[-1] and attached.refuses == "set" else attach(config, cache, ignore_mismatch)

    monkeypatch.setattr(rtx.IBuilderConfig, "create_timing_cache", create_timing_cache)
    monkeypatch.setattr(rtx.IBuilderConfig, "set_timing_cache", set_timing_cache)
    return attached


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestTimingCache:
    def test_is_kept_and_used_again(self, tensorrt, attached, tmp_path):
        path = tmp_path / "deep" / "timing.cache"
        build_on_device(tensorrt, timing_cache=path)
        kept = path.read_bytes()
        assert attached == [b""] and kept
        build_on_device(tensorrt, timing_cache=path)
        assert attached == [b"", kept]

    @pytest.mark.parametrize("refuses", ["", "create", "set"])
    @pytest.mark.parametrize("content", [b"", b"garbage" * 50, os.urandom(4096)], ids=["empty", "text", "noise"])
    def test_damaged_or_foreign_fails_no_build(self, tensorrt, attached, tmp_path, refuses, content):
        path = tmp_path / "timing.cache"
        path.write_bytes(content)
        attached.refuses = refuses
        assert build_on_device(tensorrt, timing_cache=path).data
        assert attached[0] == content and attached[-1] == (b"" if refuses else content)
        assert path.read_bytes() != content

    def test_a_folder_in_its_place_fails_no_build(self, tensorrt, attached, tmp_path):
        assert build_on_device(tensorrt, timing_cache=tmp_path).data
        assert attached == [b""]

    def test_a_full_disk_fails_no_build(self, tensorrt, attached, tmp_path):
        with use_filesystem(FailNth("write", 0, errno.ENOSPC)):
            assert build_on_device(tensorrt, timing_cache=tmp_path / "timing.cache").data
        assert not list(tmp_path.iterdir())

    def test_tensorrt_for_rtx_measures_nothing(self, rtx, attached, tmp_path):
        build_engine(rtx, transformation(), rows=ROWS, tf32=False, timing_cache=tmp_path / "timing.cache")
        assert attached == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "gpu", "name"),
    [
        ("tensorrt", "NVIDIA H200", "model.h200.fp16.engine"),
        ("tensorrt", "NVIDIA A100-SXM4-80GB", "model.a100-sxm4-80gb.fp16.engine"),
        ("tensorrt", "Tesla T4", "model.tesla-t4.fp16.engine"),
        ("tensorrt", "NVIDIA RTX PRO 6000 / Blackwell (Server)", "model.rtx-pro-6000-blackwell-server.fp16.engine"),
        ("tensorrt", "??", "model.gpu.fp16.engine"),
        ("tensorrt", "x" * 300, f"model.{'x' * 64}.fp16.engine"),
        ("tensorrt-rtx", "any", "model.rtx.fp16.engine"),
    ],
)
def test_file_names_suit_the_manifest(target, gpu, name, tmp_path):
    engine = Engine("10.3.0", gpu, "9.0", ROWS)
    assert engine_file_name(target, "fp16", engine) == name
    file = BundleFile(name, target, "fp16", 1, "0" * 64, parity=None, engine=engine)
    (tmp_path / MANIFEST_NAME).write_bytes(core_manifest(linear_map(3, 2), file).to_bytes())
    assert read_manifest(tmp_path).files == (file,)
