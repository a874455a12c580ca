"""Made-up vectors that the tests of quantizers and of their report share."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def clustered():
    """``clustered(n, d, seed=0)``: vectors (n, d) float32 around twenty centres, three times as far from the origin as
    they spread; the same for every seed."""

    def make(n: int, d: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        centres = np.random.default_rng(7).normal(size=(20, d)) * 3
        return (centres[rng.integers(0, 20, n)] + rng.normal(size=(n, d))).astype(np.float32)

    return make
