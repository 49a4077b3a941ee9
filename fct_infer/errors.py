"""Every error a user can fix, one class each, with the exit code the command line gives it.

Raise the narrowest class with a message that says what came, what was wanted, and which file and row.
Anything that is not an :class:`FctError` is a bug in this project and ends with exit code 1 and a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

_MAX_NAMED = 8  # operations in one message


class FctError(Exception):
    """Base of all errors a user can fix. Not raised itself."""

    exit_code = 1


class UsageError(FctError):
    """The call asks for something that does not exist or does not go together (flags, names, combinations)."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'fct-infer[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.package, self.extra)


class UnsupportedError(UsageError):
    """This machine or this build cannot do what was asked (a precision, a device)."""


class GateError(FctError):
    """A result exists but fails a limit the user set or accepted (parity, recall, cosine). Nothing was published."""

    exit_code = 3


class InputError(FctError, ValueError):
    """Bad input. Base of the classes below."""

    exit_code = 4


class ArrayError(InputError):
    """An array argument has the wrong dtype, layout, shape or content; the message names the argument."""


class NonFiniteError(ArrayError):
    """A row of an array holds NaN or infinity; ``array`` says which one, ``row`` counts from its start.

    ``result`` is also named where a value on the way may have become infinite and been hidden by an activation.
    """

    def __init__(self, array: str, row: int) -> None:
        unseen = ", or may overflow on the way" if array == "result" else ""
        super().__init__(f"{array}: row {row} holds NaN or infinity{unseen}")
        self.array = array
        self.row = row

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, int]]:
        return type(self), (self.array, self.row)


class GalleryError(InputError):
    """A gallery on disk is malformed; the message names the file, and the row where there is one."""


class ModelMismatchError(InputError):
    """Vectors of one model meet what was made for those of another; the message names both."""


class ArtifactError(InputError):
    """A model file or bundle is malformed, damaged or of an unsupported kind; the message names the file."""


class NotAProgramError(ArtifactError):
    """A transformation that may be fine, but runs operations that the core has not; ``operations`` names them all."""

    def __init__(self, operations: Sequence[str], where: str = "") -> None:
        self.operations, self.where = tuple(operations), where
        shown = (*self.operations[:_MAX_NAMED], "...") if len(self.operations) > _MAX_NAMED else self.operations
        super().__init__(": ".join(filter(None, (where, "; ".join(shown)))))

    def __reduce__(self) -> tuple[type[NotAProgramError], tuple[tuple[str, ...], str]]:
        return type(self), (self.operations, self.where)


class ResourceError(FctError):
    """Not enough memory or disk, or an I/O error of the machine."""

    exit_code = 5


class DeviceMemoryError(ResourceError):
    """A device has too little free memory, or what may be used of it is too little."""


class OutputError(FctError):
    """The output exists already, is in use by another process, or holds unfinished work that does not match."""

    exit_code = 6


class StoppedError(FctError):
    """Stopped on request before the end; what is finished is kept and the same call resumes."""

    exit_code = 75


def import_error(package: str, extra: str, error: ImportError) -> FctError:
    """Return what an optional package that does not import means: it is not there, or the machine cannot load it."""
    if isinstance(error, ModuleNotFoundError):
        return MissingExtraError(package, extra)
    return ResourceError(f"{package} is installed, but cannot be loaded: {error}")
