"""FastFill's h tells which rows it is unsure of: from training through its bundle to the order of backfilling."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.features import make_columns, write_columns
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, open_source, upgrade_gallery
from fct_infer.artifacts.bundle import open_bundle
from fct_infer.artifacts.uncertainty import FILE_NAME, uncertainty_of
from fct_infer.backends.loading import load_transformation
from fct_infer.cli.backfill import command as backfill
from fct_infer.cli.export import command as export
from fct_infer.errors import ArtifactError, UsageError
from fct_infer.gallery import GalleryWriter
from fct_infer.reference import apply_float64
from fct_infer.serving import read_backfilled
from fct_infer.serving.orders import read_uncertainties
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.checkpoints import load_checkpoint
from fct_infer.training.models.folding import to_uncertainty_program
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.trainers.transformation_run import run_transformation
from fct_infer.upgrade.settings import Settings

ROWS, OLD, SIDE, NEW = 60, 6, 6, 8


def run(command, *arguments: object) -> str:
    done = CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``run`` of FastFill, its ``h`` as a bundle, galleries ``old`` and ``new``, and ``dest``, upgraded by h."""
    folder = tmp_path_factory.mktemp("fastfill")
    features = write_columns(folder / "features", make_columns(300, classes=4), (300,))
    np.save(folder / "classifier.npy", np.random.default_rng(1).standard_normal((4, NEW)).astype(np.float32))
    config = {
        "data": {name: str(path) for name, path in features.items()},
        "model": {"name": "paper", "arguments": {"inner_dim": 16}},
        "training": {"epochs": 2, "learning_rate": 3e-3, "batch_size": 100, "warmup_epochs": 1},
        "validation": 0.2,
        "loss": "fastfill",
        "classifier": str(folder / "classifier.npy"),
    }
    with RunFolder(folder / "run") as training:
        run_transformation(config, training)
    run(export, folder / "run", "-o", folder / "h", "--targets", "core")
    arrays = write_gallery(folder / "old", (20, 40), OLD, side_dim=SIDE, ids="int")
    upgrade_gallery(folder / "old", load_transformation(folder / "h"), folder / "dest", settings=Settings(index="none"))
    with GalleryWriter(folder / "new") as writer:
        writer.append(np.random.default_rng(2).standard_normal((ROWS, NEW), np.float32), ids=arrays["ids"])
    module, _ = load_checkpoint(folder / "run" / "checkpoint", TransformationModule)
    return folder, arrays, apply_float64(to_uncertainty_program(module), arrays["old"], arrays["side"])[:, 0]


def test_the_bundle_holds_it_proven_and_hands_it_on(made):
    folder, _, _ = made
    bundle = open_bundle(folder / "h")
    file = bundle.file("uncertainty")
    assert (file.name, file.precision, file.parity.min_cosine > 0.999) == (FILE_NAME, "fp32", True)
    assert 0 < file.parity.max_relative_error < 1e-5
    assert "uncertainty" in run(export, folder / "h", "-o", folder / "onward", "--targets", "core")
    assert uncertainty_of(open_bundle(folder / "onward")).digest == uncertainty_of(bundle).digest


@pytest.mark.parametrize(
    ("source", "more"),
    [("dest", ("--uncertainty", "h")), ("old", ("--transformation", "h"))],
    ids=["published rows", "old rows"],
)
def test_rows_come_in_the_order_of_its_uncertainty(made, tmp_path, source, more):
    folder, arrays, expected = made
    more = [folder / each if each == "h" else each for each in more]
    ended = run(
        backfill, folder / source, "-o", tmp_path / "back", "--embed", folder / "new", "--order", "uncertainty", *more,
        "--until", 50, "--probe-rows", 0, "--part-rows", 10, "--json",
    )  # fmt: skip
    assert json.loads(ended)["new"] == ROWS // 2
    found = np.concatenate([ids for ids, _ in read_backfilled(tmp_path / "back")])
    assert found.tolist() == arrays["ids"][np.argsort(-expected, kind="stable")][: ROWS // 2].tolist()


def test_what_it_cannot_tell_is_refused(made, tmp_path):
    folder, _, expected = made
    source = open_source(folder / "dest")
    np.testing.assert_allclose(read_uncertainties(folder / "h", source), expected, rtol=1e-4, atol=1e-5)
    core_bundle(linear_map(OLD, NEW), tmp_path / "other")
    with pytest.raises(ArtifactError, match="other: tells no uncertainty; bundles that fct-export makes of a FastFill"):
        read_uncertainties(tmp_path / "other", source)
    with pytest.raises(UsageError, match="of another transformation or normalised; name the old rows as SOURCE"):
        read_uncertainties(folder / "h", open_source(folder / "old"), Transformation(linear_map(OLD, NEW)))
    settings = Settings(index="none", normalize=True)
    upgrade_gallery(folder / "old", load_transformation(folder / "h"), tmp_path / "unit", settings=settings)
    with pytest.raises(UsageError, match="unit: these rows are not as"):
        read_uncertainties(folder / "h", open_source(tmp_path / "unit"))
    with pytest.raises(UsageError, match="of rows 8 wide, these are 6 wide"):
        read_uncertainties(folder / "h", open_source(folder / "old"))
