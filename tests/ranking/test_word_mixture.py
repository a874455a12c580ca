"""Retrieval of searches mixes dense retrieval and words where that finds more, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.generation.options import SearchOptions
from genrec.pipeline.reranking import mixture_inputs
from genrec.ranking.reranker import Reranker
from genrec.ranking.word_features import WordFeatures
from genrec.ranking.word_mixture import GATE, ITEM, WordMatches, WordMixture

N, K = 400, 12


def searches(named: bool, seed: int = 0) -> tuple[WordMatches, torch.Tensor]:
    """Searches whose target is the only item that has the query's words, if ``named``, else the best of the dense."""
    draw = torch.Generator().manual_seed(seed)
    dense = torch.randn(N, K, generator=draw).log_softmax(1)
    hit = torch.zeros(N, K, dtype=torch.bool)
    hit[torch.arange(N), torch.randint(K, (N,), generator=draw) if named else dense.argmax(1)] = True
    share = hit.float() if named else torch.rand(N, K, generator=draw)
    said = word_features(share)
    return WordMatches.of(torch.arange(K).expand(N, K), dense, said, torch.zeros(N, K, 2), torch.zeros(N, K, 2)), hit


def word_features(share: torch.Tensor, title: float = 0.0, category: float = 0.0, item: int = 5) -> WordFeatures:
    """Features of BM25F alone, but that title and category of one ``item`` have the query's words in part."""
    near = torch.log1p(share.gt(0.8).sum(1).float())
    titles, facets = torch.zeros(N, K, 4), torch.zeros(N, K, 5)
    titles[:, item], facets[:, item] = title, category
    return WordFeatures(share, share, titles, facets, near, torch.full((N,), 2.0).log1p())


def mixture_of(**weights: float) -> WordMixture:
    return WordMixture(torch.tensor([weights.get(name, 0.0) for name in (*ITEM, *ITEM, *GATE)]))


SOME = {"share": 8.0, "title_words": 2.0, "constant": 0.5, "near": -0.2, "words": 0.1, "whole_title": 1.0}


def held(n: int = N) -> torch.Tensor:
    return torch.arange(n) % 4 == 0


def test_a_named_item_leads_and_words_stay_out_where_they_say_nothing():
    matches, hit = searches(named=True)
    mixture = WordMixture.fit([(matches, hit)], [held()])
    assert mixture is not None
    ids, scores = mixture.rank(matches)
    assert (ids[:, 0] == hit.float().argmax(1)).float().mean() > 0.95
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    assert WordMixture.fit([searches(named=False)], [held()]) is None


def test_few_searches_fit_nothing():
    matches, hit = searches(named=True)
    rows = torch.arange(N) < 60
    assert WordMixture.fit([(matches.take(rows), hit[rows])], [held()[:60]]) is None


def test_the_gate_tells_names_from_words_of_many_items():
    named, many = searches(named=True), searches(named=False, seed=1)
    mixture = WordMixture.fit([named, many], [held(), held()])
    assert mixture is not None
    for matches, hit in (named, many):
        first = mixture.rank(matches)[0][:, 0]
        assert (first == hit.float().argmax(1)).float().mean() > 0.9


def test_scores_are_the_logarithm_of_a_distribution_and_dense_without_a_common_word():
    matches, _ = searches(named=False)
    mixture = mixture_of(**SOME)
    torch.testing.assert_close(mixture.scores(matches).exp().sum(1), torch.ones(N))
    silent = replace(matches, items=torch.zeros_like(matches.items))
    assert torch.equal(mixture.scores(silent), matches.dense) and not silent.matched.any()


def test_a_saved_reranker_keeps_its_mixture():
    mixture = mixture_of(**SOME)
    again = Reranker.from_state(replace(Reranker.default(), mixture=mixture).state())
    assert again.mixture is not None and torch.equal(again.mixture.weights, mixture.weights)
    assert Reranker.from_state(Reranker.default().state()).mixture is None


@pytest.fixture(scope="module")
def mixed(trained_run):
    """A ranker without and one with a mixture, and searches and recommendations of the test split."""
    ranker = trained_run.ranker("train")
    mixture = mixture_of(share=20.0, constant=8.0)
    plain, words = (dict(ranker.rerankers) for _ in range(2))
    plain["search"] = replace(plain["search"], mixture=None)
    words["search"] = replace(words["search"], mixture=mixture)
    rankers = []
    for rerankers in (plain, words):
        own = trained_run.ranker("train")
        own.rerankers = rerankers
        rankers.append(own)
    return *rankers, trained_run.dataset


