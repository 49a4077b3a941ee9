"""Emoji are cut out of their sheets; the page of a seed says which claims held."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def sheets(tmp_path, monkeypatch):
    """Twelve emoji of flat colours on a sheet of 3 x 4 cells, another for each vendor; one is a flag."""
    from reproduction import pictures

    vendors = ("apple", "facebook", "google", "twitter")
    known = [
        {"unified": f"1F6{at:02}", "category": "Flags" if at == 3 else "Objects", "sheet_x": at % 3, "sheet_y": at // 3}
        | {f"has_img_{vendor}": at != 4 or vendor != "apple" for vendor in vendors}
        for at in range(12)
    ]
    (tmp_path / "emoji.json").write_text(json.dumps(known))
    for number, vendor in enumerate(vendors):
        pixels = np.zeros((4 * 34, 3 * 34, 4), np.uint8)
        for each in known:
            y, x = each["sheet_y"] * 34 + 1, each["sheet_x"] * 34 + 1
            pixels[y + 1 : y + 32, x : x + 32] = (20 * int(each["unified"][-2:]), number, 0, 255)  # one line is clear
        place = tmp_path / "img" / vendor / "sheets" / "32.png"
        place.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(place)
    monkeypatch.setattr(pictures, "package", lambda name, version: tmp_path)
    pictures._drawings.cache_clear()
    yield
    pictures._drawings.cache_clear()


def test_drawings_of_all_vendors_are_of_the_same_emoji(sheets):
    from reproduction.pictures import EXPERIMENT, SCALE, VENDORS, emoji

    data = emoji(2)
    known = set(range(12)) - {3, 4}  # no flag, none that a vendor lacks
    assert sorted(data.classes) == [f"1F6{at:02}" for at in sorted(known)]
    assert data.targets == [*range(10), *range(10)]
    numbers = {"apple": 0, "facebook": 1, "google": 2, "twitter": 3}
    for split, vendors in VENDORS.items():
        images = EXPERIMENT.images(split, SCALE)
        assert images.images.shape == (10 * len(vendors), 32, 32, 3)
        for row, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
            assert (image[0] == 255).all()  # what is clear is white
            assert (image[1:] == (20 * int(data.classes[label][-2:]), numbers[vendors[row // 10]], 0)).all()
    assert np.array_equal(data[12][0], EXPERIMENT.images("train", SCALE).images[12]) and data[12][1] == 2


def test_a_seed_is_trained_and_judged(sheets, tmp_path):
    from reproduction.experiment import Scale
    from reproduction.pictures import EXPERIMENT, LINKS, MODELS, judge
    from reproduction.runs import Runs, train_link, train_model

    quick = ("training.epochs=1", "training.batch_size=4", "training.warmup_epochs=0")
    runs = Runs(tmp_path, 0, Scale(2, 1, quick, (*quick, "validation=0.2")), "cpu", EXPERIMENT)
    for model in MODELS:
        train_model(runs, model)
    for link in LINKS:
        train_link(runs, link)
    assert runs.embeddings("old", "train").shape == (20 * 20, 128)  # views of two drawings each
    assert runs.transformed("h", "gallery").shape == runs.embeddings("new", "queries").shape == (10, 128)
    found = judge(runs)
    assert all(0 < shares["mAP"] <= 1 for shares in found["rows"].values())


def test_every_configuration_is_there():
    from reproduction.pictures import EXPERIMENT, MODELS, SCALE
    from reproduction.runs import Runs

    runs = Runs(EXPERIMENT.configs, 1, SCALE, "cpu", EXPERIMENT)
    for model in MODELS.values():
        assert runs.values(model.config, model.changes)["training"]["seed"] > 100
    assert runs.values("transformation", ())["model"]["name"] == "paper"
    jobs = runs.jobs()
    assert all(need in jobs for job in jobs.values() for need in job.needs)


def test_the_page_says_of_each_claim_whether_the_queries_can_tell():
    from reproduction.pictures import CLAIMS, page

    def seed(share, *gains):
        names = dict.fromkeys(row for _, *rows in CLAIMS for row in rows)
        rows = {name: dict.fromkeys(("CMC-1", "CMC-5", "mAP"), share) for name in names}
        found = {text: {"mean": gain, "standard_error": 0.01} for (text, *_), gain in zip(CLAIMS, gains, strict=True)}
        return {"rows": rows, "gains": found}

    text = page([seed(0.2, 0.05, 0.02, 0, 0, 0, -0.02, 0), seed(0.26, 0.05, -0.02, 0, 0, 0, -0.03, 0)], "a test")
    assert "2 seeds, mean and standard deviation" in text and "Computed a test." in text
    assert "| BCT new/old | 23.0 ± 3.0 | 23.0 ± 3.0 | 23.0 ± 3.0 |" in text
    assert "- **yes**: FCT without side-information is above BCT: +5.0 ± 0.7." in text
    assert "- **cannot be told**: FCT with side-information is above BCT: +0.0 ± 0.7." in text
    assert "- **no**: BCT costs the new model: independent new/new above BCT's: -2.5 ± 0.7." in text
