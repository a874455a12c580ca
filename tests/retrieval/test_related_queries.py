"""Which queries of a log say more than a query, and less, and what that says of items."""

import numpy as np
import pytest
import scipy.sparse as sp

from genrec.retrieval import related_queries
from genrec.retrieval.query_items import QueryItemCounts, text_keys
from genrec.retrieval.related_queries import RelatedQueries

TEXTS = ["audio accessory", "audio accessory headphone", "Accessory", "car audio", "audio accessory accessory"]


@pytest.fixture
def related():
    return RelatedQueries.of(TEXTS, np.array([5.0, 4, 3, 2, 1]))


def find(related, text):
    return [part.tolist() for part in related.find(text)]


def test_longer_queries_have_all_words_and_shorter_ones_no_others(related):
    assert find(related, "audio accessory") == [[1], [2]]  # equal ones, in any order and number, are neither
    assert find(related, "accessory audio headphone red") == [[], [0, 1, 2, 4]]
    assert find(related, "audio") == [[0, 1, 3, 4], []]
    assert find(related, "") == find(related, "unknown") == [[], []]


def test_the_most_frequent_ones_count(related, monkeypatch):
    monkeypatch.setattr(related_queries, "MOST", 2)
    assert find(related, "audio") == [[0, 1], []]


def test_items_get_the_fractions_of_their_searches(tmp_path):
    order = np.argsort(text_keys(TEXTS[:3]))
    counts = sp.csr_matrix(np.array([[3, 0, 0], [1, 3, 0], [0, 1, 1]], np.float32)[order])
    table = QueryItemCounts(
        text_keys(TEXTS[:3])[order], counts, RelatedQueries.of([TEXTS[row] for row in order], np.ones(3))
    )
    for one in (table, QueryItemCounts.from_state(table.state(), 3)):
        longer, shorter = (part.toarray() for part in one.related_scores(["audio accessory", "", "audio accessory"]))
        np.testing.assert_allclose(longer, [[1 / 5, 3 / 5, 0], [0, 0, 0], [1 / 5, 3 / 5, 0]])
        np.testing.assert_allclose(shorter, [[0, 1 / 5, 1 / 2], [0, 0, 0], [0, 1 / 5, 1 / 2]], rtol=1e-6)
