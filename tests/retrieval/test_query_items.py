"""What people took who asked the same, against a slow count; held-out searches are never in it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from genrec.data.dataset import TRAIN, VALID
from genrec.generation.options import SearchOptions
from genrec.ranking.features import FEATURES
from genrec.retrieval.query_items import QueryItemCounts, text_keys


def test_shares_equal_a_slow_count_of_training_searches(prepared_run):
    data = prepared_run.dataset
    for last in (TRAIN, VALID):
        table = QueryItemCounts.build(data, last)
        slow: dict[str, Counter] = {}
        for query, item, split in zip(data.queries, data.items, data.split, strict=True):
            if query >= 0 and split <= last:
                slow.setdefault(data.query_texts[query].lower(), Counter())[int(item)] += 1
        shares = table.score(["", *data.query_texts])
        assert not shares[0].any()
        for text, row in zip(data.query_texts, shares[1:], strict=True):
            counts = slow.get(text.lower(), Counter())
            expected = np.zeros(data.n_items)
            for item, count in counts.items():
                expected[item] = count / counts.total()
            np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_state(prepared_run):
    data = prepared_run.dataset
    table = QueryItemCounts.build(data, TRAIN)
    again = QueryItemCounts.from_state(table.state(), data.n_items)
    assert np.array_equal(again.score(data.query_texts), table.score(data.query_texts))


def test_texts_are_compared_as_people_mean_them():
    keys = text_keys(["Red  Lamp", " red lamp ", "red lamps", "", "红茶"])
    assert keys[0] == keys[1] and len(set(keys.tolist())) == 4


def test_a_known_query_reaches_the_ranking(trained_run):
    ranker, data = trained_run.ranker("train"), trained_run.dataset
    requests = data.requests("test", "logged")
    position = FEATURES.index("query_hits"), FEATURES.index("has_query_hits")
    shares = QueryItemCounts.build(data, TRAIN).score(requests.request_texts)
    assert shares.any()
    for rows, _, actual in ranker.candidates(requests, SearchOptions(exclude_seen=False)):
        own = np.take_along_axis(shares[rows], np.maximum(actual.ids.numpy(), 0), 1)
        live = actual.ids.numpy() >= 0
        np.testing.assert_allclose(actual.features[..., position[0]].numpy()[live], np.log(own + 1e-3)[live], rtol=1e-4)
        assert np.array_equal(actual.features[..., position[1]].numpy()[live] > 0, own[live] > 0)
        top = (shares[rows] > 0).sum(1) <= ranker.settings.text
        assert all(
            set(np.flatnonzero(shares[row])) <= set(ids[ids >= 0].tolist())
            for row, ids, few in zip(rows, actual.ids.numpy(), top, strict=True)
            if few
        )
