"""Which model vectors are of: so that what two models made is not mixed up. Unknown is allowed, and said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from fct_infer.errors import ArtifactError, ModelMismatchError, UsageError
from fct_infer.storage.strict_json import Fields

MAX_NAME = 200
_DIGEST = "sha256:"
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class ModelId:
    """A model, known by a name, by a digest, or by both.

    Attributes:
        name: what its user calls it.
        digest: SHA-256 of the file it was exported from, as hex digits.
        preprocessing: what images go through before it, as its bundle says; None where that is not known.
        unit_length: whether vectors are given length 1; None where that is not known.

    Raises:
        UsageError: there is neither name nor digest, or the name is empty, too long or no plain text.
    """

    name: str | None = None
    digest: str | None = None
    preprocessing: dict[str, Any] | None = None
    unit_length: bool | None = None

    def __post_init__(self) -> None:
        if self.name is None and self.digest is None:
            raise UsageError("a model is known by a name or by a digest")
        if self.name is not None and not (0 < len(self.name) <= MAX_NAME and self.name.isprintable()):
            raise UsageError(f"model name {self.name[:40]!r}: wanted 1 to {MAX_NAME} printable characters")
        if self.digest is not None and not (len(self.digest) == 64 and set(self.digest) <= _HEX):
            raise UsageError(f"model digest {self.digest[:70]!r}: wanted 64 hex digits, in small letters")

    @classmethod
    def of(cls, text: str) -> ModelId:
        """Return the model of a name, or of a digest written as ``sha256:`` and 64 hex digits."""
        return cls(digest=text.removeprefix(_DIGEST)) if text.startswith(_DIGEST) else cls(text)

    @property
    def text(self) -> str:
        """What :meth:`of` makes a model of that is the same as this one."""
        return self.name or f"{_DIGEST}{self.digest}"

    def as_dict(self) -> dict[str, Any]:
        """Return what is known, as strict JSON."""
        return {key: value for key, value in vars(self).items() if value is not None}

    @classmethod
    def parse(cls, value: Any, where: str) -> ModelId:
        """Return what :meth:`as_dict` wrote.

        Raises:
            ArtifactError: it is something else.
        """
        fields = Fields(value, where)
        name, digest = fields.take_if_there("name", str), fields.take_if_there("digest", str)
        preprocessing, unit_length = (
            fields.take_if_there("preprocessing", dict),
            fields.take_if_there("unit_length", bool),
        )
        fields.done()
        try:
            return cls(name, digest, preprocessing, unit_length)
        except UsageError as error:
            raise ArtifactError(f"{where}: {error}") from error

    def is_same(self, other: ModelId) -> bool | None:
        """Whether two are the same model; None if nothing is known of both by which to tell."""
        pairs = ((self.name, other.name), (self.digest, other.digest))
        known = [one == another for one, another in pairs if one is not None and another is not None]
        return any(known) if known else None

    def __str__(self) -> str:
        return repr(self.name) if self.name else f"{_DIGEST}{(self.digest or '')[:12]}..."


NamedModel: TypeAlias = str | ModelId
"""A model, or what :meth:`ModelId.of` makes one of."""


def model_id(model: NamedModel | None) -> ModelId | None:
    """Return a user's word for a model as a model."""
    return ModelId.of(model) if isinstance(model, str) else model


def check_same_model(one: tuple[str, ModelId | None], other: tuple[str, ModelId | None], way_out: str) -> None:
    """Compare what two things say of the model they are of; an unknown one is not compared.

    Args:
        one, other: what it is, for messages, and its model.
        way_out: what to do if they are the same model after all.

    Raises:
        ModelMismatchError: they are of different models; names both.
    """
    (first, model), (second, another) = one, other
    if model is None or another is None or model.is_same(another) is not False:
        return
    raise ModelMismatchError(f"{first} of model {model}, {second} of model {another}; {way_out}")


def model_text(model: ModelId | None) -> str:
    """Return a model for people: its name, ``sha256:0123456789ab...`` or ``unknown``."""
    return "unknown" if model is None else str(model)
