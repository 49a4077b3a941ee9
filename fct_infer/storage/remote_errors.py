"""What fails on the way to a server: tried again if it may pass, and told in one line that holds no password."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from fct_infer.errors import FctError, GalleryError, ResourceError

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0)  # seconds before it is tried again
_REFUSED = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "RefreshError",
    "GatedRepoError",
    "LocalTokenNotFoundError",
    "TokenRetrievalError",
}
_FINAL = (ValueError, TypeError, NotImplementedError, KeyError, AttributeError)
_FINAL_NAMES = {"ParamValidationError", "NoRegionError", "ProfileNotFound", "InvalidURL", "HFValidationError"}
# Passwords in a text: user:password@ and all behind the question mark of a URL.
_SECRETS = ((re.compile(r"://[^/\s@'\"]*@"), "://"), (re.compile(r"(://[^\s'\"?]*)\?[^\s'\")]*"), r"\1?..."))
_LONGEST = 300

Fault = Literal["missing", "refused", "final", "passing"]


def fault_of(error: BaseException) -> Fault:
    """Return what an exception of fsspec, or of what it calls, means for the one who asked."""
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "missing"
    if isinstance(error, PermissionError) or status in (401, 403) or names & _REFUSED:
        return "refused"
    is_answer = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
    if is_answer or isinstance(error, _FINAL) or names & _FINAL_NAMES:
        return "final"
    return "passing"


def words_of(error: BaseException) -> str:
    """Return an exception's first line without passwords."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text[:_LONGEST]


def retried(call: Callable[[], T], where: str, doing: str = "read") -> T:
    """Return what a call to a server returns.

    Args:
        call: may be repeated.
        where: the URL as it may be shown.
        doing: ``read`` or ``written``, what failed if it does.

    Raises:
        FileNotFoundError: nothing is there.
        FileExistsError: something is, where nothing was to be.
        ResourceError: access is refused, or the network or the server failed each time.
        GalleryError: it cannot be asked for this at all.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except (FctError, FileExistsError):
            raise
        except Exception as raised:  # whatever the client of one of many services raises
            error = _first(raised)
            fault = fault_of(error)
            if fault == "missing":
                raise FileNotFoundError(2, "there is no such object", where) from None
            if fault != "passing" or wait is None:
                raise told(error, fault, where, doing) from bare(error)
            time.sleep(wait)
    raise AssertionError


def _first(error: Exception) -> Exception:
    """Return what happened: over HTTP fsspec takes every failure for a missing file."""
    cause = error.__cause__
    is_other = isinstance(cause, OSError | TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and is_other else error


def told(error: Exception, fault: Fault, where: str, doing: str) -> FctError:
    """Return the error to raise in place of a client's."""
    if fault == "refused":
        may = "read" if doing == "read" else "write"
        return ResourceError(f"{where}: access is refused; are credentials set that may {may} it? ({words_of(error)})")
    if fault == "final":
        kind = GalleryError if doing == "read" else ResourceError
        return kind(f"{where}: cannot be {doing}: {words_of(error)}")
    return ResourceError(f"{where}: cannot be {doing} now, tried {len(WAITS) + 1} times: {words_of(error)}")


def bare(error: Any) -> Exception:
    """Return the cause for a traceback, in which nothing secret is."""
    kind = _RefusalError if fault_of(error) == "refused" else RuntimeError
    return kind(f"{type(error).__name__}: {words_of(error)}")


class _RefusalError(RuntimeError):
    """The cause of an error, where access is refused."""


def is_refusal(error: ResourceError) -> bool:
    """Whether access is refused; so it is, to who may not list a bucket, to what does not exist."""
    return isinstance(error.__cause__, _RefusalError)
