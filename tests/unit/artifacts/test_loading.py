from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from support.bundles import NOT_MEASURED, core_bundle, core_manifest
from support.malformed import JSON, places, put
from support.programs import examples, linear_map, plain_mlp, random_rows
from support.torch_models import PublicTransformation, scripted

from fct_infer.artifacts.bundle import write_bundle
from fct_infer.artifacts.loading import load_program
from fct_infer.artifacts.manifest import BundleFile
from fct_infer.artifacts.tensors import tensor_bytes
from fct_infer.backends.loading import load_transformation
from fct_infer.errors import ArtifactError, UsageError
from fct_infer.reference import apply_float64
from fct_infer.storage import write_bytes
from fct_infer.transformation import Program

PROGRAM = plain_mlp(7, 3, 5, hidden=(4,))


def bundle_with(path, source=PROGRAM, tensors=None, **changes):
    """A bundle that is whole and sealed, but whose manifest says something else."""

    def fill(folder):
        data = tensor_bytes(source, {}) if tensors is None else tensors
        written = write_bytes(folder / "transformation.safetensors", data)
        file = BundleFile("transformation.safetensors", "core", "fp32", written.size, written.sha256, NOT_MEASURED)
        return replace(core_manifest(source, file), **changes)

    write_bundle(path, fill)
    return path


@pytest.mark.parametrize("name", examples())
def test_a_bundle_gives_back_the_program_exactly(tmp_path, name):
    assert load_program(core_bundle(examples()[name], tmp_path / "h")).digest == examples()[name].digest


def test_load_transformation_is_ready_to_run(tmp_path):
    h = load_transformation(str(core_bundle(PROGRAM, tmp_path / "h")), precision="fp32", threads=1)
    old, side = random_rows(9, 7), random_rows(9, 3, 1)
    np.testing.assert_allclose(h(old, side), apply_float64(PROGRAM, old, side), rtol=1e-4, atol=1e-5)
    assert (h.backend, h.precision, h.threads) == ("core", "fp32", 1)


def test_torchscript_is_not_run_unless_trusted(tmp_path):
    path = scripted(PublicTransformation(4, 3, 2, 5).eval(), tmp_path / "h.pt")
    with pytest.raises(UsageError, match=r"h\.pt: holds code that runs when it is loaded; pass trust=True"):
        load_program(path)
    assert load_transformation(path, trust=True).new_dim == 2


@pytest.mark.parametrize("name", ["h", "h.onnx", "h.pt"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ArtifactError, match=f"{name}: no such file"):
        load_program(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "backbone", "program": None, "inputs": {"image": (3, 8, 8)}}, "holds a backbone model, wanted a"),
        ({"inputs": {"old": (7,)}}, "state different dimensions"),
        ({"inputs": {"old": (7, 1), "side": (3,)}}, "state different dimensions"),
        ({"output_dim": 6}, "state different dimensions"),
        ({"program": {}}, "malformed program"),
        ({"program": {**PROGRAM.structure(), "inputs": {"old": [], "side": 3}}}, "malformed program"),
        ({"program": {**PROGRAM.structure(), "steps": 3}}, "malformed program"),
        ({"program": {**PROGRAM.structure(), "output": "nothing"}}, "no step produces the output"),
        ({"program": linear_map(7, 5).structure()}, "malformed program"),
        (
            {"program": {**PROGRAM.structure(), "steps": PROGRAM.structure()["steps"][:2], "output": "layer.0"}},
            "not use",
        ),
        ({"tensors": tensor_bytes(linear_map(7, 5), {})}, "malformed program"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused(tmp_path, changes, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        load_program(bundle_with(tmp_path / "h", **changes))
    assert str(tmp_path) in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_program_with_any_other_value_anywhere_is_an_artifact_error_or_harmless(tmp_path_factory, data):
    structure = PROGRAM.structure()
    place = data.draw(st.sampled_from([place for place in places(structure) if place]))
    path = tmp_path_factory.mktemp("malformed") / "h"
    bundle_with(path, program=put(structure, place, data.draw(JSON)))
    try:
        assert isinstance(load_program(path), Program)
    except ArtifactError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    program = linear_map(4, 3)
    data = tensor_bytes(program, {})
    weight = program.steps[0].weight
    assert data.count(weight.tobytes()) == 1
    altered = weight.copy()
    altered[1, 2] = bad
    path = bundle_with(tmp_path / "h", program, tensors=data.replace(weight.tobytes(), altered.tobytes()))
    with pytest.raises(ArtifactError, match=r"transformation\.safetensors: step 0 .*finite"):
        load_program(path)


def test_widths_without_weights_are_bounded(tmp_path):
    steps = [{"op": "normalize", "input": "old", "output": "unit"}]
    structure = {"inputs": {"old": 10**9}, "steps": steps, "output": "unit"}
    data = save({"unused": np.zeros(1, np.float32)})
    with pytest.raises(ArtifactError, match="2000000000 wide"):
        load_program(bundle_with(tmp_path / "h", tensors=data, program=structure))


def test_a_bundle_is_loaded_without_torch_and_onnx(tmp_path):
    path = core_bundle(PROGRAM, tmp_path / "h")
    code = (
        "import sys; from fct_infer.artifacts.loading import load_program; "
        f"load_program({str(path)!r}); assert not {{'torch', 'onnx'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "package"), [("h.pt", "torch"), ("h.onnx", "onnx")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, package):
    scripted(PublicTransformation(4, 3, 2, 5), tmp_path / name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"{package} is not installed; run: pip install 'fct-infer\[export\]'"):
        load_program(tmp_path / name, trust=True)
