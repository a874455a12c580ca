"""A copy of the tiny trained run that the preference stage may write into, and its stage before the first step."""

from __future__ import annotations

import shutil

import pytest

from genrec.runs.run import Run


@pytest.fixture
def copied_run(trained_run, tmp_path):
    """``copied_run(*overrides)``: a fresh copy of the tiny trained run, opened with overrides."""

    def make(*overrides: str, name: str = "run") -> Run:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(trained_run.folder, folder)
        return Run.open(folder, list(overrides))

    return make
