"""The closed family of errors a user can fix, and the exit codes the command line promises."""

from __future__ import annotations

import pytest

from fct_infer import errors
from fct_infer.errors import FctError, MissingExtraError, NonFiniteError, ResourceError, import_error

# The contract of the command line: 2 usage, 3 a gate failed, 4 bad input, 5 memory or disk, 6 output, 75 resumable.
EXIT_CODES = {
    "UsageError": 2,
    "MissingExtraError": 2,
    "UnsupportedError": 2,
    "GateError": 3,
    "InputError": 4,
    "ArrayError": 4,
    "NonFiniteError": 4,
    "GalleryError": 4,
    "ModelMismatchError": 4,
    "ArtifactError": 4,
    "NotAProgramError": 4,
    "ResourceError": 5,
    "DeviceMemoryError": 5,
    "OutputError": 6,
    "StoppedError": 75,
}


def family(base: type[FctError]) -> set[type[FctError]]:
    return {base}.union(*map(family, base.__subclasses__()))


def test_every_error_has_its_promised_exit_code() -> None:
    found = {error.__name__: error.exit_code for error in family(FctError) - {FctError}}
    assert found == EXIT_CODES


def test_the_family_is_closed() -> None:
    assert {error.__module__ for error in family(FctError)} == {errors.__name__}


@pytest.mark.parametrize("name", [name for name, code in EXIT_CODES.items() if code == 4])
def test_bad_input_is_also_a_value_error(name: str) -> None:
    assert issubclass(getattr(errors, name), ValueError)


def test_a_bad_row_says_where() -> None:
    error = NonFiniteError("side", 7)
    assert (error.array, error.row) == ("side", 7)
    assert str(error) == "side: row 7 holds NaN or infinity"


def test_a_missing_extra_says_how_to_get_it() -> None:
    assert str(MissingExtraError("faiss", "cpu")) == "faiss is not installed; run: pip install 'fct-infer[cpu]'"


def test_a_package_that_cannot_be_loaded_is_not_said_to_be_missing():
    assert isinstance(import_error("faiss", "cpu", ModuleNotFoundError("No module named 'faiss'")), MissingExtraError)
    broken = import_error("faiss", "cpu", ImportError("libgfortran.so: failed to map segment from shared object"))
    assert isinstance(broken, ResourceError) and "cannot be loaded: libgfortran.so" in str(broken)
