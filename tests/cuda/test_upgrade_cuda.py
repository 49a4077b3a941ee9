"""Whole upgrades on a device: equal to the CPU's within the precision's limits, resumed to the byte, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support.bundles import core_bundle
from support.compiled import cosines
from support.cuda import memory, no_device
from support.galleries import write_gallery
from support.outputs import relative_error
from support.programs import linear_map, paper_h

from fct_infer import load_transformation, upgrade_gallery
from fct_infer.artifacts.precisions import LIMITS
from fct_infer.errors import OutputError
from fct_infer.index.faiss_module import faiss
from fct_infer.index.gpu_faiss import why_no_gpu
from fct_infer.reference import apply_float64
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.stream import index_rows

PROGRAM = paper_h(48, 32, 40, inner=160, seed=3)
ROWS = (3000, 37, 1, 4096)


def command(*arguments: object, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "fct_infer.cli.upgrade_gallery", *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def published(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((folder / "embeddings").glob("*.npy"))])


def result_of(dest: Path) -> dict[str, bytes]:
    """Everything an upgrade promises to be repeatable; the infos hold times."""
    names = ("embeddings/*.npy", "ids/*.npy", "index.faiss")
    return {str(path.relative_to(dest)): path.read_bytes() for name in names for path in sorted(dest.glob(name))}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_command_gives_what_float64_gives(place, tmp_path, with_faiss, dtype, normalize):
    device, precision = place
    arrays = write_gallery(tmp_path / "g", ROWS, old_dim=48, side_dim=32, dtype=dtype, ids="int", seed=50)
    arguments = [tmp_path / "g", "--transformation", core_bundle(PROGRAM, tmp_path / "h"), "-o", tmp_path / "new"]
    arguments += ["--device", device, "--precision", precision, "--index", "Flat", "--json", "--block-rows", 500]
    report = json.loads(command(*arguments, *(["--normalize"] if normalize else [])).stdout)
    assert (report["settings"]["device"], report["settings"]["precision"]) == (device.partition(":")[0], precision)
    assert report["device"].startswith(device)
    found = published(tmp_path / "new")
    program = PROGRAM.with_normalization() if normalize else PROGRAM
    wanted = apply_float64(program, arrays["old"], arrays["side"])
    rounding = 1e-3 if dtype == "float16" else 0
    assert found.dtype == dtype
    assert relative_error(found, wanted) <= LIMITS[precision].max_relative_error + rounding
    assert cosines(found, wanted).min() >= LIMITS[precision].min_cosine - rounding
    ids = [np.load(path) for path in sorted((tmp_path / "new" / "ids").glob("*.npy"))]
    np.testing.assert_array_equal(np.concatenate(ids), arrays["ids"])


def test_without_side_information_and_at_any_block_size(device, tmp_path):
    write_gallery(tmp_path / "g", ROWS, old_dim=24, side_dim=None, seed=50)
    bundle = core_bundle(linear_map(24, 16, seed=3), tmp_path / "h")
    results = []
    for block_rows in (7, 40, 333, 65536):
        h = load_transformation(bundle, "fp32", device=device)
        settings = Settings(index="none", block_rows=block_rows)
        upgrade_gallery(tmp_path / "g", h, tmp_path / f"new{block_rows}", settings=settings)
        results.append(published(tmp_path / f"new{block_rows}").tobytes())
    assert len(set(results)) == 1


def test_all_devices_together_publish_the_same_bytes(device_number, tmp_path, with_faiss):
    from fct_infer.cuda import cuda_status

    devices = cuda_status().devices
    alike = ",".join(f"cuda:{each.index}" for each in devices if each.name == devices[0].name)
    write_gallery(tmp_path / "g", ROWS, old_dim=48, side_dim=32, seed=50)
    bundle = core_bundle(PROGRAM, tmp_path / "h")
    for name, device in (("one", device_number), ("all", alike)):
        arguments = [tmp_path / "g", "--transformation", bundle, "-o", tmp_path / name, "--device", device]
        command(*arguments, "--index", "Flat", "--precision", "fp16")
    assert result_of(tmp_path / "one") == result_of(tmp_path / "all")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_rows_go_into_the_index_where_they_lie(device_number, tmp_path, with_faiss, metric, dtype):
    if reason := why_no_gpu(device_number):
        no_device(reason)
    arrays = write_gallery(tmp_path / "g", ROWS, old_dim=48, side_dim=32, ids="int", seed=50)
    h = load_transformation(core_bundle(PROGRAM, tmp_path / "h"), "fp32", device=device_number)
    settings = Settings(index="IVF8,Flat", metric=metric, dtype=dtype, block_rows=300)
    report = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=settings)
    assert report.index_placement == {"train": device_number, "add": device_number, "rows": device_number}
    index = faiss().read_index(str(tmp_path / "new" / "index.faiss"))
    index.set_direct_map_type(faiss().DirectMap.Hashtable)
    stored = index.reconstruct_batch(arrays["ids"])
    np.testing.assert_allclose(stored, index_rows(published(tmp_path / "new"), metric), rtol=1e-6, atol=0)


# Runs an upgrade that kills itself with SIGKILL at the n-th write, fsync or rename.
DYING = textwrap.dedent("""
    import os, signal, sys
    from fct_infer import load_transformation, upgrade_gallery
    from fct_infer.storage import FileSystem, use_filesystem
    from fct_infer.upgrade.settings import Settings

    gallery, bundle, dest, device, precision, index, last = sys.argv[1:]
    calls = 0

    def counted(method):
        def call(self, *arguments):
            global calls
            if calls == int(last):
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return method(self, *arguments)
        return call

    class Dying(FileSystem):
        write, fsync, rename = counted(FileSystem.write), counted(FileSystem.fsync), counted(FileSystem.rename)

    h = load_transformation(bundle, precision, 1, device=device)
    with use_filesystem(Dying()):
        upgrade_gallery(gallery, h, dest, settings=Settings(index=index, block_rows=200))
    print(calls)
