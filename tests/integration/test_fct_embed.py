"""``fct-embed`` as a user types it: from a trained module and images to a gallery that can be upgraded."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.bundles import core_bundle
from support.commands import run_command
from support.images import image_bytes, random_pixels, write_images
from support.programs import paper_h
from support.torch_models import TinyBackbone, randomized

from fct_infer.artifacts.manifest import Preprocessing, read_manifest
from fct_infer.backends.loading import load_embedder
from fct_infer.cli.embed import main
from fct_infer.embedding.preprocessing import preprocess
from fct_infer.export import Options, export_backbone
from fct_infer.gallery import Gallery
from fct_infer.storage import npy_header_bytes

RECIPE = Preprocessing((32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=36)
SIDE_RECIPE = Preprocessing((24, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", f"from fct_infer.cli.{module} import main; main()", *map(str, arguments)]


def fct_embed(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_command("embed", *arguments, env={"COLUMNS": "300"})  # tables keep their lines whole


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {"backbone": randomized(TinyBackbone(24)), "side": randomized(TinyBackbone(10), 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, models) -> Path:
    """Bundles ``backbone``, ``side`` and ``untold``, which does not tell its preprocessing."""
    folder, onnx = tmp_path_factory.mktemp("bundles"), Options(targets=["onnx"])
    export_backbone(models["backbone"], folder / "backbone", onnx, image_shape=(3, 32, 32), preprocessing=RECIPE)
    export_backbone(models["backbone"], folder / "untold", onnx, image_shape=(3, 32, 32))
    export_backbone(
        models["side"],
        folder / "side",
        onnx,
        image_shape=(3, 24, 24),
        preprocessing=SIDE_RECIPE,
        kind="side-information",
    )
    return folder


def torch_rows(model: torch.nn.Module, images: list[np.ndarray], recipe: Preprocessing) -> np.ndarray:
    batch = np.stack([preprocess(Image.fromarray(image), recipe, "x") for image in images])
    with torch.inference_mode():
        return model(torch.from_numpy(batch)).flatten(1).numpy()


def test_from_images_to_an_upgraded_gallery(folder, models, tmp_path):
    pixels = write_images(tmp_path / "photos", 20, "{:03d}.png")
    gallery = tmp_path / "my gallery"
    done = fct_embed(
        tmp_path / "photos", "--model", folder / "backbone", "--side-information", folder / "side",
        "-o", gallery, "--batch-size", 6, "--rows-per-shard", 8,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"published         {gallery}: 20 rows of 24 + 10 float32 in 3 shards\n" in done.stdout
    assert f"next: fct-upgrade-gallery '{gallery}' --transformation BUNDLE -o DEST\n" in done.stdout
    assert "embed: 20/20 images" in done.stderr
    opened = Gallery.open(gallery)
    old, side = opened.read_rows(np.arange(20))
    assert np.abs(old - torch_rows(models["backbone"], list(pixels.values()), RECIPE)).max() < 1e-5
    assert np.abs(side - torch_rows(models["side"], list(pixels.values()), SIDE_RECIPE)).max() < 1e-5
    assert np.concatenate([np.load(shard.ids) for shard in opened.shards]).tolist() == list(pixels)
    assert opened.model == load_embedder(folder / "backbone").model
    assert opened.model.digest == read_manifest(folder / "backbone").source.sha256
    assert opened.model.preprocessing["size"] == [32, 32]

    core_bundle(paper_h(24, 10, 16, inner=32), tmp_path / "h")
    upgraded = run_command(
        "upgrade_gallery", gallery, "--transformation", tmp_path / "h", "-o", tmp_path / "new", "--index", "none"
    )
    assert upgraded.returncode == 0, upgraded.stderr
    assert Gallery.open(tmp_path / "new").rows == 20


def test_json_is_one_document_and_skipped_images_are_named_on_stderr(folder, tmp_path):
    write_images(tmp_path / "photos", 5)
    (tmp_path / "photos" / "002.png").write_bytes(b"")
    (tmp_path / "photos" / "readme.txt").touch()
    arguments = (tmp_path / "photos", "--model", folder / "backbone", "-o", tmp_path / "g")
    failed = fct_embed(*arguments)
    assert failed.returncode == 4
    assert failed.stderr.endswith(f"error: {tmp_path}/photos/002.png: is empty\n") and not failed.stdout

    done = fct_embed(*arguments, "--on-error", "skip", "--json", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert f"left out: {tmp_path}/photos/002.png: is empty\n" in done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["skipped"], report["other_files"], report["dtype"]) == (4, 1, 1, "float16")
    assert report["models"][0]["backend"] == "onnxruntime" and report["images_per_second"] > 0

    again = fct_embed(*arguments, "--on-error", "skip")
    assert again.returncode == 6 and "exists already; --force" in again.stderr
    assert fct_embed(*arguments, "--on-error", "skip", "--force").returncode == 0


def test_a_folder_of_odd_photos_says_nothing_but_what_matters(folder, tmp_path):
    """Pillow's warnings name no file: a palette with alpha is fine, a bomb is an error."""
    (tmp_path / "photos").mkdir()
    Image.new("P", (40, 40)).save(tmp_path / "photos" / "1.png", transparency=bytes(range(256)))
    (tmp_path / "photos" / "2.pgm").write_bytes(b"P5 10000 10000 255\n" + bytes(100))
    done = fct_embed(tmp_path / "photos", "--model", folder / "backbone", "-o", tmp_path / "g", "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "2.pgm: 10000x10000 pixels, at most 89,478,485 are accepted" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["1.png", "--model", "untold"], 2, "export it again with --image-mean and --image-std"),
        (["1.png", "--model", "side"], 2, "makes side-information"),
        (["1.png", "--model", "missing"], 4, "missing"),
        (["1.png", "--model", "h"], 4, "holds a transformation"),
        (["1.png", "--model", "backbone", "--backend", "abacus"], 2, "'abacus' is not one of"),
        (["1.png", "--model", "backbone", "--device", "cuda:99"], 2, "cuda:99"),
        (["missing.png", "--model", "backbone"], 4, "missing.png: No such file"),
        (["wrong.npy", "--model", "backbone"], 4, "wrong.npy: holds float64 (2, 3)"),
        (["a.npy", "1.png", "--model", "backbone"], 2, "embedded alone"),
        (["1.png", "--model", "backbone", "--ids", "name"], 2, "'name' is not one of"),
        (["--model", "backbone"], 2, "IMAGES"),
    ],
)
def test_mistakes_end_with_one_line_and_an_exit_code(
    folder, tmp_path, monkeypatch, capsys, arguments, exit_code, message
):
    (tmp_path / "1.png").write_bytes(image_bytes(random_pixels(0)))
    np.save(tmp_path / "wrong.npy", np.zeros((2, 3)))
    np.save(tmp_path / "a.npy", np.zeros((2, 32, 32, 3), np.uint8))
    core_bundle(paper_h(24, 10, 16, inner=32), tmp_path / "h")
    for bundle in folder.iterdir():
        (tmp_path / bundle.name).symlink_to(bundle)
    before = set(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fct-embed", *arguments, "-o", "g"])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert caught.value.code == exit_code, printed.err
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert set(tmp_path.iterdir()) == before


def test_help_needs_no_heavy_package():
    code = (
        "import sys\n"
        "from fct_infer.cli.embed import main\n"
        "sys.argv = ['fct-embed', '--help']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'onnxruntime', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_leaves_no_gallery_and_nothing_in_the_way(number, exit_code, folder, tmp_path):
    rows = 1_000_000
    header = npy_header_bytes((rows, 32, 32, 3), np.dtype(np.uint8))
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + rows * 3072)  # black images that take no room
    arguments = ("--model", folder / "backbone", "-o", tmp_path / "g", "--threads", 1)
    run = subprocess.Popen(
        python("embed", tmp_path / "a.npy", *arguments, "--rows-per-shard", 100), stderr=subprocess.PIPE, text=True
    )
    wanted = tmp_path / "g.partial" / "gallery" / "embeddings" / "000001.npy"
    deadline = time.monotonic() + 60
    while not wanted.exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == exit_code, errors
    assert "Traceback" not in errors
    left = {"a.npy"} | ({"g.partial"} if number == signal.SIGKILL else set())
    assert {path.name for path in tmp_path.iterdir()} == left

    np.save(tmp_path / "b.npy", np.zeros((3, 32, 32, 3), np.uint8))
    assert fct_embed(tmp_path / "b.npy", *arguments).returncode == 0
    assert Gallery.open(tmp_path / "g").rows == 3 and not (tmp_path / "g.partial").exists()
