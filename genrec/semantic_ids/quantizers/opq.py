"""Optimised product quantization.

A rotation, and one codebook for each slice of the rotated vector (Ge et al., CVPR 2013).
"""

from __future__ import annotations

import numpy as np

from genrec.semantic_ids.quantizers.codebooks import padded
from genrec.semantic_ids.quantizers.kmeans import k_means, nearest

ROTATIONS = 12  # updates of the rotation
FIRST_ITERATIONS = 10  # k-means iterations before the first of them ...
INNER_ITERATIONS = 2  # ... and between two: the codebooks only have to follow; they are trained in full at the end
TRAIN_POINTS = 32_768  # the rotation has d * d parameters, more points only cost time


def fit_opq(vectors: np.ndarray, n_sub: int, size: int, seed: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (d_pad, d_pad) and sub-codebooks (n_sub, size, d_pad / n_sub) of vectors (n, d).

    Alternates sub-codebooks for a fixed rotation with the best rotation for fixed codewords (algorithm 1 of the paper).
    faiss is not used because its OPQMatrix writes a (d, d) product into a buffer of n * d floats: with fewer vectors
    than dimensions, as in a small catalogue, it corrupts memory.
    """
    rng = np.random.default_rng(seed)
    limit = max(TRAIN_POINTS, 128 * size)
    if len(vectors) > limit:
        vectors = vectors[np.sort(rng.choice(len(vectors), limit, replace=False))]
    points = padded(vectors, -(-vectors.shape[1] // n_sub) * n_sub)
    rotation = np.linalg.qr(rng.normal(size=(points.shape[1],) * 2))[0].astype(np.float32)
    words: list[np.ndarray] = []
    for step in range(ROTATIONS + 1):
        rounds = iterations if step == ROTATIONS else min(iterations, INNER_ITERATIONS if step else FIRST_ITERATIONS)
        parts = [np.ascontiguousarray(part) for part in np.split(points @ rotation.T, n_sub, axis=1)]
        words = [k_means(part, size, seed, rounds, words[sub] if words else None) for sub, part in enumerate(parts)]
        if step < ROTATIONS:
            decoded = np.hstack(
                [table[nearest(part, table, rough=True)[0]] for table, part in zip(words, parts, strict=True)]
            )
            left, _, right = np.linalg.svd((points.T @ decoded).astype(np.float64))  # orthogonal Procrustes
            rotation = (left @ right).T.astype(np.float32)
    return rotation, np.stack(words)
