"""Lloyd's k-means and nearest-centroid search in cache-sized blocks.

A block of rows is multiplied with all centroids and its best column taken while the products are still in cache, so no
(n, k) table exists. Where the processor multiplies bfloat16 in hardware, large inputs use it: Lloyd's rounds as they
are (their noise is far below the effect of another seed), assignments with a second look in float32 at every row whose
best two are close. Tiles (AMX) take float32 and return it; pairs (AVX-512) round the products, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from scipy.sparse import csc_matrix

from genrec.processor import bfloat16_hardware

MAX_POINTS_PER_CENTROID = 256  # beyond this a seeded subsample is enough, as faiss has it ...
MIN_SAMPLE = 1 << 17  # ... but few centroids are cheap enough to see more, and serve better for it
_BLOCK_CELLS = 1 << 21  # products held at once: 8 MB of float32
_BLOCK_ROWS = 4096
_FAST_ROWS = 8192  # smaller inputs are exact at once; they also never touch torch's process-wide precision
_FIRST_POINTS = 32  # points per centroid in the first, cheap rounds
_GROWTH = 4  # how much larger each next part of the sample is
_LAST_ROUNDS = 10  # rounds over the whole sample that the growing parts leave at most
_PULL = 0.7  # of a drawn vector's way from the mean is left to it as a first centroid
_WIDE = 64  # dimensions, and ...
_MANY = 2048  # ... centroids from which a round is so dear that the first ones look at a quarter of the dimensions
_COARSE_ROUNDS = 6
_BASIS_ROWS = 1 << 14
_STEP = 1.6  # of the way to the mean: five such rounds do what twenty-five whole ones do
_TOLERANCE = 1e-3  # rounds stop when the error falls by less than this fraction; dear ones by twice as much
_CLOSE = 2.0**-6  # five standard deviations of a bfloat16 product, as a fraction of |x| |c| / sqrt(d)
_ROUNDED = 2.0**-8  # of two products rounded to bfloat16, as a fraction of the larger


def nearest(vectors: np.ndarray, centroids: np.ndarray, rough: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each vector: index (n,) int64 and gain (n,) float32, where |x - c|^2 = |x|^2 - 2 gain.

    `vectors` (n, d) and `centroids` (k, d) float32. Equal distances go to the lower index. With `rough` the products
    may be rounded to bfloat16, so of two centroids that are nearly equally near the farther may be returned.
    """
    n, k = len(vectors), len(centroids)
    index, gain = np.empty(n, np.int64), np.empty(n, np.float32)
    table = _tensor(centroids)
    half = -(table * table).sum(1) / 2
    reach = float((-2 * half).max().sqrt()) * _CLOSE / vectors.shape[1] ** 0.5
    hardware = bfloat16_hardware() if n >= _FAST_ROWS and k > 1 else None
    low = table.bfloat16() if hardware == "pairs" else None

    def work(rows: slice, buffer: torch.Tensor) -> None:
        part = _tensor(vectors[rows])
        scores = _scores(part, table, half, buffer, low)
        best = scores.argmax(1)
        value = np.take_along_axis(scores, best[:, None], 1)[:, 0]
        if hardware and not rough:
            margin = part.norm(dim=1).numpy() * reach
            if low is not None:
                margin = margin + _ROUNDED * (np.abs(value) + widest)
            close = np.flatnonzero((scores >= (value - margin)[:, None]).sum(1) > 1)
            unsure[rows.start + close] = True
            if low is not None:
                chosen = torch.from_numpy(best)
                value = ((part * table[chosen]).sum(1) + half[chosen]).numpy()
        index[rows], gain[rows] = best, value

    unsure, widest = np.zeros(n, bool), float(-half.min())
    with _bfloat16_products(hardware == "tiles"):
        _each_block(work, n, k)
    if unsure.any():
        again = np.flatnonzero(unsure)
        exact_index, exact_gain = np.empty(len(again), np.int64), np.empty(len(again), np.float32)
        for start in range(0, len(again), 1 << 16):  # a copy of few rows at a time
            rows = again[start : start + (1 << 16)]
            exact_index[start : start + len(rows)], exact_gain[start : start + len(rows)] = _exact(
                vectors[rows], table, half
            )
        index[again], gain[again] = exact_index, exact_gain
    return index, gain


