"""The pages keep their word: examples run, links lead somewhere, the front page stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for folder in (".", "genrec", "configs", "data", "scripts", "notebooks")
    for page in sorted((ROOT / folder).glob("*.md" if folder == "." else "**/*.md"))
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    names: dict = {}
    for line in example.strip().splitlines():
        exec(line.replace('"epochs": 3', '"epochs": 1'), names)
    model = names["model"]
    assert len(model.recommend(history=["i000069", "i000010"], k=5)) == 5
    assert any("lamp" in answer.title for answer in model.search("silver lamp", k=5))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_examples_parse(page):
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


def test_the_front_page_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150 and all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page):
    for name in re.findall(
        r"`((?:genrec|configs|tests|scripts|notebooks)/[\w/.-]+)`", page.read_text(encoding="utf-8")
    ):
        if "NAME" not in name:
            assert (ROOT / name).exists(), f"{page}: {name}"