""")
NEVER = 1_000_000


def die_at(call: int, *arguments: object) -> int:
    command_line = [sys.executable, "-c", DYING, *map(str, arguments), str(call)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == (0 if call == NEVER else -signal.SIGKILL), done.stderr
    return int(done.stdout) if call == NEVER else call


def test_killed_and_resumed_it_ends_with_the_same_bytes(place, tmp_path, with_faiss):
    device, precision = place
    write_gallery(tmp_path / "g", (700, 41, 500), old_dim=48, side_dim=32, ids="int", seed=50)
    bundle, settings = core_bundle(PROGRAM, tmp_path / "h"), Settings(index="IVF4,PQ8x4", block_rows=200)
    call = [tmp_path / "g", bundle, tmp_path / "calm", device, precision, settings.index]
    calls = die_at(NEVER, *call)
    expected = result_of(tmp_path / "calm")
    h = load_transformation(bundle, precision, 1, device=device)
    for last in (calls // 4, calls // 2, 3 * calls // 4):
        call[2] = dest = tmp_path / f"killed{last}"
        die_at(last, *call)
        assert not dest.exists()
        report = upgrade_gallery(tmp_path / "g", h, dest, settings=settings)
        assert result_of(dest) == expected, f"killed at call {last} of {calls}, {report.resumed_rows} rows resumed"


def test_what_a_cpu_began_no_device_ends(device_number, tmp_path):
    write_gallery(tmp_path / "g", (700, 41, 500), old_dim=48, side_dim=32, seed=50)
    bundle = core_bundle(PROGRAM, tmp_path / "h")
    for first, second in (("cpu", device_number), (device_number, "cpu")):
        dest = tmp_path / first.partition(":")[0]
        calls = die_at(NEVER, tmp_path / "g", bundle, tmp_path / f"{dest.name}-calm", first, "fp32", "none")
        die_at(calls // 2, tmp_path / "g", bundle, dest, first, "fp32", "none")
        h = load_transformation(bundle, "fp32", 1, device=second)
        with pytest.raises(OutputError, match="A CPU and a device differ in the last bits"):
            upgrade_gallery(tmp_path / "g", h, dest, settings=Settings(index="none", block_rows=200))


def test_a_row_that_is_not_finite_is_named_and_nothing_is_published(device, tmp_path):
    write_gallery(tmp_path / "g", ROWS, old_dim=48, side_dim=32, seed=50)
    path = tmp_path / "g" / "side_information" / "000003.npy"
    rows = np.load(path)
    rows[2017, 5] = np.nan
    np.save(path, rows)
    bundle = core_bundle(PROGRAM, tmp_path / "h")
    call = [tmp_path / "g", "--transformation", bundle, "-o", tmp_path / "new", "--device", device, "--index", "none"]
    done = command(*call, exit_code=4)
    assert "side_information/000003.npy: row 2017 holds NaN or infinity" in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["g", "h"]


def test_too_little_memory_is_said_and_nothing_is_left(device_number, tmp_path, with_faiss):
    write_gallery(tmp_path / "g", ROWS, old_dim=48, side_dim=32, seed=50)
    call = [tmp_path / "g", "--transformation", core_bundle(PROGRAM, tmp_path / "h"), "-o", tmp_path / "new"]
    done = command(*call, "--device", device_number, "--device-memory", "1MiB", exit_code=5)
    assert "at hand are 1 MiB" in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["g", "h"]
    command(*call, "--device", device_number, "--device-memory", memory(128, 36), "--index", "none")
    done = command(*call, "--device-memory", "1MiB", "--index", "none", "--force")  # no device was asked for
    assert "has too little memory" in done.stderr and "the CPU computes in its place" in done.stderr
    assert json.loads((tmp_path / "new" / "upgrade_infos.json").read_text())["settings"]["device"] == "cpu"
