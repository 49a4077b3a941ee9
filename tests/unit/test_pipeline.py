"""`_core.run_pipeline` from Python: order, errors, signals, memory of the views, threads."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.programs import linear_map, plain_mlp, random_rows

from fct_infer import _core
from fct_infer.errors import ArrayError, NonFiniteError
from fct_infer.transformation import Concat, Linear, Program, Transformation

Rows = NDArray[Any]


def thread_count() -> int:
    """Return how many threads this process has, without those that the core keeps for a while."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            count += (task / "comm").read_text() != "fct-kept\n"
    return count


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = thread_count()
    yield
    deadline = time.monotonic() + 60
    while thread_count() > before and time.monotonic() < deadline:  # the kernel takes a moment to forget a thread
        time.sleep(0.001)
    assert thread_count() <= before


class Source:
    """Hands out the rows of arrays, a block at a time, as a reader of shards would."""

    def __init__(self, old: Rows, side: Rows | None = None) -> None:
        self.old, self.side, self.next_row = old, side, 0

    def __call__(self, old: Rows, side: Rows | None) -> int:
        rows = min(len(old), len(self.old) - self.next_row)
        old[:rows] = self.old[self.next_row : self.next_row + rows]
        if side is not None and self.side is not None:
            side[:rows] = self.side[self.next_row : self.next_row + rows]
        self.next_row += rows
        return rows


def endless(old: Rows, side: Rows | None) -> int:
    old[:] = 1
    return len(old)


def run(
    executable: _core.Executable,
    read: Callable[[Rows, Rows | None], int],
    write: Callable[[Rows], Any] = lambda _: None,
    index: Callable[..., Any] | None = None,
    **options: Any,
) -> dict[str, float]:
    defaults: dict[str, Any] = {
        "block_rows": 64,
        "threads": 2,
        "old_dtype": "float32",
        "side_dtype": "float32",
        "out_dtype": "float32",
        "side_is_old": False,
    }
    return _core.run_pipeline(executable, read=read, write=write, index=index, **(defaults | options))


def mlp() -> Transformation:
    return Transformation(plain_mlp(12, 5, 7, (16,)), "fp32")


def identity() -> Transformation:
    return Transformation(
        Program({"old": 3}, (Linear("old", "new", np.eye(3, dtype=np.float32), np.zeros(3, np.float32)),), "new"),
        "fp32",
    )


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("with_index", [False, True])
def test_blocks_arrive_whole_and_in_order(rows: int, with_index: bool) -> None:
    h = mlp()
    old, side = random_rows(rows, 12), random_rows(rows, 5, 1)
    written: list[Rows] = []
    indexed: list[Rows] = []
    index = (lambda block, on_device=0: indexed.append(block.copy())) if with_index else None
    times = run(h.executable, Source(old, side), lambda block: written.append(block.copy()), index)
    expected = h(old, side)
    for blocks in (written, indexed) if with_index else (written,):
        assert [len(block) for block in blocks[:-1]] == [64] * (len(blocks) - 1)
        assert np.array_equal(np.concatenate([np.empty((0, 7), np.float32), *blocks]), expected)
    assert times["rows"] == rows
    assert set(times) == {"rows", "wall", "read", "transform", "write", "index"}
    assert times["wall"] >= times["transform"] >= 0
    assert (times["index"] > 0) == (with_index and rows > 0)


def test_dtypes_are_those_asked_for() -> None:
    h = mlp()
    old, side = random_rows(200, 12).astype(np.float16), random_rows(200, 5, 1)
    seen: list[tuple[Any, ...]] = []
    written: list[Rows] = []
    source = Source(old, side)

    def read(old_block: Rows, side_block: Rows | None) -> int:
        assert side_block is not None
        seen.append((old_block.dtype, old_block.shape, side_block.dtype, side_block.shape))
        return source(old_block, side_block)

    run(h.executable, read, lambda block: written.append(block.copy()), old_dtype="float16", out_dtype="float16")
    assert set(seen) == {(np.dtype("float16"), (64, 12), np.dtype("float32"), (64, 5))}
    expected = np.empty((200, 7), np.float16)
    h.apply_into(old, side, expected)
    assert np.array_equal(np.concatenate(written), expected)


def test_old_stands_in_for_side() -> None:
    h = Transformation(Program({"old": 4, "side": 4}, (Concat(("old", "side"), "new"),), "new"), "fp32")
    old = random_rows(100, 4)
    sides: list[Any] = []
    written: list[Rows] = []
    source = Source(old)

    def read(old_block: Rows, side_block: Rows | None) -> int:
        sides.append(side_block)
        return source(old_block, side_block)

    run(h.executable, read, lambda block: written.append(block.copy()), side_is_old=True)
    assert set(map(type, sides)) == {type(None)}
    assert np.array_equal(np.concatenate(written), np.hstack([old, old]))


class Boom(BaseException):
    """Nobody else's error; not even an Exception."""


