"""The same transformation once more, from what can be sent to another machine."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from support.bundles import core_bundle
from support.programs import plain_mlp, random_rows

from fct_infer import Transformation, load_transformation
from fct_infer.backends.options import RuntimeOptions
from fct_infer.backends.runner_transformation import RunnerTransformation
from fct_infer.backends.spec import TransformationSpec
from fct_infer.errors import ArtifactError, UnsupportedError
from fct_infer.export import Options, export_transformation

PROGRAM = plain_mlp(24, 8, 32, hidden=(40,))
ROWS = random_rows(50, 24), random_rows(50, 8, seed=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "h"
    export_transformation(PROGRAM, folder, Options(("core", "onnx")))
    return folder


def again(h: Transformation) -> tuple[TransformationSpec, Transformation]:
    spec = pickle.loads(pickle.dumps(TransformationSpec.of(h)))
    return spec, spec.open()


def assert_same(h: Transformation, other: Transformation) -> None:
    for name in ("digest", "precision", "backend", "device", "old_model", "new_model", "source", "threads"):
        assert getattr(h, name) == getattr(other, name), name
    np.testing.assert_array_equal(h(*ROWS), other(*ROWS))


@pytest.mark.parametrize("normalize", ["no", "loaded", "afterwards"])
@pytest.mark.parametrize("backend", ["core", "onnxruntime"])
def test_of_a_file_only_its_name_travels(bundle, backend, normalize):
    h = load_transformation(bundle, "fp32", 1, backend, device="cpu", normalize=normalize == "loaded")
    h = h.normalized() if normalize == "afterwards" else h
    spec, other = again(h)
    assert spec.program is None
    assert len(pickle.dumps(spec)) < 2000
    assert_same(h, other)


def test_what_was_made_in_memory_travels_whole():
    h = Transformation(PROGRAM, "fp32", threads=1).normalized()
    spec, other = again(h)
    assert spec.path is None
    assert_same(h, other)


def test_threads_are_those_of_the_place(bundle):
    spec = TransformationSpec.of(load_transformation(bundle, "fp32", 1, device="cpu"))
    assert spec.with_threads(3).open().threads == 3


def test_a_precision_that_was_chosen_is_not_chosen_again(bundle):
    h = load_transformation(bundle, "auto", 1, device="cpu").in_precision("fp32", "chosen by auto")
    assert_same(h, again(h)[1])


def test_another_file_under_the_name_is_refused(tmp_path):
    core_bundle(PROGRAM, tmp_path / "h")
    spec = TransformationSpec.of(load_transformation(tmp_path / "h", "fp32", 1, device="cpu"))
    core_bundle(plain_mlp(24, 8, 32, hidden=(41,)), tmp_path / "h", force=True)
    with pytest.raises(ArtifactError, match=r"h: holds transformation .*, wanted "):
        spec.open()


def test_a_runner_by_hand_cannot_be_repeated(bundle):
    h = load_transformation(bundle, "fp32", 1, "onnxruntime", device="cpu")
    by_hand = RunnerTransformation(h._runner, digest="0" * 64, precision="fp32")
    with pytest.raises(UnsupportedError, match="by hand"):
        TransformationSpec.of(by_hand)


@pytest.mark.parametrize("wrong", [{"backend": "numpy"}, {"precision": "fp3"}])
def test_options_name_what_there_is(wrong):
    with pytest.raises(UnsupportedError, match="does not exist; there is"):
        replace(RuntimeOptions(), **wrong)
