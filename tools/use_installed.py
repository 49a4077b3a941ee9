"""What ``try_install.py`` runs in the new environment: the installed package, by its commands and as a library."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

import fct_infer
from fct_infer.training.config import shipped_recipes

ROWS, PAIRS, DIM = 3_000, 1_000, 32


def command(name: str, *arguments: str) -> str:
    """Run an installed command and return what it prints."""
    path = Path(sys.executable).with_name(name)
    return subprocess.run([path, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def check_contents() -> None:
    """The package is the installed one, with recipes, licences and every command."""
    site = Path(sys.prefix).resolve()
    assert site in Path(fct_infer.__file__).resolve().parents, fct_infer.__file__
    assert "imagenet/old" in shipped_recipes() and site in next(iter(shipped_recipes().values())).resolve().parents
    installed = distribution("fct-infer")
    scripts = [each.name for each in installed.entry_points if each.group == "console_scripts"]
    assert len(scripts) >= 8
    for name in scripts:
        assert installed.version in command(name, "--version"), name
    licences = [str(each) for each in installed.files or () if {"licenses", "licences"} & set(each.parts)]
    for wanted in ("licenses/LICENSE", "libgomp-GPL-3", "onednn/LICENSE", "onednn/THIRD-PARTY-PROGRAMS"):
        assert any(each.endswith(wanted) for each in licences), f"{wanted} did not come along, only {licences}"
    print(f"{len(scripts)} commands, {len(shipped_recipes())} recipes, {len(licences)} licences")


def check_upgrade() -> None:
    """Fit, upgrade, search, verify; rows as NumPy computes them with the same map."""
    generator = np.random.default_rng(0)
    old = generator.standard_normal((ROWS, DIM), np.float32)
    turn = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0].astype(np.float32)
    new = old @ turn
    ids = np.sort(generator.choice(ROWS, PAIRS, replace=False))
    for name, rows in {"old": old, "new": new[ids], "ids": ids, "queries": new[:5]}.items():
        np.save(f"{name}.npy", rows)
    command("fct-fit", "--old", "old.npy", "--new", "new.npy", "--new-ids", "ids.npy", "-o", "h.bundle")
    command("fct-upgrade-gallery", "old.npy", "--transformation", "h.bundle", "-o", "DEST", "--precision", "fp32")
    command("fct-gallery", "verify", "DEST")
    found = json.loads(command("fct-gallery", "search", "DEST", "--queries", "queries.npy", "-k", "1", "--json"))
    rows = np.load("DEST/embeddings/000000.npy")
    by_library = fct_infer.load_transformation("h.bundle", precision="fp32")(old)
    np.testing.assert_allclose(rows, by_library, rtol=1e-5, atol=1e-5)
    cosine = (rows * new).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(new, axis=1)
    assert cosine.min() > 0.98, cosine.min()
    assert fct_infer.open_gallery("DEST").search(new[:5], k=1)[1].ravel().tolist() == [0, 1, 2, 3, 4]
    assert found, "the search printed nothing"
    print(f"{ROWS:,} rows upgraded and searched; smallest cosine to the true rows {cosine.min():.4f}")


if __name__ == "__main__":
    check_contents()
    check_upgrade()
