"""``fct-upgrade-gallery`` with transformations that the core cannot run, and with other runtimes for those it can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from support.galleries import write_gallery
from support.torch_models import GatedTransformation, PublicTransformation, outputs, randomized, scripted

from fct_infer import load_transformation, upgrade_gallery
from fct_infer.artifacts.precisions import LIMITS
from fct_infer.cli.upgrade_gallery import command, main
from fct_infer.errors import GalleryError, OutputError, StoppedError, UnsupportedError, UsageError
from fct_infer.export import Options, export_file, export_transformation
from fct_infer.gallery import Gallery
from fct_infer.upgrade.settings import Settings

ROWS = (300, 37, 200)
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def gated() -> torch.nn.Module:
    torch.manual_seed(0)
    return GatedTransformation(24, 10, 32).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, gated) -> Path:
    """``gated`` has LayerNorm and Sigmoid; ``public`` was a TorchScript archive with random batch-norm statistics."""
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(1)
    public = randomized(PublicTransformation(24, 10, 32, 70))
    torch.save(public, folder / "public.module")
    export_transformation(gated, folder / "gated", Options(("onnx", "torchscript"), ("fp32", "fp16")))
    export_transformation(gated, folder / "code", Options(("torchscript",)))
    export_file(scripted(public, folder / "public.pt"), folder / "public", Options(("core", "onnx", "pt2")))
    return folder


def upgrade(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=True)


def read_all(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])


def gallery(path: Path, dtype: str = "float32", seed: int = 1) -> dict[str, np.ndarray]:
    return write_gallery(path, ROWS, old_dim=24, side_dim=10, dtype=dtype, ids="int", seed=seed)


def wanted(model: torch.nn.Module, arrays: dict[str, np.ndarray], tail: tuple[int, ...] = ()) -> np.ndarray:
    rows = [arrays[name].astype(np.float32) for name in ("old", "side")]
    return outputs(model, *(each.reshape(*each.shape, *tail) for each in rows))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("normalize", [False, True])
def test_what_the_core_cannot_run_goes_through_onnx_runtime(tmp_path, folder, gated, dtype, normalize):
    arrays = gallery(tmp_path / "g", dtype)
    more = ["--normalize"] if normalize else []
    done = upgrade(
        tmp_path / "g", "--transformation", folder / "gated", "-o", tmp_path / "new", "--index", "Flat", "--json", *more
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["settings"]["backend"] == "onnxruntime"
    assert report["verification"]["min_cosine"] >= LIMITS["fp32"].min_cosine
    expected = wanted(gated, arrays).astype(np.float64)
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    published = read_all(tmp_path / "new" / "embeddings")
    assert published.dtype == dtype
    relative = 2e-3 if dtype == "float16" else 1e-4
    assert np.abs(published - expected).max() <= relative * np.abs(expected).max()
    assert (tmp_path / "new" / "index.faiss").is_file()
    np.testing.assert_array_equal(read_all(tmp_path / "new" / "ids"), arrays["ids"])


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("auto", "fp32"), ("core", "fp32"), ("onnxruntime", "auto"), ("torch", "auto")],
)
def test_a_round_trip_from_torchscript_equals_its_output(tmp_path, folder, backend, precision):
    arrays = gallery(tmp_path / "g")
    done = upgrade(
        tmp_path / "g", "--transformation", folder / "public", "-o", tmp_path / "new", "--index", "none",
        "--backend", backend, "--precision", precision,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    expected = wanted(torch.load(folder / "public.module", weights_only=False), arrays, (1, 1))
    published = read_all(tmp_path / "new" / "embeddings")
    assert np.abs(published - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_bare_archive_named_by_the_user_is_trusted_and_said_to_be_code(tmp_path, folder):
    arrays = gallery(tmp_path / "g")
    done = upgrade(
        tmp_path / "g", "--transformation", folder / "public.pt", "-o", tmp_path / "new", "--index", "none",
        "--precision", "fp32",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "which is code and runs with your rights" in done.stderr
    expected = wanted(torch.load(folder / "public.module", weights_only=False), arrays, (1, 1))
    assert np.abs(read_all(tmp_path / "new" / "embeddings") - expected).max() <= 1e-4 * np.abs(expected).max()


def test_code_in_a_bundle_runs_only_if_its_backend_is_named(tmp_path, folder):
    gallery(tmp_path / "g")
    call = [tmp_path / "g", "--transformation", folder / "code", "-o", tmp_path / "new", "--index", "none"]
    refused = upgrade(*call)
    assert isinstance(refused.exception, UsageError)
    assert "holds code that runs when it is loaded" in str(refused.exception)
    assert not (tmp_path / "new").exists()
    assert upgrade(*call, "--backend", "torch").exit_code == 0


@pytest.mark.parametrize(
    ("more", "exit_code", "message"),
    [
        (["--backend", "core"], 4, "the bundle holds no program, only files for onnx, torchscript"),
        (["--device", "cuda"], 2, "device cuda"),
        (["--precision", "bf16"], 4, "has 'onnx' in fp32, fp16, not in bf16"),
        (["--backend", "tensorrt"], 4, "has no file for 'tensorrt', only for onnx, torchscript"),
        (["--backend", "openvino"], 2, "'openvino' is not one of"),
    ],
)
def test_mistakes_end_with_one_line_and_an_exit_code(tmp_path, folder, monkeypatch, capsys, more, exit_code, message):
    if torch.cuda.is_available() and "--device" in more:
        pytest.skip("there is a device")
    gallery(tmp_path / "g")
    arguments = [tmp_path / "g", "--transformation", folder / "gated", "-o", tmp_path / "new", *more]
    monkeypatch.setattr(sys, "argv", ["fct-upgrade-gallery", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert caught.value.code == exit_code, printed.err
    assert message in printed.err and "Traceback" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_row_that_is_not_finite_is_named_with_its_shard(tmp_path, folder, backend):
    gallery(tmp_path / "g")
    path = tmp_path / "g" / "embeddings" / "000001.npy"
    rows = np.load(path)
    rows[5, 2] = np.nan
    np.save(path, rows)
    h = load_transformation(folder / "gated", backend=backend, trust=True)
    with pytest.raises(GalleryError, match=r"embeddings/000001\.npy: row 5 "):
        upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=Settings(index="none", block_rows=40))
    assert not (tmp_path / "new").exists()


def test_fp16_keeps_its_own_limit(tmp_path, folder, gated):
    arrays = gallery(tmp_path / "g")
    h = load_transformation(folder / "gated", "fp16")
    report = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=Settings(index="none"))
    assert report.settings["precision"] == "fp16"
    published, expected = read_all(tmp_path / "new" / "embeddings"), wanted(gated, arrays)
    assert np.abs(published - expected).max() <= LIMITS["fp16"].max_relative_error * np.abs(expected).max()


DYING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from fct_infer import load_transformation, upgrade_gallery
from fct_infer.gallery import Gallery
from fct_infer.upgrade.settings import Settings

gallery, dest, bundle, backend = sys.argv[2:6]
h = load_transformation(bundle, threads=1, backend=backend, trust=True)

def progress(stage, rows, *more):
    journal = os.path.join(dest + ".partial", "journal.jsonl")
    if os.path.exists(journal) and open(journal).read().count('"shard"') >= 1:
        os.kill(os.getpid(), signal.SIGKILL)

upgrade_gallery(gallery, h, dest, settings=Settings(index="Flat", block_rows=64), progress=progress)
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_killed_upgrade_is_resumed_to_the_same_bytes_by_the_same_backend_only(tmp_path, folder, backend):
    gallery(tmp_path / "g")
    settings = Settings(index="Flat", block_rows=64)
    h = load_transformation(folder / "gated", threads=1, backend=backend, trust=True)
    upgrade_gallery(tmp_path / "g", h, tmp_path / "calm", settings=settings)
    call = [sys.executable, "-c", DYING, TESTS, tmp_path / "g", tmp_path / "new", folder / "gated", backend]
    done = subprocess.run(
        [*map(str, call)], capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "new").exists()

    other = load_transformation(folder / "gated", backend={"torch": "onnxruntime"}.get(backend, "torch"), trust=True)
    with pytest.raises((OutputError, StoppedError)):
        upgrade_gallery(tmp_path / "g", other, tmp_path / "new", settings=settings)
    report = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=settings)
    assert report.resumed_rows >= ROWS[0]
    for path in [*(tmp_path / "calm" / "embeddings").iterdir(), tmp_path / "calm" / "index.faiss"]:
        assert path.read_bytes() == (tmp_path / "new" / path.relative_to(tmp_path / "calm")).read_bytes(), path.name


def test_a_device_that_is_not_there_is_never_replaced_by_the_cpu(folder):
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    for backend in ("onnxruntime", "torch"):
        with pytest.raises(UnsupportedError, match="device cuda"):
            load_transformation(folder / "gated", backend=backend, device="cuda", trust=True)


def test_a_bare_file_says_which_input_is_which(tmp_path, monkeypatch, capsys):
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Concat", ["psi", "phi"], ["y"], axis=1)],
        "g",
        [onnx.helper.make_tensor_value_info(name, 1, ["n", 8]) for name in ("psi", "phi")],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 16])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "h.onnx")
    arrays = write_gallery(tmp_path / "g", rows_per_shard=(9,), old_dim=8, side_dim=8)
    arguments = [tmp_path / "g", "--transformation", tmp_path / "h.onnx", "-o", tmp_path / "new", "--index", "none"]
    monkeypatch.setattr(sys, "argv", ["fct-upgrade-gallery", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert "h.onnx: inputs: psi -> side, phi -> old" in capsys.readouterr().err
    found = Gallery.open(tmp_path / "new").read_rows(np.arange(9))[0]
    np.testing.assert_allclose(found, np.concatenate([arrays["side"], arrays["old"]], axis=1), rtol=1e-6)
