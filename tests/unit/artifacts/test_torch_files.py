from __future__ import annotations

import pickle
import shutil
import zipfile

import pytest
import torch
from support.torch_models import PublicTransformation, TinyBackbone, exported, scripted, traced
from torch import nn

from fct_infer.artifacts.torch_files import MAX_INFLATED_BYTES, count_inputs, load_torch
from fct_infer.errors import ArtifactError

MODEL = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_loads_in_eval_mode(path):
    assert not load_torch(scripted(nn.Sequential(nn.Dropout(0.5)).train(), path)).module.training


def test_counts_the_inputs_that_must_be_given(path):
    assert load_torch(scripted(PublicTransformation(4, 3, 2, 5), path)).input_count == 2
    assert load_torch(traced(TinyBackbone().eval(), path, torch.zeros(1, 3, 8, 8))).input_count == 1
    assert count_inputs(PublicTransformation(4, 3, 2, 5)) == 2
    assert count_inputs(TinyBackbone()) == 1


def test_pickles_are_refused_unread(path, tmp_path):
    for content in (MODEL, MODEL.state_dict(), Bomb(tmp_path / "ran")):
        for is_zip in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=is_zip)
            with pytest.raises(ArtifactError, match=r"model\.pt: .*save it as TorchScript: torch\.jit\.trace"):
                load_torch(path)
    assert not (tmp_path / "ran").exists()


def test_the_reason_is_given_for_a_pickled_module(path):
    torch.save(MODEL, path)
    with pytest.raises(ArtifactError, match=r"written by torch\.save \(an nn\.Module or a state_dict\)"):
        load_torch(path)


def test_an_export_archive_tells_the_shapes_of_its_inputs(path):
    model = PublicTransformation(4, 3, 2, 5).eval()
    found = load_torch(exported(model, path, torch.zeros(2, 4, 1, 1), torch.zeros(2, 3, 1, 1)))
    assert (found.input_count, found.shapes) == (2, ((4, 1, 1), (3, 1, 1)))
    assert found.module(torch.zeros(7, 4, 1, 1), torch.zeros(7, 3, 1, 1)).shape == (7, 2, 1, 1)
    assert load_torch(exported(TinyBackbone().eval(), path, torch.zeros(2, 3, 8, 8))).shapes == ((3, 8, 8),)


def test_an_export_archive_for_one_batch_size_is_refused_with_the_way_out(path):
    torch.export.save(torch.export.export(MODEL, (torch.zeros(2, 4),)), path)
    with pytest.raises(ArtifactError, match=r"only batches of exactly 2; export it with .*dynamic_shapes"):
        load_torch(path)


def test_a_damaged_export_archive_is_refused(path, tmp_path):
    good = exported(MODEL, tmp_path / "good.pt2", torch.zeros(2, 4))
    for lost in ("model.json", "weight_0", "archive_format"):
        with zipfile.ZipFile(good) as whole, zipfile.ZipFile(path, "w") as archive:
            for entry in whole.infolist():
                if not entry.filename.endswith(lost):
                    archive.writestr(entry, whole.read(entry))
        with pytest.raises(ArtifactError, match=r"model\.pt: "):
            load_torch(path)


@pytest.mark.parametrize(
    "data", [b"", b"a text file\n", b"\x80\x02" + pickle.dumps(1), b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18]
)
def test_other_data_is_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.pt: "):
        load_torch(path)


def test_a_truncated_archive_is_refused(path):
    good = scripted(MODEL, path).read_bytes()
    for size in (len(good) - 1, len(good) // 2, 100):
        path.write_bytes(good[:size])
        with pytest.raises(ArtifactError, match="not a TorchScript archive"):
            load_torch(path)


def test_an_archive_with_a_missing_part_is_refused(path, tmp_path):
    scripted(MODEL, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as archive:
        for entry in good.infolist():
            if not entry.filename.endswith("data.pkl"):
                archive.writestr(entry, good.read(entry))
    with pytest.raises(ArtifactError, match="cannot be loaded as TorchScript"):
        load_torch(path)


def test_a_zip_bomb_is_refused_before_it_inflates(path, tmp_path):
    shutil.copy(scripted(MODEL, tmp_path / "good.pt"), path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good/code/bomb.py", bytes(2 * MAX_INFLATED_BYTES))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ArtifactError, match="would inflate to"):
        load_torch(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_named(path, dtype):
    model = scripted(nn.Sequential(nn.Linear(4, 3)).to(dtype), path)
    with pytest.raises(ArtifactError, match=rf"0\.weight is {dtype}, wanted float32"):
        load_torch(model)
    assert next(load_torch(model, low_precision=True).module.parameters()).dtype == dtype
