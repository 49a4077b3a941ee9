"""What configurations of tests name as ``support.training:...``, and small runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fct_infer.training.runs.folder import RunFolder

TINY_MODEL = {
    "name": "resnet",
    "arguments": {"embedding_dim": 12, "widths": [8, 16], "blocks": [1, 1], "stem_stride": 2},
}


class DropoutNet(nn.Module):
    """A backbone by its interface only, which draws from torch's own generator while it trains."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.3)
        )
        self.last = nn.Conv2d(8, embedding_dim, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.layers(images))  # (n, d, 1, 1)


class NoisyDataset:
    """Four classes of 16 x 16 images; every view is noisy, and the ``die_at``-th one kills the process."""

    def __init__(self, count: int = 40, die_at: int = 0) -> None:
        self.targets = [row % 4 for row in range(count)]
        self.classes = ["a", "b", "c", "d"]
        self._die_at, self._loaded = die_at, 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        self._loaded += 1
        if self._loaded == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        pattern = np.random.default_rng(self.targets[row]).random((3, 16, 16), np.float32)
        return (torch.from_numpy(pattern) + 0.2 * torch.randn(3, 16, 16)).clamp(0, 1), self.targets[row]


def in_child(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked process; return the signal that killed it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def trained(
    trainer: Callable[..., dict[str, Any]], config: dict[str, Any], folder: Path, **options: Any
) -> dict[str, Any]:
    """Run a trainer in a folder, as the command line does."""
    with RunFolder(folder, **options) as run:
        return trainer(config, run)
