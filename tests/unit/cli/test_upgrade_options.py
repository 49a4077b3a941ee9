"""What ``fct-upgrade-gallery`` is told reaches what loads the transformation."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.programs import linear_map

from fct_infer.backends import loading
from fct_infer.backends.options import RuntimeOptions
from fct_infer.cli.upgrade_gallery import command


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), RuntimeOptions()),
        (("--precision", "auto", "--threads", 1), RuntimeOptions("auto", 1)),
        (("--backend", "core", "--normalize"), RuntimeOptions(backend="core", normalize=True, trust=True)),
        (("--device", "cpu", "--device-memory", "1GiB"), RuntimeOptions(device="cpu", device_memory=1 << 30)),
    ],
)
def test_options_of_the_runtime(tmp_path, monkeypatch, given, expected):
    opened, real = [], loading.open_transformation

    def noting(path, options):
        opened.append((path, options))
        return real(path, options)

    monkeypatch.setattr(loading, "open_transformation", noting)
    core_bundle(linear_map(6, 4), tmp_path / "h")
    np.save(tmp_path / "old.npy", np.random.default_rng(0).standard_normal((50, 6), np.float32))
    arguments = (tmp_path / "old.npy", "--transformation", tmp_path / "h", "-o", tmp_path / "new", "--dry-run", *given)
    done = CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)
    assert done.exception is None, done.output
    assert opened == [(tmp_path / "h", expected)]