@pytest.mark.parametrize("error", [ValueError, OSError, Boom, KeyboardInterrupt, SystemExit, ArrayError])
@pytest.mark.parametrize("stage", ["read", "write", "index"])
@pytest.mark.parametrize("call", [0, 1, 3, 10])
def test_errors_of_callbacks_keep_their_type_and_object(error: type[BaseException], stage: str, call: int) -> None:
    raised = error("number", 28)
    countdown = iter([False] * call + [True])

    def spoiled(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def stage_work(*arguments: Any) -> Any:
            if name == stage and next(countdown):
                raise raised
            return work(*arguments)

        return stage_work

    consume = lambda *_: None  # noqa: E731
    with pytest.raises(error) as caught:
        run(identity().executable, spoiled("read", endless), spoiled("write", consume), spoiled("index", consume))
    assert caught.value is raised
    assert any(entry.name == "stage_work" for entry in caught.traceback)


@pytest.mark.parametrize("keep", ["none", "rows", "normalized"])
def test_the_index_is_told_that_nothing_is_on_a_device(keep: str) -> None:
    told: list[int] = []
    source = Source(random_rows(200, 3))
    run(identity().executable, source, index=lambda block, on_device: told.append(on_device), keep_on_device=keep)
    assert told == [0] * 4


@pytest.mark.parametrize("answer", [-1, 65, None, "7", 2.5, 1 << 70])
def test_an_impossible_row_count_is_refused(answer: Any) -> None:
    with pytest.raises((ArrayError, TypeError, RuntimeError, OverflowError)):
        run(identity().executable, lambda old, side: answer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_rows": 0}, "block_rows"),
        ({"threads": 0}, "threads"),
        ({"old_dtype": "float64"}, "float64"),
        ({"out_dtype": ">f4"}, ">f4"),
        ({"side_is_old": True}, "side"),
        ({"keep_on_device": "all"}, "wanted none, rows or normalized"),
    ],
)
def test_options_are_checked_before_anything_runs(options: dict[str, Any], message: str) -> None:
    def never(old: Rows, side: Rows | None) -> int:
        raise AssertionError("read although the options are wrong")

    with pytest.raises(ArrayError, match=message):
        run(mlp().executable, never, **options)


def test_bad_rows_count_from_the_first_row() -> None:
    h = mlp()
    old, side = random_rows(1000, 12), random_rows(1000, 5)
    side[777, 2] = np.nan
    written: list[int] = []
    with pytest.raises(NonFiniteError) as caught:
        run(h.executable, Source(old, side), lambda block: written.append(len(block)))
    assert (caught.value.array, caught.value.row) == ("side", 777)
    assert sum(written) <= 768  # nothing of the bad block
    assert type(caught.value) is NonFiniteError


def test_views_outlive_the_run() -> None:
    kept: list[Rows] = []
    source = Source(random_rows(500, 3))

    def read(old: Rows, side: Rows | None) -> int:
        kept.append(old)
        return source(old, side)

    run(identity().executable, read, kept.append)
    gc.collect()
    ballast = [np.full((64, 3), 5, np.float32) for _ in range(200)]  # would take over memory that was freed
    assert all(np.isfinite(view).all() for view in kept)
    last_written = kept[[view.shape for view in kept].index((500 % 64, 3))]
    assert np.array_equal(last_written, random_rows(500, 3)[-(500 % 64) :])
    for view in kept:
        view[:] = 9  # and the memory is ours to write
    assert all((block == 5).all() for block in ballast)


def test_callbacks_run_beside_each_other() -> None:
    def slowly(*_: Any) -> None:
        time.sleep(0.02)

    source = Source(random_rows(640, 3))

    def read(old: Rows, side: Rows | None) -> int:
        slowly()
        return source(old, side)

    times = run(identity().executable, read, slowly, slowly)
    assert min(times["read"], times["write"], times["index"]) >= 0.2
    assert times["wall"] < 0.75 * (times["read"] + times["write"] + times["index"])


def test_ten_runs_at_a_time_do_not_disturb_each_other() -> None:
    h = mlp()

    def one(seed: int) -> bool:
        old, side = random_rows(300, 12, seed), random_rows(300, 5, seed + 100)
        written: list[Rows] = []
        run(h.executable, Source(old, side), lambda block: written.append(block.copy()), lambda *_: None)
        return np.array_equal(np.concatenate(written), h(old, side))

    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(one, range(30)))


INTERRUPTED = """
import sys, time
from contextlib import suppress
import numpy as np
from fct_infer import _core
from fct_infer.transformation import Normalize, Program, Transformation
from pathlib import Path

def read(old, side):
    old[:] = 1
    print("reading", flush=True)
    time.sleep(0.01)
    return len(old)

def threads():
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            count += (task / "comm").read_text() != "fct-kept\\n"
    return count

before = threads()
h = Transformation(Program({"old": 3}, (Normalize("old", "new"),), "new"))
try:
    _core.run_pipeline(h.executable, read=read, write=lambda block: None, index=lambda *block: None, block_rows=10,
                       threads=2, old_dtype="float32", side_dtype="float32", out_dtype="float32", side_is_old=False)
except KeyboardInterrupt:
    deadline = time.monotonic() + 30
    while threads() > before and time.monotonic() < deadline:  # the kernel takes a moment to forget a thread
        time.sleep(0.01)
    print("stopped with", threads() - before, "threads more")
"""


def test_ctrl_c_stops_a_run() -> None:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert time.perf_counter() - start < 60
    assert process.returncode == 0
    assert output.splitlines()[-1] == "stopped with 0 threads more"


def test_a_bad_call_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        run(identity().executable, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        run(linear_map(3, 3), endless)  # type: ignore[arg-type]
