"""Real pictures: emoji as five vendors draw them. A class is an emoji, and two vendors' drawings of it are all there is
to train on; gallery and queries are drawn by two others, whom no model saw.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.npm import package
from fct_infer.evaluation.compatibility import gap_closed
from fct_infer.evaluation.retrieval import rank_queries
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.trainers.backbone_run import run_backbone, run_bct
from fct_infer.training.trainers.side_information_run import run_side_information

from .experiment import Experiment, Link, Model, Scale
from .figures import FIGURES
from .page import claim, shown, stack
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


def judge(runs: Runs) -> dict[str, Any]:
    """Return the figures of one seed, shares of 1, as strict JSON."""
    labels = {split: runs.images(split).labels for split in EXPERIMENT.searched}

    def search(query: str, gallery: NDArray[np.float32]) -> dict[str, float]:
        queries = runs.embeddings(query, "queries")
        found = rank_queries(queries, gallery, labels["queries"], labels["gallery"], ks=(1, 5)).metrics()
        return {"CMC-1": found.cmc[1], "CMC-5": found.cmc[5], "mAP": found.mean_average_precision}

    def between(query: str, gallery: str) -> dict[str, float]:
        return search(query, runs.embeddings(gallery, "gallery"))

    rows = {
        "old/old": between("old", "old"),
        "new/new, independent": between("new", "new"),
        "new/old, independent": between("new", "old"),
        "BCT new/old": between("bct", "old"),
        "BCT new/new": between("bct", "bct"),
        "FCT new/old, without side-information": search("new", runs.transformed(WITHOUT, "gallery")),
        "FCT new/old, with side-information": search("new", runs.transformed(WITH, "gallery")),
        "FastFill new/old": search("new", runs.transformed(FASTFILL, "gallery")),
    }
    old, new, after = (rows[name]["mAP"] for name in ("old/old", "new/new, independent", _WITH_SIDE))
    return {"rows": rows, "gap_closed": gap_closed(after, old, new)}


_WITH_SIDE = "FCT new/old, with side-information"


_ABOUT = (
    f"{CLASSES} emoji of npm's {' '.join(PACKAGE)} in {SIZE} x {SIZE} pixels. A class is an emoji; what there is to "
    f"train on are two drawings of it, by {' and '.join(VENDORS['train'])}. The gallery is drawn by "
    f"{VENDORS['gallery'][0]}, the queries by {VENDORS['queries'][0]}, whom no model saw: {CLASSES} of each, one is "
    "right. The old model knows the first fifth of the classes, the new one all; small ResNets, 128-d, L2 distance, "
    "64-d side-information by SimCLR on the old model's images. {count}; of each seed the standard error over the "
    "queries is about 1.5. `make reproduce` writes this page."
)


def page(seeds: list[dict[str, Any]], machine: str) -> str:
    """Return docs/reproduction-pictures.md."""
    rows = stack(seeds, "rows")
    merits = {name: figures["mAP"] for name, figures in rows.items()}
    old, new, bct = (merits[name] for name in ("old/old", "new/new, independent", "BCT new/old"))
    with_side, without = merits[_WITH_SIDE], merits["FCT new/old, without side-information"]
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
            claim("FCT without side-information is above BCT", without, bct),
            claim("side-information by SimCLR helps FCT", with_side, without),
            claim("BCT keeps its criterion, new/old above old/old", bct, old),
            claim("FCT with side-information keeps it", with_side, old),
            claim("BCT costs the new model: independent new/new above BCT's", new, merits["BCT new/new"]),
            claim("FastFill is above FCT", merits["FastFill new/old"], with_side),
            "",
        ]
    )
