"""Residual k-means, with OPQ behind it (RQ-OPQ) or alone: vectors to semantic IDs, coarse to fine.

Source: OneSearch (arXiv 2509.03236), section on keyword-enhanced hierarchical quantization. Notable choices:
- residual levels shrink (early levels hold the shared, prominent features) and only the *last* one is balanced:
  balancing all of them was measured to lower the use of the codebooks, balancing the last one to raise it;
- OPQ then codes what is left with independent sub-codebooks, which is what makes most items' codes their own;
- residuals may be brought to length 1 before each further level. Without it one code near the origin collects every
  item that its parent already describes well, and the other codes stay thin;
- a reconstruction is a plain sum of one vector per level, OPQ and normalised residuals included
  (`Codebooks.code_vectors`);
- below a parent we balance over the level's one shared codebook, where OneSearch trains a codebook per parent: a code
  keeps its meaning across parents, a new item of an unseen parent has a code, and the codebooks do not grow with the
  catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from genrec.errors import UserError
from genrec.semantic_ids.prefixes import prefix_ids
from genrec.semantic_ids.quantizers.balance import balanced_assignment, balanced_lloyd
from genrec.semantic_ids.quantizers.codebooks import (
    Codebooks,
    blocks,
    encode,
    level_input,
    opq_codes,
    power_of_two_below,
    reconstruct,
    unit,
)
from genrec.semantic_ids.quantizers.kmeans import k_means, nearest
from genrec.semantic_ids.quantizers.opq import fit_opq

FIT_SAMPLE = 1 << 18  # vectors that codebooks are fitted on: 64 for each of 4,096 codes
SMALL_BLOCK = 1 << 14  # vectors whose residuals are worked out at once, with several copies


def fit_codebooks(
    vectors: np.ndarray,
    level_sizes: Sequence[int],
    opq_subcodebooks: int,
    opq_size: int,
    seed: int,
    iterations: int = 25,
    balanced: bool = True,
    normalise: bool = False,
    sample: int = FIT_SAMPLE,
) -> tuple[Codebooks, np.ndarray]:
    """Fit residual k-means and OPQ; return the codebooks and the codes (n, L) int64 of all vectors.

    `vectors` (n, d) may be a memory map: the fit reads `sample` of its rows, drawn by the seed, and the codes of all
    are made block by block. Sizes are clamped to the rows fitted on (to the power of two below them for OPQ).
    `opq_subcodebooks=0` leaves OPQ out, no level sizes leave OPQ alone. Same seed, same result.

    `balanced`: among the n_p vectors of one prefix no code of the last residual level is given to more than
    ceil(n_p / k). Balanced codes differ from `encode`'s at that level and at the OPQ levels after it.

    Source: OneSearch, RQ-OPQ. Raises UserError for empty or non-finite vectors and for sizes that make no codebook.
    """
    _check_sizes(level_sizes, opq_subcodebooks, opq_size)
    residual = drawn_sample(vectors, sample, seed)
    residual = residual.copy() if np.may_share_memory(residual, vectors) else residual
    drawn = sampled_rows(len(vectors), sample, seed)
    points = (lambda rows: vectors[drawn[rows]]) if normalise else None
    codebooks, codes = _fit(residual, points, level_sizes, opq_subcodebooks, opq_size, seed, iterations, balanced)
    del residual
    if len(codes) < len(vectors):
        codes = encode_balanced(codebooks, vectors) if balanced else encode(codebooks, vectors)
    return codebooks, codes


def _fit(
    residual: np.ndarray,
    points: Callable[[slice], np.ndarray] | None,
    level_sizes: Sequence[int],
    n_sub: int,
    opq_size: int,
    seed: int,
    iterations: int,
    balanced: bool,
) -> tuple[Codebooks, np.ndarray]:
    """Codebooks and codes of vectors ``residual`` (n, d), which become what they leave over.

    ``points``: reads some rows of the same vectors again, where residuals are to be normalised; a copy would take as
    much memory as they do.
    """
    n, normalise = len(residual), points is not None
    codebooks = Codebooks([], width=residual.shape[1])
    codes = np.zeros((n, 0), np.int64)
    for level, size in enumerate(level_sizes):
        if normalise and level:
            _to_unit(residual)
        centroids = k_means(residual, min(size, n), seed + level, iterations)
        if balanced and level == len(level_sizes) - 1:
            parents = _parents(codes)
            centroids = balanced_lloyd(residual, centroids, parents)
            assigned = balanced_assignment(residual, centroids, parents)
        else:
            assigned = nearest(residual, centroids)[0]
        for rows, _ in blocks(residual):  # in place: a copy of what a large catalogue is fitted on takes 0.4 GB
            residual[rows] -= centroids[assigned[rows]]
        codes = np.column_stack([codes, assigned])
        codebooks.residual.append(centroids)
    if n_sub:
        if normalise and len(level_sizes):
            _to_unit(residual)  # `scales` are empty yet, so `opq_codes` leaves it so
        size = min(opq_size, power_of_two_below(n))
        codebooks.rotation, codebooks.sub_codebooks = fit_opq(residual, n_sub, size, seed, iterations)
        fine = [opq_codes(codebooks, block) for _, block in blocks(residual)]
        codes = np.column_stack([codes, np.concatenate(fine)])
    if points is not None:
        for rows, _ in blocks(residual):
            residual[rows] = points(rows)
        codebooks.scales = _scales(codebooks, residual, codes)
    return codebooks, codes


def _to_unit(vectors: np.ndarray) -> None:
    """Bring rows to length 1, in place."""
    for rows, block in blocks(vectors):
        vectors[rows] = unit(block)


def _scales(codebooks: Codebooks, left: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """One factor per level, which minimizes the squared error of the prefix when it scales the level's code vectors.

    ``left``: the vectors that the codes stand for; becomes what they leave over.
    """
    scales = np.ones(codes.shape[1], np.float32)
    for level, table in enumerate(codebooks.code_vectors()):
        energy = product = 0.0
        for rows, block in blocks(left):
            words = table[codes[rows, level]]
            energy += float((words**2).sum(dtype=np.float64))
            product += float((words * block).sum(dtype=np.float64))
        if level:
            scales[level] = product / energy if energy else 0.0
        for rows, _ in blocks(left):
            left[rows] -= scales[level] * table[codes[rows, level]]
    return scales


def encode_balanced(codebooks: Codebooks, vectors: np.ndarray) -> np.ndarray:
    """Codes (n, L) int64 of vectors (n, d) as `encode` gives them.

    The last residual level is balanced over *these* vectors.

    Use it when the codebooks were fitted on a sample, or on items and queries together, and the catalogue alone is to
    be balanced.
    """
    codes = encode(codebooks, vectors)
    last = len(codebooks.residual) - 1
    if last < 0:
        return codes
    residuals = _Residuals(codebooks, vectors, codes, last)
    codes[:, last] = balanced_assignment(residuals, codebooks.residual[last], _parents(codes[:, :last]))
    if len(codebooks.sub_codebooks):
        for rows, _ in blocks(vectors, SMALL_BLOCK):
            part = np.arange(rows.start, rows.stop)
            codes[rows, last + 1 :] = opq_codes(
                codebooks, residuals[part] - codebooks.residual[last][codes[rows, last]]
            )
    return codes


class _Residuals:
    """What residual level `level` of some rows quantizes, worked out from their codes when it is read."""

    def __init__(self, codebooks: Codebooks, vectors: np.ndarray, codes: np.ndarray, level: int):
        self.codebooks, self.vectors, self.codes, self.level = codebooks, vectors, codes, level

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        residual = np.ascontiguousarray(self.vectors[rows], np.float32)
        for level in range(self.level):
            residual = level_input(self.codebooks, residual, level)
            residual = residual - self.codebooks.residual[level][self.codes[rows, level]]
        return level_input(self.codebooks, residual, self.level)


def _parents(codes: np.ndarray) -> np.ndarray | None:
    """(n,) int64 whose vectors are balanced among themselves, from the codes (n, l) of the levels before.

    None for all together.
    """
    return prefix_ids(codes)[1][:, -1] if codes.shape[1] else None


def fit_random(
    vectors: np.ndarray, sizes: Sequence[int], seed: int, sample: int = FIT_SAMPLE
) -> tuple[Codebooks, np.ndarray]:
    """The control: codes are a hash of the vector, codebooks the means that decode such codes best. Returns both.

    Equal vectors have equal codes; otherwise the codes of two items are unrelated.
    """
    points = drawn_sample(vectors, sample, seed)
    tables = [np.zeros((size, vectors.shape[1]), np.float32) for size in sizes]
    codebooks = Codebooks(tables, hash_seed=seed)
    codes, residual = encode(codebooks, points), points
    for level, size in enumerate(sizes):
        sums = np.zeros((size, points.shape[1]), np.float32)
        np.add.at(sums, codes[:, level], residual)
        counts = np.bincount(codes[:, level], minlength=size)[:, None]
        codebooks.residual[level] = sums / np.maximum(counts, 1)
        residual = points - reconstruct(codebooks, codes[:, : level + 1])
    return codebooks, encode(codebooks, vectors)


def drawn_sample(vectors: np.ndarray, sample: int, seed: int) -> np.ndarray:
    """At most `sample` rows as float32, drawn by the seed and in their order.

    Raises UserError for what cannot be quantized.
    """
    if np.ndim(vectors) != 2 or 0 in vectors.shape:
        raise UserError(f"vectors have shape {np.shape(vectors)}; expected (n, d) with n and d at least 1")
    if len(vectors) > sample:
        vectors = np.asarray(vectors[sampled_rows(len(vectors), sample, seed)])
    for _ in blocks(vectors):
        pass  # refuses rows that are not finite
    return np.ascontiguousarray(vectors, np.float32)


def sampled_rows(n: int, sample: int, seed: int) -> np.ndarray:
    """The rows of `drawn_sample` among n."""
    return np.arange(n) if n <= sample else np.sort(np.random.default_rng(seed).choice(n, sample, replace=False))


def _check_sizes(level_sizes: Sequence[int], opq_subcodebooks: int, opq_size: int) -> None:
    if (not len(level_sizes) and not opq_subcodebooks) or min(level_sizes, default=1) < 1:
        raise UserError(f"level_sizes is {tuple(level_sizes)}; expected at least one level, each of size 1 or more")
    if opq_subcodebooks < 0:
        raise UserError(f"opq_subcodebooks is {opq_subcodebooks}; expected 0 (no OPQ) or more")
    if opq_subcodebooks and (opq_size < 1 or opq_size & (opq_size - 1)):
        raise UserError(f"opq_size is {opq_size}; expected a power of two; try {power_of_two_below(max(opq_size, 1))}")
