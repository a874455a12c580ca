"""What a search attends to: looked up once per query, exactly or by an index, the same in blocks and in batches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from genrec.retrieval import similar_texts
from genrec.retrieval.dense import DenseRetriever
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.similar_texts import SHARPNESS, NamedItems, SimilarTexts

N, WIDTH = 3000, 16


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 12, generator=draw)
    near = centres[torch.randint(40, (N,), generator=draw)] + 0.3 * torch.randn(N, 12, generator=draw)
    return F.normalize(near, dim=1)


def named(texts: torch.Tensor, kind: str, queries: torch.Tensor, users: torch.Tensor):
    retriever = DenseRetriever(texts, lambda requests: requests.query_text, kind)
    items = SimilarTexts(retriever, users, WIDTH).of([""] * len(queries), queries)
    assert not items.words.any()
    return torch.from_numpy(items.ids), torch.from_numpy(items.similarity)


def test_blocks_give_the_whole_product(texts, monkeypatch):
    users = torch.randint(50, (N,), generator=torch.Generator().manual_seed(1)).float()
    queries = texts[:70]
    monkeypatch.setattr(similar_texts, "SCORES", 7 * N)
    monkeypatch.setattr(similar_texts, "BLOCK", 32)
    ids, cosines = named(texts, "exact", queries, users)
    scores = queries @ texts.T * SHARPNESS + users.log1p()
    best = scores.topk(WIDTH, dim=1)
    assert torch.allclose(scores.gather(1, ids), best.values, atol=1e-5)
    assert torch.allclose(cosines, (queries @ texts.T).gather(1, ids), atol=1e-6)
    assert named(texts, "exact", queries[:0], users)[0].shape == (0, WIDTH)


def test_an_index_finds_nearly_the_same(texts):
    users = torch.randint(50, (N,), generator=torch.Generator().manual_seed(1)).float()
    exact, near = (named(texts, kind, texts[:200], users)[0] for kind in ("exact", "ivf"))
    common = [len(set(one.tolist()) & set(other.tolist())) for one, other in zip(exact, near, strict=True)]
    assert sum(common) / (200 * WIDTH) > 0.9


def test_a_catalogue_smaller_than_the_width(texts):
    for kind in ("exact", "ivf"):
        ids, cosines = named(texts[:5], kind, texts[:3], torch.ones(5))
        assert ids.shape == cosines.shape == (3, 5)
        assert all(sorted(row.tolist()) == [0, 1, 2, 3, 4] for row in ids)


def tensors(named: NamedItems) -> SimpleNamespace:
    return SimpleNamespace(**{name: torch.from_numpy(values) for name, values in vars(named).items()})


def test_words_name_items_whose_texts_are_not_similar(texts):
    """The union of both kinds, each item once, ordered by the sum of cosine and word match and then by users."""
    titles = [f"thing number{n}" for n in range(N)]
    titles[7], titles[8], titles[9] = "blue lamp", "blue lamp large", "lamp"
    users, texts = torch.ones(N), texts.clone()
    texts[7:10] = 0.0  # they are like no query
    retriever = DenseRetriever(texts, lambda requests: requests.query_text, "exact")
    items = SimilarTexts(retriever, users, WIDTH, LexicalIndex.fit(titles))
    queries = texts[:3]
    rows = tensors(items.of(["blue lamp", "blue lmap", "nothing alike"], queries))
    fractions = torch.zeros(N)
    fractions[[7, 8, 9]] = torch.tensor([1.0, 0.8302, 0.6133])  # of the score of "blue lamp"
    for row in (0, 1):  # as typed and misspelt
        scores = (queries[row] @ texts.T + fractions) * SHARPNESS + users.log1p()
        torch.testing.assert_close(scores[rows.ids[row]], scores.topk(WIDTH).values)
        assert 7 in rows.ids[row]
        torch.testing.assert_close(rows.words[row], fractions[rows.ids[row]], rtol=0, atol=1e-3)
        torch.testing.assert_close(rows.similarity[row], (queries[row] @ texts.T)[rows.ids[row]])
    assert not rows.words[2].any()
    torch.testing.assert_close(rows.ids[2], named(texts, "exact", queries[2:], users)[0][0])
    alone = tensors(items.of(["blue lmap"], queries[1:2]))
    assert torch.equal(alone.ids[0], rows.ids[1]) and torch.equal(alone.words[0], rows.words[1])
