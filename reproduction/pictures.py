"""Real pictures: emoji as five vendors draw them. A class is an emoji, and two vendors' drawings of it are all there is
to train on; gallery and queries are drawn by two others, whom no model saw.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.npm import package
from fct_infer.evaluation.retrieval import rank_queries
from fct_infer.measuring import Estimate
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.trainers.backbone_run import run_backbone, run_bct
from fct_infer.training.trainers.side_information_run import run_side_information

from .experiment import Experiment, Link, Model, Scale
from .figures import FIGURES
from .page import shown, stack
from .runs import Runs
from .table import table

CLASSES, SIZE, _BORDER = 500, 32, 1
VENDORS = {"train": ("google", "twitter"), "queries": ("facebook",), "gallery": ("apple",)}
PACKAGE = "emoji-datasource", "4.1.0"
_BACKGROUND = 255

SIDE, WITHOUT, WITH, FASTFILL = "simclr", "h-without", "h", "fastfill"
MODELS = {
    "old": Model(run_backbone, "old"),
    "new": Model(run_backbone, "new"),
    "bct": Model(run_bct, "bct", needs={"old": "old"}),
    SIDE: Model(run_side_information, "side_information"),
}
LINKS = {
    WITHOUT: Link("old", "new"),
    WITH: Link("old", "new", SIDE),
    FASTFILL: Link("old", "new", SIDE, fastfill=True),
}
SCALE = Scale(training_images=len(VENDORS["train"]), test_images=1)


def emoji(images_per_class: int = 2, vendors: tuple[str, ...] = VENDORS["train"]) -> Any:
    """Return the drawings of the first vendors as a dataset: (image, label), ``targets`` and ``classes``.

    Raises:
        MissingPackageError: as of :func:`benchmarks.npm.package`.
    """
    return _Drawings(*_drawings(tuple(vendors)[:images_per_class]))


class _Drawings:
    def __init__(self, images: NDArray[np.uint8], targets: NDArray[np.int64], classes: tuple[str, ...]) -> None:
        self.images, self.targets, self.classes = images, targets.tolist(), classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        return self.images[row], self.targets[row]


@cache
def _drawings(vendors: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Return images (n, 32, 32, 3), labels (n,) and names of the classes, the same whichever vendors are asked for."""
    from PIL import Image

    folder = package(*PACKAGE)
    everybody = sorted({vendor for part in VENDORS.values() for vendor in part})
    known = [
        each
        for each in json.loads((folder / "emoji.json").read_text())
        if all(each[f"has_img_{vendor}"] for vendor in everybody) and each["category"] != "Flags"
    ]
    chosen = [known[place] for place in np.random.default_rng(0).permutation(len(known))[:CLASSES]]
    step = SIZE + 2 * _BORDER
    images = []
    for vendor in vendors:
        drawn = Image.open(folder / "img" / vendor / "sheets" / f"{SIZE}.png").convert("RGBA")
        sheet = Image.new("RGBA", drawn.size, (_BACKGROUND,) * 3 + (255,))
        sheet.alpha_composite(drawn)
        pixels = np.asarray(sheet)[:, :, :3]
        for each in chosen:
            y, x = (each[f"sheet_{axis}"] * step + _BORDER for axis in "yx")
            images.append(pixels[y : y + SIZE, x : x + SIZE])
    return np.stack(images), np.tile(np.arange(len(chosen)), len(vendors)), tuple(each["unified"] for each in chosen)


def _images(split: str, _scale: Scale) -> LabelledImages:
    return LabelledImages(*_drawings(VENDORS[split]))


EXPERIMENT = Experiment(MODELS, LINKS, Path("reproduction/emoji"), _images, searched=("queries", "gallery"), views=20)


