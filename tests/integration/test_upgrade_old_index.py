"""``--old-index``: training begins with the lists of the index there is."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.faults import FailNth
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, load_index, upgrade_gallery
from fct_infer.cli.upgrade_gallery import command
from fct_infer.errors import OutputError, ResourceError, UsageError
from fct_infer.storage import use_filesystem
from fct_infer.upgrade.settings import Settings

H = Transformation(linear_map(6, 8), precision="fp32")
LISTS = 8


@pytest.fixture
def gallery(tmp_path):
    return write_gallery(tmp_path / "g", (400, 300, 500), old_dim=6, side_dim=None, ids="int")


@pytest.fixture
def old(tmp_path, gallery):
    index = faiss.index_factory(6, f"IVF{LISTS},Flat")
    index.train(gallery["old"])
    index.add_with_ids(gallery["old"], gallery["ids"])
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    return tmp_path / "old.faiss"


def upgrade(tmp_path, dest, old, index=f"IVF{LISTS},Flat", **more):
    settings = Settings(index=index, block_rows=64, old_index=old)
    return upgrade_gallery(tmp_path / "g", H, tmp_path / dest, settings=settings, **more)


@pytest.mark.parametrize("index", [f"IVF{LISTS},Flat", f"IVF{LISTS},SQ8", f"IVF{LISTS},PQ4", "auto"])
def test_the_report_says_what_came_of_it(tmp_path, old, index):
    report = upgrade(tmp_path, "dest", old, index)
    assert "as the old index's" in report.index_placement["lists"]  # kept or not is chance in so small a gallery
    assert load_index(tmp_path / "dest").index.nlist == LISTS
    assert report.verification.recall_at_10 > 0.4
    infos = json.loads((tmp_path / "dest" / "upgrade_infos.json").read_text())
    assert len(infos["inputs"]["settings"]["old_index"]) == 64


def test_a_published_folder_is_an_old_index(tmp_path, old):
    upgrade(tmp_path, "first", None)
    report = upgrade(tmp_path, "second", tmp_path / "first")
    assert "old index's" in report.index_placement["lists"]


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, old):
    calm = upgrade(tmp_path, "calm", old, f"IVF{LISTS},PQ4")
    expected, found = (tmp_path / "calm" / "index.faiss").read_bytes(), []
    for call in range(0, 40, 5):
        dest = f"dest{call}"
        try:
            with use_filesystem(FailNth("write", call)):
                upgrade(tmp_path, dest, old, f"IVF{LISTS},PQ4")
            continue
        except ResourceError:
            pass
        report = upgrade(tmp_path, dest, old, f"IVF{LISTS},PQ4")
        found.append(report.index_placement["train"])
        assert report.index_placement["lists"] == calm.index_placement["lists"]
        assert (tmp_path / dest / "index.faiss").read_bytes() == expected
    assert {"cpu", "an earlier run"} == set(found)


def test_another_old_index_is_another_upgrade(tmp_path, old):
    with use_filesystem(FailNth("write", 20)), pytest.raises(ResourceError):
        upgrade(tmp_path, "dest", old)
    with pytest.raises(OutputError, match="old_index"):
        upgrade(tmp_path, "dest", None)


def test_what_does_not_fit_is_refused_before_any_work(tmp_path, gallery, old):
    with pytest.raises(UsageError, match=r"has 8 lists, wanted as many as index 'IVF4,Flat'"):
        upgrade(tmp_path, "dest", old, "IVF4,Flat")
    with pytest.raises(UsageError, match="index is none"):
        upgrade(tmp_path, "dest", old, "none")
    flat = faiss.IndexFlatL2(6)
    flat.add(gallery["old"])
    faiss.write_index(flat, str(tmp_path / "flat.faiss"))
    with pytest.raises(UsageError, match="no inverted lists"):
        upgrade(tmp_path, "dest", tmp_path / "flat.faiss")
    write_gallery(tmp_path / "g", (400, 300, 501), old_dim=6, side_dim=None, ids="int")
    with pytest.raises(UsageError, match=r"holds 1,200 rows, the gallery 1,201"):
        upgrade(tmp_path, "dest", old)
    assert not (tmp_path / "dest.partial").exists()


def test_unknown_ids_are_named(tmp_path, gallery, old):
    index = faiss.read_index(str(old))
    index.remove_ids(gallery["ids"][7:8])
    index.add_with_ids(gallery["old"][7:8], np.array([10**9]))
    faiss.write_index(index, str(old))
    with pytest.raises(UsageError, match=f"does not hold id {gallery['ids'][7]} of the gallery"):
        upgrade(tmp_path, "dest", old)


def test_on_the_command_line(tmp_path, old):
    core_bundle(linear_map(6, 8), tmp_path / "h")
    arguments = [str(tmp_path / "g"), "--transformation", str(tmp_path / "h"), "-o", str(tmp_path / "dest")]
    arguments += ["--old-index", str(old)]
    said = CliRunner().invoke(command, [*arguments, "--dry-run"]).output
    assert "for training the index, or less if the old index's lists prove as good" in " ".join(said.split())
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert "as the old index's" in " ".join(done.output.split())