def _exact(vectors: np.ndarray, table: torch.Tensor, half: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    index, gain = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)

    def work(rows: slice, buffer: torch.Tensor) -> None:
        part = _tensor(vectors[rows])
        scores = _scores(part, table, half, buffer)
        best = scores.argmax(1)
        index[rows], gain[rows] = best, np.take_along_axis(scores, best[:, None], 1)[:, 0]

    _each_block(work, len(vectors), len(table))
    return index, gain


def two_best(
    vectors: np.ndarray, centroids: np.ndarray, closed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest open centroid (n,) int64 and how much farther (squared distance) the second nearest is (n,) float32.

    `closed` (n, k) bool masks centroids per row. The gap is inf where only one is open.
    """
    n, k = len(vectors), len(centroids)
    index, gap = np.empty(n, np.int64), np.empty(n, np.float32)
    table = _tensor(centroids)
    half = -(table * table).sum(1) / 2

    def work(rows: slice, buffer: torch.Tensor) -> None:
        part = _tensor(vectors[rows])
        scores = _scores(part, table, half, buffer)
        if closed is not None:
            scores[closed[rows]] = -np.inf
        best = scores.argmax(1)[:, None]
        value = np.take_along_axis(scores, best, 1)
        np.put_along_axis(scores, best, -np.inf, 1)
        index[rows], gap[rows] = best[:, 0], 2 * (value[:, 0] - scores.max(1))

    with _bfloat16_products(n >= _FAST_ROWS and bfloat16_hardware() == "tiles"):
        _each_block(work, n, k)
    return index, gap


def k_means(
    vectors: np.ndarray, k: int, seed: int, iterations: int = 25, start: np.ndarray | None = None
) -> np.ndarray:
    """Centroids (k, d) float32 of vectors (n, d), k at most n; `start` (k, d) replaces the seeded choice of k vectors.

    At most `iterations` rounds of Lloyd. On large inputs the first rounds see a growing part of the sample and few
    dimensions, which moves the centroids most of the way at a fraction of the cost. A cluster that lost all its vectors
    restarts at the vector that is worst served. Same seed, same result.
    """
    vectors = np.asarray(vectors)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))[: max(k * MAX_POINTS_PER_CENTROID, MIN_SAMPLE)]
    centroids = _drawn_in(vectors[order[:k]]) if start is None else np.array(start, np.float32)
    for stage, (size, rounds) in enumerate(_parts(len(order), k, iterations)):
        # in the order of the file, as rows are read faster so
        part = np.ascontiguousarray(vectors if size == len(vectors) else vectors[np.sort(order[:size])], np.float32)
        dear = start is None and k >= _MANY and part.shape[1] >= _WIDE
        if dear and not stage:
            centroids = _few_dimensions(part, centroids, min(iterations, _COARSE_ROUNDS))
        centroids = _lloyd(part, centroids, rounds, (1 + dear) * _TOLERANCE)
    return centroids


def _drawn_in(vectors: np.ndarray) -> np.ndarray:
    """Vectors (k, d) pulled towards their mean.

    Residuals point everywhere, so a drawn vector is farther from most others than the origin is. One near the origin
    would
    take nearly all of them, and the other clusters would start empty.
    """
    vectors = np.asarray(vectors, np.float32)
    mean = vectors.mean(0)
    return mean + _PULL * (vectors - mean)


def _few_dimensions(vectors: np.ndarray, centroids: np.ndarray, rounds: int) -> np.ndarray:
    """Centroids (k, d) after rounds of Lloyd along a quarter of the dimensions, the principal ones."""
    some = vectors[:: -(-len(vectors) // _BASIS_ROWS)]
    basis = np.linalg.eigh((some.T @ some).astype(np.float64))[1][:, -(vectors.shape[1] // 4) :].astype(np.float32)
    low = vectors @ basis
    assigned = nearest(low, _lloyd(low, centroids @ basis, rounds), rough=True)[0]
    means, counts = cluster_means(vectors, assigned, len(centroids))
    return np.where(counts[:, None] > 0, means, centroids)


def cluster_means(vectors: np.ndarray, assigned: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (k, d) float32 (0 for an empty cluster) and counts (k,) of vectors (n, d) by their cluster (n,)."""
    n = len(vectors)
    # by column: one pass over the vectors in their order, adding into a table that stays in cache
    choice = csc_matrix((np.ones(n, np.float32), assigned, np.arange(n + 1)), (k, n))
    counts = np.bincount(assigned, minlength=k)
    return (choice @ vectors / np.maximum(counts, 1)[:, None]).astype(np.float32), counts


def _parts(n: int, k: int, iterations: int) -> list[tuple[int, int]]:
    """(vectors, rounds) of each stage of k-means, the last over all n."""
    sizes = [n]
    while sizes[0] >= _GROWTH * _FIRST_POINTS * k:
        sizes.insert(0, sizes[0] // _GROWTH)
    rounds = [iterations] * len(sizes)
    if len(sizes) > 1:
        rounds[-1] = min(iterations, _LAST_ROUNDS)
    return list(zip(sizes, rounds, strict=True))


def _lloyd(vectors: np.ndarray, centroids: np.ndarray, rounds: int, tolerance: float = _TOLERANCE) -> np.ndarray:
    """Rounds of Lloyd that step past the mean, from centroids (k, d): the means of the last round's clusters.

    For a fixed assignment any step below twice the way to the mean lowers the error, so each round still does, in fewer
    rounds.
    """
    square = np.einsum("nd,nd->n", vectors, vectors)
    before, means = np.inf, centroids
    for _ in range(rounds):
        assigned, gain = nearest(vectors, centroids, rough=True)
        error = square - 2 * gain
        means, counts = cluster_means(vectors, assigned, len(centroids))
        means = np.where(counts[:, None] > 0, means, centroids)
        empty = np.flatnonzero(counts == 0)
        total = float(error.sum(dtype=np.float64))
        if len(empty):
            worst = np.argsort(-error, kind="stable")[: len(empty)]
            worst = worst[
                error[worst] > 1e-6 * square[worst]
            ]  # where every vector is served, as with many duplicates, none moves
            means[empty[: len(worst)]] = vectors[worst]
            if not len(worst):
                break
        elif total >= before * (1 - tolerance):
            break
        before = total
        centroids = np.where(counts[:, None] > 0, centroids + _STEP * (means - centroids), means).astype(np.float32)
    return means


def _tensor(rows: np.ndarray) -> torch.Tensor:
    """Float32 rows as a tensor; those of a read-only memory map are copied, as torch cannot mark a tensor read-only."""
    rows = np.ascontiguousarray(rows, np.float32)
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def _scores(
    part: torch.Tensor, table: torch.Tensor, half: torch.Tensor, buffer: torch.Tensor, low: torch.Tensor | None = None
) -> np.ndarray:
    """x.c - |c|^2 / 2 of rows (m, d) and centroids (k, d), in the buffer: (m, k).

    ``low``: the centroids in bfloat16, where products may be.
    """
    if low is None:
        products = torch.mm(part, table.T, out=buffer[: len(part)])
    else:
        products = buffer[: len(part)].copy_(part.bfloat16() @ low.T)
    return products.add_(half).numpy()  # a pass in cache; addmm would first spread the bias, and took a third longer


def _each_block(work: Callable[[slice, torch.Tensor], None], n: int, k: int) -> None:
    """Call `work(rows, buffer)` for consecutive slices of n rows; on several threads where torch has them.

    Blocks write to disjoint rows, so the result does not depend on the threads.
    """
    size = int(np.clip(_BLOCK_CELLS // max(k, 1), 16, _BLOCK_ROWS))
    blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    threads = min(torch.get_num_threads(), len(blocks) // 4)
    if threads < 2:
        buffer = torch.empty(min(size, n), k)
        for rows in blocks:
            work(rows, buffer)
        return

    def run(part: list[slice]) -> None:
        torch.set_num_threads(1)
        buffer = torch.empty(size, k)
        for rows in part:
            work(rows, buffer)

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, [blocks[first::threads] for first in range(threads)]))
    finally:
        torch.set_num_threads(before)


@contextmanager
def _bfloat16_products(enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # missing in torch's stubs
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
