"""A recommender on the bundle of the tiny run."""

from __future__ import annotations

import pytest

from genrec.inference.recommender import Recommender


@pytest.fixture
def model(bundle) -> Recommender:
    """A fresh recommender: tests change its catalogue."""
    return Recommender.load(bundle)
