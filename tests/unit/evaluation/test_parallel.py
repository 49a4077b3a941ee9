import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from fct_infer.evaluation.parallel import for_each_block


def blas_threads():
    """Threads of NumPy's own BLAS: other packages bring others, which nothing here calls."""
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas" and "numpy" in pool["filepath"]]
    return {pool["num_threads"] for pool in pools}


@pytest.mark.parametrize(("rows", "block_rows"), [(1, 1), (10, 3), (10, 100), (12, 4)])
def test_every_row_is_worked_on_once(rows, block_rows):
    counts = np.zeros(rows, int)

    def work(block):
        assert 0 < block.stop - block.start <= block_rows
        counts[block] += 1

    for_each_block(rows, block_rows, work, threads=3, progress=None)
    assert (counts == 1).all()


def test_blas_has_one_thread_in_the_workers_and_gets_its_own_back():
    before, inside = blas_threads(), set()
    for_each_block(4, 1, lambda _: inside.update(blas_threads()), threads=2, progress=None)
    assert inside == {1}
    assert blas_threads() == before


def test_an_error_is_raised_as_it_is_stops_the_rest_and_leaves_no_thread():
    begun = []

    def work(block):
        begun.append(block.start)
        if block.start == 0:
            raise KeyError(block.start)
        time.sleep(0.005)

    threads = threading.active_count()
    with pytest.raises(KeyError):
        for_each_block(1000, 1, work, threads=2, progress=None)
    assert len(begun) < 1000
    assert threading.active_count() == threads


def test_an_interrupt_in_the_progress_callback_stops_the_work():
    begun = []
    gate = threading.Event()

    def work(block):
        begun.append(block.start)
        if block.start > 0:
            gate.wait(10)
            time.sleep(0.005)  # so that the thread that is told to stop gets its turn

    def interrupt(_done, _rows):
        gate.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for_each_block(1000, 1, work, threads=2, progress=interrupt)
    assert len(begun) < 1000
