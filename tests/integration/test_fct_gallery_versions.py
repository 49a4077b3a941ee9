"""``fct-upgrade-gallery --keep``, ``fct-gallery versions`` and ``rollback`` as they are typed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.commands import run_command
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import load_index
from fct_infer.cli import gallery, upgrade_gallery
from fct_infer.errors import UsageError


def run(command, *arguments):
    done = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def upgrade(tmp_path):
    core_bundle(linear_map(6, 4), tmp_path / "h")

    def run_it(seed, *more):
        source = tmp_path / f"g{seed}"
        if not source.exists():
            write_gallery(source, (30,), old_dim=6, side_dim=None, seed=seed)
        arguments = (source, "--transformation", tmp_path / "h", "-o", tmp_path / "dest", "--index", "Flat", "--force")
        return run(upgrade_gallery.command, *arguments, "--device", "cpu", *more)

    return run_it


def test_from_one_version_to_another(tmp_path, upgrade):
    dest = tmp_path / "dest"
    upgrade(1)
    before = load_index(dest)
    upgrade(2, "--keep", "2")
    told = json.loads(upgrade(3, "--dry-run", "--json"))["promises"]["kept"]
    assert "stays beside it for rollback until --keep 0; older versions take" in told
    assert told in upgrade(3, "--dry-run")
    assert "nothing (--keep 0)" in upgrade(3, "--dry-run", "--keep", "0")
    lines = run(gallery.command, "versions", dest).splitlines()
    assert lines[0].split() == ["version", "published", "rows", "dim", "transformation", "size"]
    assert lines[1].endswith("current") and len(lines) == 3
    document = json.loads(run(gallery.command, "versions", dest, "--json"))
    newer, older = document["versions"]
    assert newer["is_current"] and not older["is_current"] and older["rows"] == 30 and older["damage"] is None
    said = run(gallery.command, "rollback", dest)
    assert f"is version {older['version']} again" in said and f"rollback {dest} --to {newer['version']}" in said
    queries = [[1.0, 0.5, -1.0, 2.0]]
    assert load_index(dest).search(queries, 3)[1].tolist() == before.search(queries, 3)[1].tolist()
    report = json.loads(run(gallery.command, "rollback", dest, "--to", newer["version"][:5], "--json"))
    assert report["version"]["version"] == newer["version"] and report["replaced"]["version"] == older["version"]
    again = json.loads(run(gallery.command, "rollback", dest, "--to", newer["version"], "--json"))
    assert again["version"]["version"] == newer["version"] and again["replaced"] is None
    assert "dropped: " + older["version"] in run(gallery.command, "versions", dest, "--keep", "0")
    with pytest.raises(UsageError, match="none is kept"):
        run(gallery.command, "rollback", dest)


@pytest.mark.parametrize(
    ("damage", "arguments", "code", "words"),
    [
        (None, ["--to", "ffff"], 2, "no version begins with 'ffff'; kept are "),
        ("truncate", [], 4, "is damaged: embeddings/000000.npy has"),
        ("lock", [], 6, "is in use by another process"),
        ("remove", [], 4, "is not a published gallery, and no version of it is kept"),
    ],
)
def test_exit_codes(tmp_path, upgrade, damage, arguments, code, words):
    from fct_infer.gallery.versions import list_versions
    from fct_infer.storage import FileLock

    for seed in (1, 2):
        upgrade(seed)
    dest = tmp_path / "dest"
    lock = FileLock(tmp_path / "dest.partial" / "lock", "it") if damage == "lock" else None
    if damage == "truncate":
        path = list_versions(dest)[1].path / "embeddings" / "000000.npy"
        path.write_bytes(path.read_bytes()[:-1])
    place = tmp_path / "nowhere" if damage == "remove" else dest
    done = run_command("gallery", "rollback", place, *arguments)
    if lock:
        lock.release()
    assert done.returncode == code and words in done.stderr and not done.stdout
    assert not (tmp_path / "nowhere.partial").exists()