_WITHOUT, _WITH = (f"FCT new/old, {kind} side-information" for kind in ("without", "with"))
CLAIMS = (
    ("FCT without side-information is above BCT", _WITHOUT, "BCT new/old"),
    ("FCT with side-information is above BCT", _WITH, "BCT new/old"),
    ("side-information by SimCLR helps FCT", _WITH, _WITHOUT),
    ("BCT keeps its criterion, new/old above old/old", "BCT new/old", "old/old"),
    ("FCT with side-information keeps it", _WITH, "old/old"),
    ("BCT costs the new model: independent new/new above BCT's", "new/new, independent", "BCT new/new"),
    ("FastFill is above FCT", "FastFill new/old", _WITH),
)
"""Text, and which row of the table is above which."""


def judge(runs: Runs) -> dict[str, Any]:
    """Return the figures of one seed, shares of 1, as strict JSON."""
    labels = {split: runs.images(split).labels for split in EXPERIMENT.searched}
    precisions = {}

    def search(name: str, query: str, gallery: NDArray[np.float32]) -> dict[str, float]:
        ranks = rank_queries(
            runs.embeddings(query, "queries"), gallery, labels["queries"], labels["gallery"], ks=(1, 5)
        )
        precisions[name], found = ranks.average_precision, ranks.metrics()
        return {"CMC-1": found.cmc[1], "CMC-5": found.cmc[5], "mAP": found.mean_average_precision}

    galleries = {
        **{name: (query, runs.embeddings(gallery, "gallery")) for name, (query, gallery) in _BETWEEN.items()},
        **{name: ("new", runs.transformed(link, "gallery")) for name, link in _AFTER.items()},
    }
    rows = {name: search(name, *searched) for name, searched in galleries.items()}
    gains = {text: asdict(Estimate.of(precisions[above] - precisions[below])) for text, above, below in CLAIMS}
    return {"rows": rows, "gains": gains}


_BETWEEN = {
    "old/old": ("old", "old"),
    "new/new, independent": ("new", "new"),
    "new/old, independent": ("new", "old"),
    "BCT new/old": ("bct", "old"),
    "BCT new/new": ("bct", "bct"),
}
_AFTER = {_WITHOUT: WITHOUT, _WITH: WITH, "FastFill new/old": FASTFILL}


_ABOUT = (
    f"{CLASSES} emoji of npm's {' '.join(PACKAGE)} in {SIZE} x {SIZE} pixels. A class is an emoji; what there is to "
    f"train on are two drawings of it, by {' and '.join(VENDORS['train'])}. The gallery is drawn by "
    f"{VENDORS['gallery'][0]}, the queries by {VENDORS['queries'][0]}, whom no model saw: {CLASSES} of each, one is "
    "right. The old model knows the first fifth of the classes, the new one all; small ResNets, 128-d, L2 distance, "
    "64-d side-information by SimCLR on the old model's images. {count}; of each seed the standard error over the "
    "queries is about 1.8. `make reproduce` writes this page."
)


def page(seeds: list[dict[str, Any]], machine: str) -> str:
    """Return docs/reproduction-pictures.md."""
    rows, gains = stack(seeds, "rows"), stack(seeds, "gains")
    count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds, mean and standard deviation"
    return "\n".join(
        [
            "# Reproduction: pictures",
            "",
            _ABOUT.format(count=count),
            "",
            f"Computed {machine}.",
            "",
            *table(
                ["query/gallery", *(f"{figure} %" for figure in FIGURES)],
                ((name, *(shown(figures[figure]) for figure in FIGURES)) for name, figures in rows.items()),
            ),
            "Which claims appear, by the difference in mAP, query by query:",
            "",
            *(_claim(text, gains[text]) for text, _, _ in CLAIMS),
            "",
        ]
    )


def _claim(text: str, gain: dict[str, NDArray[np.float64]]) -> str:
    """Return a line that says whether a difference is beyond two standard errors over the queries of all seeds."""
    mean, error = gain["mean"].mean(), np.sqrt((gain["standard_error"] ** 2).sum()) / len(gain["mean"])
    verdict = "cannot be told" if abs(mean) <= 2 * error else "yes" if mean > 0 else "no"
    return f"- **{verdict}**: {text}: {100 * mean:+.1f} ± {100 * error:.1f}."
