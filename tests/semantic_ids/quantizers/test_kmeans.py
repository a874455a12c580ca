"""Blocked assignment and Lloyd's rounds against plain definitions and faiss."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from genrec.semantic_ids.quantizers import kmeans
from genrec.semantic_ids.quantizers.kmeans import cluster_means, k_means, nearest, two_best


def distances(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((vectors[:, None].astype(np.float64) - centroids[None]) ** 2).sum(2)


@pytest.mark.parametrize(("n", "k", "cells"), [(300, 7, 64), (300, 300, 1 << 20), (5, 1, 1 << 20), (1, 1, 16)])
def test_nearest_is_the_definition_at_any_block_size(n, k, cells, monkeypatch, clustered):
    monkeypatch.setattr(kmeans, "_BLOCK_CELLS", cells)
    vectors, centroids = clustered(n, 9), clustered(k, 9, seed=1)
    index, gain = nearest(vectors, centroids)
    table = distances(vectors, centroids)
    assert np.array_equal(index, table.argmin(1))
    assert np.allclose((vectors**2).sum(1) - 2 * gain, table.min(1), atol=1e-3)


def test_equally_near_centroids_go_to_the_lower_index():
    assert nearest(np.zeros((3, 2), np.float32), np.array([[1, 0], [0, 1], [1, 0]], np.float32))[0].tolist() == [
        0,
        0,
        0,
    ]


def test_large_inputs_get_the_exact_answer_with_and_without_bfloat16(monkeypatch, clustered):
    vectors, centroids = clustered(kmeans._FAST_ROWS + 5, 32), clustered(200, 32, seed=1)
    here = kmeans.bfloat16_hardware()
    monkeypatch.setattr(kmeans, "bfloat16_hardware", lambda: None)
    without, gain = nearest(vectors, centroids)
    assert np.array_equal(without, faiss.knn(vectors, centroids, 1)[1][:, 0])
    for hardware in {"pairs", here} - {None}:  # pairs are multiplied everywhere, if not everywhere fast
        monkeypatch.setattr(kmeans, "bfloat16_hardware", lambda hardware=hardware: hardware)
        index, actual = nearest(vectors, centroids)
        assert (index == without).mean() > 0.9999
        assert np.allclose(actual, gain, rtol=1e-5, atol=1e-5) or hardware == "tiles"
        rough = nearest(vectors, centroids, rough=True)[0]
        assert (rough == without).mean() > 0.8 and (hardware == "tiles" or (rough != without).any())


@pytest.mark.skipif(kmeans.bfloat16_hardware() != "tiles", reason="no hardware that changes it")
def test_the_process_wide_precision_is_put_back(clustered):
    before = torch.backends.mkldnn.matmul.fp32_precision
    nearest(clustered(kmeans._FAST_ROWS, 8), clustered(40, 8, seed=1))
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_threads_change_nothing(monkeypatch, clustered):
    vectors, centroids = clustered(6000, 8), clustered(64, 8, seed=1)
    monkeypatch.setattr(kmeans, "_BLOCK_CELLS", 64 * 100)
    alone = nearest(vectors, centroids)[0]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = nearest(vectors, centroids)[0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(alone, together)


def test_two_best_skips_closed_centroids(clustered):
    vectors, centroids = clustered(50, 4), clustered(6, 4, seed=1)
    closed = np.random.default_rng(0).random((50, 6)) < 0.5
    closed[:, 3] = False
    index, gap = two_best(vectors, centroids, closed)
    table = np.where(closed, np.inf, distances(vectors, centroids))
    assert np.array_equal(index, table.argmin(1))
    ordered = np.sort(table, axis=1)
    assert np.allclose(gap, ordered[:, 1] - ordered[:, 0], atol=1e-3)


def test_cluster_means_are_means(clustered):
    vectors = clustered(100, 5)
    assigned = np.random.default_rng(0).integers(0, 4, 100)
    means, counts = cluster_means(vectors, assigned, 5)
    assert counts.tolist() == [*np.bincount(assigned).tolist(), 0]
    assert np.allclose(means[2], vectors[assigned == 2].mean(0), atol=1e-5) and not means[4].any()


@pytest.mark.parametrize(("n", "k", "d"), [(3000, 40, 16), (12_000, 8, 16), (4000, 96, 64)])
def test_error_is_no_worse_than_faiss(n, k, d, clustered):
    vectors = clustered(n, d)
    faiss.omp_set_num_threads(1)
    ours, theirs = [], []
    for seed in range(6):  # where clusters lie far apart, two seeds of either differ by some percent
        reference = faiss.Kmeans(d, k, niter=25, seed=seed, max_points_per_centroid=100_000)
        reference.train(vectors)
        theirs.append(faiss.knn(vectors, reference.centroids, 1)[0].sum())
        ours.append(faiss.knn(vectors, k_means(vectors, k, seed), 1)[0].sum())
    assert np.median(ours) <= np.median(theirs) * 1.02


def test_a_vector_at_the_origin_does_not_take_all_the_others():
    vectors = np.random.default_rng(0).normal(size=(3000, 48)).astype(np.float32)
    vectors[::20] = 0
    counts = np.bincount(nearest(vectors, k_means(vectors, 64, 0))[0], minlength=64)
    assert counts.max() < 200  # the 150 at the origin and a few; started at drawn vectors 218 to 282


def test_growing_parts_end_with_the_whole_sample():
    parts = kmeans._parts(100_000, 10, 25)
    assert [size for size, _ in parts] == [390, 1562, 6250, 25_000, 100_000] and parts[-1][1] < 25
    assert kmeans._parts(1000, 10, 25) == [(1000, 25)]


def test_same_seed_same_centroids(clustered):
    vectors = clustered(2000, 6)
    assert np.array_equal(k_means(vectors, 9, 1), k_means(vectors, 9, 1))
    assert not np.array_equal(k_means(vectors, 9, 1), k_means(vectors, 9, 2))


def test_no_cluster_stays_empty_while_vectors_are_badly_served():
    vectors = (
        np.repeat(np.eye(8, dtype=np.float32), 20, axis=0)
        + np.random.default_rng(0).normal(size=(160, 8)).astype(np.float32) * 1e-3
    )
    start = np.zeros((8, 8), np.float32)
    start[1:] = 100.0  # seven clusters that nobody wants
    centroids = k_means(vectors, 8, 0, start=start)
    assert len(np.unique(nearest(vectors, centroids)[0])) == 8


def test_duplicates_alone_are_no_trouble():
    centroids = k_means(np.ones((20, 3), np.float32), 5, 0)
    assert centroids.shape == (5, 3) and np.isfinite(centroids).all()
