"""What a search attends to: looked up once per query, exactly or by an index, the same in blocks and in batches."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from genrec.retrieval import similar_texts
from genrec.retrieval.dense import DenseRetriever
from genrec.retrieval.similar_texts import SHARPNESS, SimilarTexts

N, WIDTH = 3000, 16


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 12, generator=draw)
    near = centres[torch.randint(40, (N,), generator=draw)] + 0.3 * torch.randn(N, 12, generator=draw)
    return F.normalize(near, dim=1)


def found(texts: torch.Tensor, kind: str, queries: torch.Tensor, users: torch.Tensor):
    return SimilarTexts(DenseRetriever(texts, lambda requests: requests.query_text, kind), users, WIDTH).of(queries)


def test_blocks_give_the_whole_product(texts, monkeypatch):
    users = torch.randint(50, (N,), generator=torch.Generator().manual_seed(1)).float()
    queries = texts[:70]
    monkeypatch.setattr(similar_texts, "SCORES", 7 * N)
    monkeypatch.setattr(similar_texts, "BLOCK", 32)
    ids, cosines = found(texts, "exact", queries, users)
    scores = queries @ texts.T * SHARPNESS + users.log1p()
    best = scores.topk(WIDTH, dim=1)
    assert torch.allclose(scores.gather(1, ids), best.values, atol=1e-5)
    assert torch.allclose(cosines, (queries @ texts.T).gather(1, ids), atol=1e-6)
    assert found(texts, "exact", queries[:0], users)[0].shape == (0, WIDTH)


def test_an_index_finds_nearly_the_same(texts):
    users = torch.randint(50, (N,), generator=torch.Generator().manual_seed(1)).float()
    exact, near = (found(texts, kind, texts[:200], users)[0] for kind in ("exact", "ivf"))
    common = [len(set(one.tolist()) & set(other.tolist())) for one, other in zip(exact, near, strict=True)]
    assert sum(common) / (200 * WIDTH) > 0.9


def test_a_catalogue_smaller_than_the_width(texts):
    for kind in ("exact", "ivf"):
        ids, cosines = found(texts[:5], kind, texts[:3], torch.ones(5))
        assert ids.shape == cosines.shape == (3, 5)
        assert all(sorted(row.tolist()) == [0, 1, 2, 3, 4] for row in ids)