def test_retrieval_of_searches_reads_words_and_that_of_recommendations_does_not_change(mixed):
    plain, words, data = mixed
    options = SearchOptions(10, ("fused", "retrieve"))
    requests = data.requests("test", "logged").take(np.arange(20))
    before, after = plain.rank(requests, options), words.rank(requests, options)
    assert np.array_equal(before["fused"].ids, after["fused"].ids)  # the re-ranker reads words anyway
    texts = [requests.query_texts[query] for query in requests.request_queries]
    best = np.maximum(words.generator.lexical.score(texts).max(1), 1e-9)[:, None]
    was, share = (
        words.generator.lexical.score_at(texts, np.maximum(lists["retrieve"].ids, 0)) / best
        for lists in (before, after)
    )
    assert share[:, 0].mean() > was[:, 0].mean() + 0.05
    alone = words.rank(requests, SearchOptions(10, ("retrieve",)))["retrieve"]
    assert np.array_equal(alone.ids, after["retrieve"].ids)  # whether a mode fuses or not
    for row, ids in enumerate(after["retrieve"].ids):
        live = ids[ids >= 0]
        assert len(set(live.tolist())) == len(live)
        assert not set(live.tolist()) & set(requests.items[requests.offsets[row] : requests.offsets[row + 1]].tolist())
    assert (after["retrieve"].n_proven[share.any(1)] == 0).all()
    recommendations = data.requests("test").take(np.arange(20))
    before, after = (ranker.rank(recommendations, options)["retrieve"] for ranker in (plain, words))
    assert np.array_equal(before.ids, after.ids) and np.array_equal(before.n_proven, after.n_proven)


def test_what_is_fitted_is_what_requests_read(mixed):
    _, words, data = mixed
    requests = data.requests("test", "logged").take(np.arange(20))
    for _, _, found in words.candidates(requests, SearchOptions(10, ("fused", "retrieve"))):
        fitted, read = mixture_inputs(*found.union()), found.matches
        assert read is not None and (read.gate[:, 3:] > 0).any()
        torch.testing.assert_close(fitted.gate[:, :3], read.gate[:, :3])
        for row, ids in enumerate(read.ids):
            both = (fitted.ids[row][:, None] == ids) & (ids >= 0)
            left, right = both.nonzero().T
            assert len(left) > 5
            for name in ("dense", "items"):
                torch.testing.assert_close(getattr(fitted, name)[row][left], getattr(read, name)[row][right])


@pytest.mark.parametrize("field", ["title", "category"])
def test_of_equal_matches_the_item_whose_field_has_the_query_leads(field):
    matches, _ = searches(named=False)
    said = word_features(torch.ones(N, K), **{field: 1.0})
    equal = WordMatches.of(
        matches.ids, torch.zeros(N, K).log_softmax(1), said, torch.zeros(N, K, 2), torch.zeros(N, K, 2)
    )
    mixture = mixture_of(share=8.0, constant=1.0, **{f"{field}_words": 2.0})
    assert (mixture.rank(equal)[0][:, 0] == 5).all()
    # The gate reads that a field has all words.
    surer = mixture_of(share=8.0, constant=1.0, **{f"{field}_words": 2.0, f"whole_{field}": 3.0})
    assert (surer.scores(equal)[:, 5] > mixture.scores(equal)[:, 5]).all()


def test_of_equal_matches_the_popular_one_leads():
    matches, _ = searches(named=False)
    popularity = torch.zeros(N, K, 2)
    popularity[:, 3] = 1
    equal = WordMatches.of(
        matches.ids, torch.zeros(N, K).log_softmax(1), word_features(torch.ones(N, K)), torch.zeros(N, K, 2), popularity
    )
    assert (mixture_of(share=8.0, constant=1.0, popularity=1.0).rank(equal)[0][:, 0] == 3).all()


def test_queries_that_name_a_category_have_weights_of_their_own():
    matches, _ = searches(named=False)
    popularity = torch.zeros(N, K, 2)
    popularity[:, 3] = 1
    dense = torch.zeros(N, K).log_softmax(1)
    weights = mixture_of(share=8.0, constant=1.0).weights.clone()
    weights[len(ITEM) + ITEM.index("popularity")] = 5.0  # within a category alone
    for category, first in ((1.0, 3), (0.0, 0)):
        said = word_features(torch.ones(N, K), category=category)
        equal = WordMatches.of(matches.ids, dense, said, torch.zeros(N, K, 2), popularity)
        assert (WordMixture(weights).rank(equal)[0][:, 0] == first).all()
