"""The capacity holds exactly, over the catalogue and below each parent."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.semantic_ids.quantizers import balance, balanced_assignment


@pytest.mark.parametrize("n, k", [(100, 10), (103, 10), (7, 7), (9, 8), (64, 1), (5, 8), (2000, 64)])
def test_the_largest_cluster_holds_at_most_its_even_share(n, k, clustered):
    vectors = clustered(n, 6)
    assigned = balanced_assignment(vectors, clustered(k, 6, seed=1))
    counts = np.bincount(assigned, minlength=k)
    assert assigned.min() >= 0 and counts.sum() == n
    assert counts.max() <= -(-n // k)


@pytest.mark.parametrize("cells", [1, 40, 1 << 24])
def test_the_bound_holds_below_every_parent(cells, monkeypatch, clustered):
    monkeypatch.setattr(balance, "_CELLS", cells)
    vectors, k = clustered(500, 6), 8
    parents = np.random.default_rng(2).zipf(1.4, 500).clip(max=60) * 1000  # a few large parents, many of one vector
    assigned = balanced_assignment(vectors, clustered(k, 6, seed=1), parents)
    for parent in np.unique(parents):
        counts = np.bincount(assigned[parents == parent], minlength=k)
        assert counts.max() <= -(-counts.sum() // k)
    # parents do not compete: each alone gets the same
    largest = parents == parents[np.argmax(np.bincount(parents)[parents])]
    assert np.array_equal(assigned[largest], balanced_assignment(vectors[largest], clustered(k, 6, seed=1)))


def test_up_to_k_vectors_of_a_parent_all_differ(clustered):
    vectors = np.ones((16, 3), np.float32)
    assigned = balanced_assignment(vectors, clustered(8, 3), np.repeat([5, 9], 8))
    assert sorted(assigned[:8]) == sorted(assigned[8:]) == list(range(8))


def test_it_is_nearest_where_there_is_room():
    centroids = np.array([[0.0], [10.0]], np.float32)
    vectors = np.array([[1.0], [9.0], [0.5], [11.0]], np.float32)
    assert balanced_assignment(vectors, centroids).tolist() == [0, 1, 0, 1]


def test_it_evicts_who_loses_least():
    centroids = np.array([[0.0], [10.0]], np.float32)
    vectors = np.array([[0.0], [4.0], [1.0], [2.0]], np.float32)
    assert balanced_assignment(vectors, centroids).tolist() == [0, 1, 0, 1]
