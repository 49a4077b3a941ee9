"""What the documentation quotes is what the project says and has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUOTED = re.findall(r"^## `(.*)`$", (ROOT / "docs/guide/troubleshooting.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def source():
    """All code, with string literals that span lines joined."""
    files = (path for folder in ("fct_infer", "export", "csrc") for path in (ROOT / folder).rglob("*"))
    text = "\n".join(path.read_text() for path in files if path.suffix in (".py", ".cpp", ".h"))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_there_are_messages_to_look_up():
    assert len(QUOTED) > 10


@pytest.mark.parametrize("message", QUOTED)
def test_messages_that_are_explained_exist(message, source):
    assert message in source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_that_are_named_exist(page, source):
    """Options in lines that name one of the commands."""
    for line in page.read_text().splitlines():
        text = line if re.search(r"\bfct-(?!infer)[a-z]", line) else ""
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", text):
            assert f'"{option}' in source or f"/{option}" in source, f"{option} in: {line}"
