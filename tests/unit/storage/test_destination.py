"""Nothing is made inside what was published, whatever that is; beside it, and inside others' folders, it may."""

from __future__ import annotations

import pytest
from support.bundles import core_bundle
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, upgrade_gallery
from fct_infer.errors import UsageError
from fct_infer.storage import check_place
from fct_infer.upgrade.settings import Settings


def test_what_was_published_is_not_written_into(tmp_path):
    h, settings = Transformation(linear_map(8, 6)), Settings(index="none")
    write_gallery(tmp_path / "old", (5,), 8, side_dim=None)
    upgrade_gallery(tmp_path / "old", h, tmp_path / "dest", settings=settings)
    core_bundle(linear_map(8, 6), tmp_path / "h")
    (tmp_path / "link").symlink_to(tmp_path / "dest")
    for place in ("dest/more", "dest/a/b", "dest/embeddings/c", "h/more", "link/more"):
        with pytest.raises(UsageError, match=r"lies inside .*, which was published as it is"):
            upgrade_gallery(tmp_path / "old", h, tmp_path / place, settings=settings)
    assert sorted(each.name for each in (tmp_path / "dest").iterdir() if each.is_dir()) == ["embeddings"]
    for place in ("dest", "dest.more", "other/more"):
        check_place(tmp_path / place, {})


@pytest.mark.parametrize("text", ["", "{}", '{\n  "sha256": "' + "0" * 64 + '"\n}\n', '"\n}\n', "\0"])
def test_others_manifests_keep_nothing_out(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert check_place(tmp_path / "dest", {}) == tmp_path / "dest"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("loop", r"is a link that leads to no folder \(Too many levels of symbolic links\)"),
        ("nowhere", r"is a link that leads to no folder \(No such file or directory\)"),
        ("file", "is not a folder"),
    ],
)
def test_where_no_folder_can_be_made_what_is_in_the_way_is_named(tmp_path, name, found):
    write_gallery(tmp_path / "old", (5,), 8, side_dim=None)
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    there = sorted(tmp_path.iterdir())
    h, said = Transformation(linear_map(8, 6)), f"cannot be made, as {tmp_path / name} {found}"
    for place in (tmp_path / name / "dest", tmp_path / name / "more" / "dest"):
        for given in (place, tmp_path / "missing" / ".." / place.relative_to(tmp_path)):
            with pytest.raises(UsageError, match=f"{place}: {said}"):
                upgrade_gallery(tmp_path / "old", h, given, settings=Settings(index="none"))
    assert sorted(tmp_path.iterdir()) == there
    (tmp_path / "link").symlink_to(tmp_path / "old")
    check_place(tmp_path / "link" / "more" / "dest", {})  # a link that leads to a folder is in nobody's way


def test_what_is_not_there_leads_back_to_where_it_would_be_and_links_to_where_they_lead(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    assert check_place(tmp_path / "missing" / "more" / ".." / ".." / "dest", {}) == tmp_path / "dest"
    behind = check_place(tmp_path / "missing" / ".." / "link" / ".." / "dest", {})
    behind.mkdir()
    assert (tmp_path / "elsewhere" / "dest").is_dir()
