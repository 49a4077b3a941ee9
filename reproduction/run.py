"""Train what is missing, judge it, write docs/reproduction.md: ``python -m reproduction.run [--seeds 3]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import torch

from fct_infer.errors import FctError
from fct_infer.storage import write_json

from .figures import judge
from .page import write_page
from .runs import Runs


def main() -> int:
    """Run all seeds; one that is judged already is not trained again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many [3]")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to train [cpu]")
    parser.add_argument("--work", type=Path, default=Path("reproduction/work"), help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path("docs/reproduction.md"))
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    found = []
    try:
        for seed in range(options.seeds):
            folder = options.work / str(seed)
            figures = folder / "figures.json"
            if not figures.exists():
                runs = Runs(folder, seed, options.device)
                runs.train()
                write_json(figures, judge(runs))
            found.append(json.loads(figures.read_text()))
            write_page(
                options.page,
                found,
                f"{len(os.sched_getaffinity(0))} CPU cores, PyTorch {torch.__version__}, {platform.machine()}",
            )
    except FctError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(options.page.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
