"""The core's threads are kept between calls: a fork, the end of the interpreter and signals must not meet them."""

from __future__ import annotations

import subprocess
import sys

import pytest

SETUP = """
import os, signal, sys, threading, time
import numpy as np
from support.programs import linear_map, random_rows
from fct_infer import Transformation

h = Transformation(linear_map(64, 64), "fp32", threads=3)
rows = random_rows(2000, 64)
expected = h(rows).tobytes()
"""
CASES = {
    "a forked child computes": """
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if h(rows).tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
assert h(rows).tobytes() == expected
""",
    "a child forked while others compute": """
stop = threading.Event()
def busy():
    while not stop.is_set():
        h(rows)
workers = [threading.Thread(target=busy) for _ in range(2)]
for worker in workers:
    worker.start()
for _ in range(100):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if h(rows).tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
""",
    "the interpreter ends while a daemon thread computes": """
def busy():
    while True:
        h(rows)
threading.Thread(target=busy, daemon=True).start()
time.sleep(0.2)
""",
    "an alarm reaches the thread that waits": """
class Alarm(Exception):
    pass
def ring(*_):
    raise Alarm
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.2)
start = time.monotonic()
try:
    time.sleep(30)
except Alarm:
    assert time.monotonic() - start < 10
else:
    raise SystemExit("the alarm was not seen")
""",
}


@pytest.mark.parametrize("case", CASES)
def test_kept_threads(case: str) -> None:
    code = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n" + SETUP + CASES[case]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
