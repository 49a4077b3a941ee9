"""What ``fct-fit`` chose, as a configuration of ``fct-train``: to fit it on more rows, or to train it longer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fct_infer.errors import OutputError, UsageError
from fct_infer.fitting.network_trial import NAMES
from fct_infer.fitting.pairs import Pairs
from fct_infer.maps import Recipe
from fct_infer.storage import DurableWriter, check_place, npy_header_bytes, write_bytes
from fct_infer.transformation import Float32Array

if TYPE_CHECKING:
    from fct_infer.fitting.fit import Fit
    from fct_infer.fitting.network import Schedule

_HEADER = """\
# What fct-fit chose for these pairs{what}.
#   fct-train transformation {path} -o RUN
"""
_MIXED = """
# This trains the network alone. fct-fit took {share:.0f} % of it and {rest:.0f} % of a closed form ({recipe}),
# which is better than either: fct_infer.maps.chains.mix makes one program of both"""


def pairs_folder(path: Path) -> Path:
    """Return where the pairs of a configuration are written if they do not lie row by row in files already."""
    return path.with_name(f"{path.stem}-pairs")


def refuse_existing_config(path: Path, bundle: Path, inputs: Mapping[str, Path], *, force: bool) -> None:
    """Say before any work is done that :func:`write_config` would refuse ``path``.

    Raises:
        UsageError: no file can have this name, or an input would be replaced.
        OutputError: something is there, and ``force`` is not set or it is no file.
    """
    target = check_place(path, inputs)
    if target == bundle.absolute():
        raise UsageError(f"{path}: is the bundle, too; choose another name for the configuration")
    if target.exists() and (not force or not target.is_file()):
        raise OutputError(f"{path}: exists" + ("" if force else "; --force replaces it"))


def write_config(found: Fit, pairs: Pairs, inputs: Mapping[str, Any], path: Path) -> None:
    """Write the configuration and, if need be, its pairs beside it.

    Args:
        found: what :func:`fct_infer.fitting.fit_pairs` returned.
        pairs: what it was given.
        inputs: as of :func:`fct_infer.fitting.inputs.read_inputs`.
        path: of the YAML file.

    Raises:
        MissingExtraError: PyYAML is not installed.
        ResourceError: the disk is full, or another I/O error.
    """
    from fct_infer.training.config import to_yaml

    recipe = found.network[0] if found.network else found.chosen.recipe
    assert recipe is not None
    names = ("old", "new") if recipe.side_alpha is None else ("old", "new", "side")
    data = _own_files(pairs, inputs, names) or _written(pairs, names, pairs_folder(path))
    if found.network:
        _, schedule, share = found.network
        settings, what = network_settings(recipe, schedule, found.pairs), f": {NAMES[schedule.model]}"
        if share < 1 and found.screened is not None:
            what += _MIXED.format(share=100 * share, rest=100 - 100 * share, recipe=found.screened.closed_form.name)
    else:
        settings, what = {"model": {"name": "recipe", "arguments": asdict(recipe)}}, ", a closed form"
    text = _HEADER.format(path=path, what=what) + to_yaml({"data": data} | settings)
    write_bytes(path, text.encode())


def network_settings(recipe: Recipe, schedule: Schedule, pairs: int) -> dict[str, Any]:
    """Return the configuration of a network but for ``data``; what is not said is as ``fct-train`` has it."""
    from fct_infer.fitting.network import DECAY, RATE
    from fct_infer.training.trainers.transformation_run import PAPER_RECIPE

    epochs, is_paper = max(1, math.ceil(schedule.stop * schedule.batch_rows / pairs)), schedule.model == "paper"
    arguments = {"recipe": asdict(recipe), "hidden": schedule.hidden, "layers": schedule.layers}
    residual = {"name": "fitted_residual", "arguments": arguments}
    paper = {"name": "paper", "arguments": {"inner_dim": schedule.hidden}}
    return {
        "model": paper if is_paper else residual,
        "loss": "mse",
        "training": {
            "epochs": epochs,
            "optimizer": "adam" if is_paper else "adamw",
            "learning_rate": PAPER_RECIPE.learning_rate if is_paper else RATE,
            "weight_decay": PAPER_RECIPE.weight_decay if is_paper else DECAY,
            "batch_size": min(schedule.batch_rows, pairs),
            "warmup_epochs": epochs * PAPER_RECIPE.warmup_epochs / PAPER_RECIPE.epochs if is_paper else 1,
            "schedule": "step",
            "freeze_batch_norm_from": PAPER_RECIPE.freeze_batch_norm_from if is_paper else 1.0,
            "seed": schedule.seed % (1 << 32),
        },
    }


def _own_files(pairs: Pairs, inputs: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str] | None:
    """Return the user's files where they are .npy and their rows are the pairs, in their order."""
    files = {name: inputs.get(name) for name in names}
    if inputs.get("old_ids") or inputs.get("new_ids") or len(pairs) != pairs.matched or pairs.only_old:
        return None
    if not all(isinstance(file, Path) and file.suffix == ".npy" and file.is_file() for file in files.values()):
        return None
    return {name: str(file.absolute()) for name, file in files.items() if isinstance(file, Path)}


def _written(pairs: Pairs, names: tuple[str, ...], folder: Path) -> dict[str, str]:
    for name in names:
        rows: Float32Array = getattr(pairs, name)
        with DurableWriter(folder / f"{name}.npy") as writer:
            writer.write(npy_header_bytes(rows.shape, rows.dtype))
            writer.write(rows.data)
    return {name: str((folder / f"{name}.npy").absolute()) for name in names}
