"""What a user does with trained models: export them, then upgrade the stored gallery from the command line."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from stages import Reporter
from steps import BACKBONES, Steps

from fct_infer.artifacts.manifest import Preprocessing, read_manifest
from fct_infer.export import export_backbone
from fct_infer.storage import write_json
from fct_infer.training.data.glyphs import IMAGE_SIZE
from fct_infer.upgrade.report import UpgradeReport

ROOT = Path(__file__).resolve().parent.parent
_PREPROCESSING = Preprocessing((IMAGE_SIZE, IMAGE_SIZE), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Deployment:
    """Export and upgrade, from and into the work folder."""

    def __init__(self, work: Path, steps: Steps) -> None:
        self.work, self._steps = work, steps

    def export(self, folder: Path, report: Reporter) -> str:
        """Write a bundle for each model; every file is loaded back and compared with the model."""
        for number, name in enumerate(BACKBONES):
            report(number / 4, name)
            export_backbone(
                self._steps.backbone(name),
                folder / name,
                image_shape=(3, IMAGE_SIZE, IMAGE_SIZE),
                preprocessing=_PREPROCESSING,
                kind="side-information" if name == "side_information" else "backbone",
            )
        report(3 / 4, "transformation")
        bundle = folder / "transformation"
        _type("fct-export", self.work / "transformation" / "model.safetensors", "-o", bundle, stdout=subprocess.DEVNULL)
        parities = (file.parity for file in read_manifest(bundle).files)
        error = max(parity.max_relative_error for parity in parities if parity)
        return f"backbones as ONNX and TorchScript, h as core bundle and ONNX, largest relative error {error:.0e}"

    def upgrade(self, folder: Path, report: Reporter) -> str:
        """Type the command; its own progress and result go to the terminal."""
        del report  # the command shows its own
        gallery, bundle, dest = self.work / "old_gallery", self.work / "bundles" / "transformation", folder / "gallery"
        start = time.monotonic()
        typed = _type("fct-upgrade-gallery", gallery, "--transformation", bundle, "-o", dest)
        write_json(folder / "command.json", {"command": typed, "seconds": time.monotonic() - start})
        upgraded = UpgradeReport.load(dest / "upgrade_infos.json")
        cosine = upgraded.verification.min_cosine
        return f"{upgraded.rows:,} rows, {upgraded.rows_per_second:,.0f} rows/s, min cosine {cosine:.6f}"


def _type(command: str, *arguments: Path | str, stdout: int | None = None) -> str:
    """Run a command of this project as a user would, showing what is typed; return that."""
    words = [str(argument) for argument in arguments]
    typed = shlex.join([command, *words])
    Console(stderr=True).print(f"\n$ {typed}", style="bold", soft_wrap=True, highlight=False)
    subprocess.run([Path(sys.executable).with_name(command), *words], check=True, cwd=ROOT, stdout=stdout)
    return typed
