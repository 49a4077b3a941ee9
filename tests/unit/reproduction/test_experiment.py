"""The experiment's tables name models, transformations and configurations that exist; one seed runs in small."""

from __future__ import annotations

import math


def test_everything_named_exists(tmp_path):
    from reproduction.experiment import ACROSS, LINKS, MODELS, PSI, SMALL, STEPS
    from reproduction.runs import Runs

    jobs = Runs(tmp_path, 0, SMALL, "cpu").jobs()
    assert len(jobs) == len(MODELS) + len(LINKS)
    assert all(need in jobs for job in jobs.values() for need in job.needs)
    assert {*ACROSS.values(), *STEPS.values()} <= set(LINKS)
    assert set(PSI) <= set(MODELS)
    for (gallery, query), name in STEPS.items():
        assert (LINKS[name].old, LINKS[name].new) == (gallery, query)


def test_a_link_is_trained_on_what_its_models_see(tmp_path):
    from reproduction.experiment import WITH, WITHOUT, Scale
    from reproduction.runs import Runs, train_link, train_model

    quick = ("training.epochs=1", "training.batch_size=20", "training.warmup_epochs=0")
    runs = Runs(tmp_path, 0, Scale(2, 1, quick, quick), "cpu")
    for model in ("old", "new", "simclr-64"):
        train_model(runs, model)
    assert runs.embeddings("old").shape == (100, 128)
    assert runs.embeddings("simclr-64", "train").shape == (2 * 200, 64)
    for name, side in ((WITHOUT, 0), (WITH, 64)):
        train_link(runs, name)
        assert runs.transformation(name).side_dim == side
        transformed = runs.transformed(name)
        assert transformed.shape == (100, 128)
        assert math.isfinite(transformed.sum())
    train_link(runs, WITH)  # finished: nothing to do
