"""Other libraries' threads leave cores alone, whoever else has told them so meanwhile."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np
import pytest
from support.openmp import spins_read
from threadpoolctl import threadpool_info, threadpool_limits

from fct_infer.threadpools import one_blas_thread


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {library["num_threads"] for library in threadpool_info() if "numpy" in library["filepath"]}


@pytest.mark.parametrize("ends", ["last in, first out", "first in, first out"])
def test_all_threads_are_back_when_the_last_one_is_out(ends):
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        first, second = ExitStack(), ExitStack()
        first.enter_context(one_blas_thread())
        second.enter_context(one_blas_thread())
        assert blas_threads() <= {1}
        (first if ends == "first in, first out" else second).close()
        assert blas_threads() <= {1}
        (second if ends == "first in, first out" else first).close()
        assert blas_threads() == before


def test_an_error_inside_is_passed_on():
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        with pytest.raises(ZeroDivisionError), one_blas_thread():
            raise ZeroDivisionError
        assert blas_threads() == before


@pytest.mark.parametrize(
    ("chosen", "found"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "777"}, "777"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["nothing", "spins", "policy"],
)
def test_threads_wait_briefly_unless_a_user_chose_how(chosen, found):
    """The library says what it read, each copy of it that was loaded."""
    code = "from fct_infer import threadpools; threadpools.let_threads_wait_briefly(); from fct_infer import _core"
    assert spins_read([sys.executable, "-c", code], **chosen) == {found}
