"""Google's store, as far as its emulator goes: the same bytes, versions, and a store that keeps no conditions."""

from __future__ import annotations

import gcsfs
import numpy as np
import pytest
from support.programs import linear_map
from support.servers import gcs_server

from fct_infer import Transformation, open_gallery, open_source, upgrade_gallery
from fct_infer.errors import OutputError
from fct_infer.gallery.versions import list_versions, rollback
from fct_infer.storage import objects
from fct_infer.upgrade.settings import Settings

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)
FLAT = Settings(index="Flat", block_rows=30)


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "a.npy", VECTORS)
    return tmp_path / "a.npy"


@pytest.fixture
def environment(monkeypatch, request):
    with gcs_server(keeps_conditions=request.param) as found:
        for name, value in found.items():
            monkeypatch.setenv(name, value)
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield found
        gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.mark.parametrize("environment", [True], indirect=True)
def test_a_gallery_goes_there_and_comes_back(tmp_path, source, environment, monkeypatch):
    monkeypatch.setattr(objects, "PIECE_BYTES", 1 << 18)  # an index and shards in several pieces
    h, other = (Transformation(linear_map(12, 640, seed=seed)) for seed in (1, 2))
    url = "gs://bucket/new"
    upgrade_gallery(source, h, url, settings=FLAT)
    upgrade_gallery(source, h, tmp_path / "local", settings=FLAT)
    shard = open_source(url).read_rows(np.arange(230))[0]
    assert shard.tobytes() == open_source(tmp_path / "local").read_rows(np.arange(230))[0].tobytes()
    found = open_gallery(url)
    assert found.verify().index_opened and not found.verify().damaged
    upgrade_gallery(source, other, url, settings=Settings(index="none", block_rows=30), force=True)
    assert [each.is_current for each in list_versions(url)] == [True, False]
    assert rollback(url).version.damage is None
    assert open_source(url).read_rows(np.arange(230))[0].tobytes() == shard.tobytes()


@pytest.mark.parametrize("environment", [False], indirect=True)
def test_a_server_that_keeps_no_conditions_is_refused(source, environment):
    with pytest.raises(OutputError, match="If-None-Match"):
        upgrade_gallery(source, Transformation(linear_map(12, 10, seed=1)), "gs://bucket/new", settings=FLAT)
