"""Query vectors: what words, n-grams and codes each add, against plain sums."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from genrec.model.embeddings import CODE_SPAN, QueryEncoder
from genrec.model.query_features import QueryFeatureCache, QueryFeatures
from genrec.text.query_tokens import HASHED, WORD_BUCKETS

TEXTS = ["", "!!", "words nobody knows zzqq 茶", "a" * 5000]


@pytest.fixture(scope="module")
def features(prepared_run) -> QueryFeatures:
    return QueryFeatures.build([*prepared_run.dataset.query_texts[:6], *TEXTS], prepared_run.ids.encoder)


def encode(network, encoder: QueryEncoder, features: QueryFeatures, ids: list[int]) -> torch.Tensor:
    text, tokens, starts = (torch.from_numpy(part) for part in features.take(np.array(ids)))
    with torch.inference_mode():
        return encoder(text, tokens, starts, network.item_encoder)


def test_a_query_vector_is_the_sum_of_its_parts(network, prepared_run, features):
    torch.manual_seed(1)
    encoder = QueryEncoder(features.text.shape[1], prepared_run.config.model.dim).eval()
    items = network.item_encoder
    ids = [0, 7, 2, 6, 8, 9, 2]
    got = encode(network, encoder, features, ids)
    assert not got[0].any() and got.isfinite().all()
    for position, query in enumerate(ids, 1):
        tokens = features.words[features.offsets[query] : features.offsets[query + 1]]
        expected = encoder.project(torch.from_numpy(features.text[query]))
        for low, high in ((0, WORD_BUCKETS), (WORD_BUCKETS, HASHED)):
            own = torch.from_numpy(tokens[(tokens >= low) & (tokens < high)])
            if len(own):
                expected = expected + encoder.words.weight[own].mean(0)
        for token in tokens[tokens >= HASHED] - HASHED:
            level, code = divmod(int(token), CODE_SPAN)
            if code < items.code_sizes[level]:
                expected = expected + items.codes.weight[items.code_offsets[level] + code]
        torch.testing.assert_close(got[position], encoder.norm(expected), atol=1e-5, rtol=1e-4)
    assert torch.equal(got[3], got[7])


def test_code_tokens_are_the_querys_semantic_id(prepared_run, features):
    texts = prepared_run.dataset.query_texts[:6]
    known = prepared_run.ids.encode_new(texts)
    for query in range(6):
        tokens = features.words[features.offsets[query] : features.offsets[query + 1]]
        codes = tokens[tokens >= HASHED] - HASHED
        assert known.known[query] and codes.tolist() == [
            level * CODE_SPAN + code for level, code in enumerate(known.codes[query])
        ]
    empty = features.words[features.offsets[6] : features.offsets[8]]
    assert len(empty) == 0, "a query without words has no code"


def test_every_part_learns(network, features):
    encoder = QueryEncoder(features.text.shape[1], network.config.dim)
    text, tokens, starts = (torch.from_numpy(part) for part in features.take(np.arange(6)))
    network.item_encoder.codes.weight.grad = None
    encoder(text, tokens, starts, network.item_encoder).pow(3).sum().backward()
    assert encoder.words.weight.grad[:WORD_BUCKETS].any() and encoder.words.weight.grad[WORD_BUCKETS:].any()
    assert network.item_encoder.codes.weight.grad.any()
    network.zero_grad()


def test_kept_features_are_those_of_a_fresh_build(prepared_run):
    encoder = prepared_run.ids.encoder
    texts = [*dict.fromkeys(prepared_run.dataset.query_texts), *TEXTS]
    cache = QueryFeatureCache(encoder, capacity=8)
    calls = [texts[:3], texts[1:4], texts[:1], [texts[2], texts[0], texts[2]], [*TEXTS], texts[3:5], [], texts]
    for some in [*calls, *calls]:  # the second time most rows come from the cache, and eight texts are more than fit
        expected, got = QueryFeatures.build(some, encoder), cache.build(some)
        for part in ("text", "words", "offsets"):
            assert np.array_equal(getattr(got, part), getattr(expected, part)), (some, part)
            assert getattr(got, part).dtype == getattr(expected, part).dtype
        assert len(cache._rows) <= 8


def test_kept_features_are_encoded_once_and_shared_by_threads(prepared_run):
    texts = list(dict.fromkeys(prepared_run.dataset.query_texts))[:6]
    encoded: list[str] = []

    class Encoder:
        def __getattr__(self, name):
            return getattr(prepared_run.ids.encoder, name)

        def encode(self, some, role="query"):
            encoded.extend(some)
            return prepared_run.ids.encoder.encode(some, role)

    cache = QueryFeatureCache(Encoder())
    expected = QueryFeatures.build(texts, Encoder()).text
    encoded.clear()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: cache.build(texts).text, range(8)))
    assert all(np.array_equal(result, expected) for result in results)
    assert set(encoded) == set(texts)
    encoded.clear()
    cache.build(texts[::-1])
    assert not encoded, "a text that was seen is not encoded again"
