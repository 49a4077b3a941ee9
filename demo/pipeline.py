"""Which stages the demo has, in their order, and what each depends on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import report
import settings
import torch
from deployment import ROOT, Deployment
from judging import Figures, Judge
from stages import Stage, StageRunner
from steps import Steps

from fct_infer.errors import FctError

WORK = Path("demo/work")
PAGE = Path("demo/report.html")


def stages() -> list[Stage]:
    """Return the stages in their order."""
    steps = Steps(WORK)
    deployment, judge = Deployment(WORK, steps), Judge(WORK, steps)
    package, here = Path("fct_infer"), Path("demo")
    training = (package / "training", here / "steps.py")
    everything = (package, Path("export"), here / "steps.py", here / "deployment.py")
    size, trained = settings.DATA, ("old_model", "side_information", "new_model")
    views = (settings.TRANSFORMATION, settings.TRAINING_VIEWS, settings.VIEWS)
    return [
        Stage("images", "Render images", steps.render, (), size, training),
        Stage("old_model", "Train the old model", steps.old_model, ("images",), settings.OLD, training),
        Stage(
            "side_information",
            "Train side-information",
            steps.side_information,
            ("images",),
            settings.SIDE_INFORMATION,
            training,
        ),
        Stage(
            "old_gallery",
            "Embed the old gallery",
            steps.old_gallery,
            ("old_model", "side_information"),
            size,
            (*training, package / "gallery", package / "storage"),
        ),
        Stage("new_model", "Train the new model", steps.new_model, ("images",), settings.NEW, training),
        Stage("transformation", "Train the transformation", steps.transformation, trained, views, training),
        Stage("bundles", "Export", deployment.export, (*trained, "transformation"), None, everything),
        Stage("upgraded", "Upgrade the gallery", deployment.upgrade, ("old_gallery", "bundles"), None, everything),
        Stage("figures", "Judge", judge.judge, ("upgraded", "new_model"), None, (*everything, here / "judging.py")),
    ]


def main() -> int:
    """Run what is missing, then show the result."""
    os.chdir(ROOT)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        StageRunner(WORK, stages()).run()
        figures = Figures.load(WORK / "figures" / "figures.json")
        report.write_page(PAGE, WORK, figures, Steps(WORK))
    except FctError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    report.print_summary(figures, PAGE)
    return 0
