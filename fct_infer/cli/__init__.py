"""Console scripts: parse, call, print; no logic."""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn


def _end(_number: int, _frame: object) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(130)


# A console script imports this before its main(), and then for some tenths of a second much else: Ctrl-C meanwhile ends
# it without a traceback. run_cli() takes over from here. Other programs that import this keep their own handler.
if Path(sys.argv[0]).name.startswith("fct-") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
