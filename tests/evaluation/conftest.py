"""Fixtures of the evaluation's tests."""

from __future__ import annotations

import pytest

from genrec.evaluation.compare import Answers


@pytest.fixture
def results_alone(monkeypatch):
    """Runs of which nothing but the results exists, so no key can be checked; see tests/runs/test_stages.py."""
    monkeypatch.setattr(Answers, "read", lambda run, split: Answers.of(run / "results", str(run)))
