"""Which models are the same, and what says so."""

from __future__ import annotations

import pytest

from fct_infer.errors import ArtifactError, InputError, ModelMismatchError, UsageError
from fct_infer.identity import ModelId, check_same_model, model_text

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (ModelId("v1"), ModelId("v1"), True),
        (ModelId("v1"), ModelId("v2"), False),
        (ModelId(digest=A), ModelId(digest=A), True),
        (ModelId(digest=A), ModelId(digest=B), False),
        (ModelId("v1", A), ModelId("v1", B), True),  # exported twice, and its user says it is one
        (ModelId("v1", A), ModelId("renamed", A), True),
        (ModelId("v1", A), ModelId("v2", B), False),
        (ModelId("v1"), ModelId(digest=A), None),
        (ModelId("v1", A), ModelId(digest=B), False),
        (ModelId("v1", A, {"size": [3, 3]}), ModelId("v1", unit_length=True), True),
    ],
)
def test_names_or_digests_tell(one, other, expected):
    assert one.is_same(other) is expected
    assert other.is_same(one) is expected


def test_what_differs_is_named_and_what_is_unknown_passes():
    for one, other in ((None, ModelId("v1")), (ModelId("v1"), None), (ModelId("v1"), ModelId(digest=A))):
        check_same_model(("x", one), ("y", other), "")
    with pytest.raises(ModelMismatchError, match=r"the gallery of model 'v1', h of model sha256:aaaaaaaaaaaa...; do"):
        check_same_model(("the gallery", ModelId("v1", B)), ("h", ModelId(digest=A)), "do this")
    assert issubclass(ModelMismatchError, InputError) and ModelMismatchError.exit_code == 4


def test_a_word_for_a_model_is_a_name_or_a_digest():
    assert ModelId.of("clip-v2") == ModelId("clip-v2")
    assert ModelId.of(f"sha256:{A}") == ModelId(digest=A)
    for model in (ModelId("clip"), ModelId(digest=A)):
        assert ModelId.of(model.text) == model
    assert model_text(None) == "unknown"


@pytest.mark.parametrize("text", ["", "x" * 201, "two\nlines", "sha256:abc", f"sha256:{A.upper()}"])
def test_what_is_no_name_is_refused(text):
    with pytest.raises(UsageError):
        ModelId.of(text)


def test_json_and_back():
    model = ModelId("v1", A, {"size": [3, 3]}, True)
    assert ModelId.parse(model.as_dict(), "x") == model
    assert ModelId("v1").as_dict() == {"name": "v1"}


@pytest.mark.parametrize(
    "value",
    [[], {}, {"name": 3}, {"name": "v1", "more": 1}, {"name": "a\0b"}, {"digest": "abc"}],
)
def test_malformed_json_is_refused(value):
    with pytest.raises(ArtifactError):
        ModelId.parse(value, "x")
