"""Residual k-means followed by optimised product quantization (RQ-OPQ): vectors to semantic IDs, coarse to fine.

Source: OneSearch (arXiv 2509.03236), section on keyword-enhanced hierarchical quantization. Notable choices:
- residual levels shrink (early levels hold the shared, prominent features) and only the *last* one is balanced:
  balancing all of them was measured to lower the use of the codebooks, balancing the last one to raise it;
- OPQ then codes what is left with independent sub-codebooks, which is what makes most items' codes their own;
- a reconstruction is a plain sum of one vector per level, OPQ included (see `Codebooks.code_vectors`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import faiss
import numpy as np
from scipy.sparse import csr_matrix

from genrec.errors import UserError

BALANCED_ROUNDS = 10  # Lloyd rounds under the capacity constraint, started from the unconstrained centroids
MAX_POINTS_PER_CENTROID = 1024  # beyond this faiss trains on a seeded subsample; 64 centroids already see 65k vectors
OPQ_INNER_ITERATIONS = 4  # k-means iterations between two updates of the rotation
OPQ_TRAIN_POINTS = 65_536  # the rotation has d * d parameters, more points only cost time
SINGLE_THREAD_CELLS = 1 << 20  # below this many floats faiss's threads wait for each other longer than they work
MAX_LEVEL_SIZES = (4096, 1024, 512)
MAX_OPQ_SIZE = 256


@dataclass
class Codebooks:
    """Fixed codebooks of one catalogue.

    `residual`: one float32 array (k_l, d) per residual level. `rotation` (d_pad, d_pad), orthonormal, maps a residual x to
    `rotation @ x`; `sub_codebooks` (n_sub, k_sub, d_pad / n_sub) quantize its slices. d_pad is d rounded up to a multiple of
    n_sub. Without OPQ both have n_sub = 0 rows: shapes (0, 0) and (0, 0, 0).
    """

    residual: list[np.ndarray]
    rotation: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    sub_codebooks: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))

    @property
    def dimension(self) -> int:
        return self.residual[0].shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of every level, residual levels first: the vocabulary sizes of a semantic ID."""
        return tuple(len(level) for level in self.residual) + (self.sub_codebooks.shape[1],) * len(self.sub_codebooks)

    def code_vectors(self) -> list[np.ndarray]:
        """One (k_l, d) array per level whose chosen rows add up to the reconstruction.

        A sub-codeword is laid into its slice, zeros elsewhere, and rotated back.
        """
        vectors = list(self.residual)
        width = self.sub_codebooks.shape[2]
        for index, words in enumerate(self.sub_codebooks):
            rows = self.rotation[index * width : (index + 1) * width, : self.dimension]  # (width, d)
            vectors.append(words @ rows)
        return vectors

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays, ready for safetensors; `from_arrays` reads them back."""
        arrays = {f"residual.{level}": centroids for level, centroids in enumerate(self.residual)}
        return arrays | {"rotation": self.rotation, "sub_codebooks": self.sub_codebooks}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Codebooks":
        """Inverse of `to_arrays`. Raises UserError where an array is missing."""
        n_levels = sum(name.startswith("residual.") for name in arrays)
        wanted = [f"residual.{level}" for level in range(n_levels)] + ["rotation", "sub_codebooks"]
        missing = [name for name in wanted if name not in arrays]
        if missing or not n_levels:
            names = ", ".join(missing) or "residual.0"
            raise UserError(f"codebooks: missing {names}; expected the arrays that Codebooks.to_arrays writes; refit the codebooks")
        return cls([arrays[name] for name in wanted[:n_levels]], arrays["rotation"], arrays["sub_codebooks"])


def default_sizes(n_items: int) -> tuple[tuple[int, int, int], int, int]:
    """Codebook sizes that follow from the catalogue's size: (residual level sizes, OPQ sub-codebooks, OPQ size).

    The first level is the power of two nearest to 2 * sqrt(n) on a log scale; each further level has half as many codes, and
    the two OPQ sub-codebooks have as many as the last level. Upper limits are OneSearch's 4096-1024-512 + 2 x 256; the lower
    limit is 2; no size exceeds n.
        1,682 items: 64-32-16 + 2 x 16        12,000 items: 256-128-64 + 2 x 64
        1M items: 2048-1024-512 + 2 x 256     tens of millions: 4096-1024-512 + 2 x 256
    Raises UserError for an empty catalogue.
    """
    if n_items < 1:
        raise UserError(f"default_sizes: the catalogue has {n_items} items; expected at least 1; check the items file")
    ceiling = _power_of_two_below(n_items)
    first = 2 ** round(math.log2(2 * math.sqrt(n_items)))
    wanted = (first, first // 2, first // 4)
    levels = tuple(min(max(size, 2), limit, ceiling) for size, limit in zip(wanted, MAX_LEVEL_SIZES, strict=True))
    return levels, 2, min(levels[-1], MAX_OPQ_SIZE)


def fit_codebooks(
    vectors: np.ndarray,
    level_sizes: Sequence[int],
    opq_subcodebooks: int,
    opq_size: int,
    seed: int,
    iterations: int = 25,
    balance_last: bool = True,
) -> tuple[Codebooks, np.ndarray]:
    """Fit residual k-means and OPQ; return the codebooks and the codes (n, L) int64 of the training vectors.

    `vectors` is (n, d) float32. With `balance_last` no code of the last residual level is given to more than ceil(n / k)
    training vectors, so their codes differ from `encode`'s at that level and at the OPQ levels after it. Sizes are clamped to n
    (to the power of two below n for OPQ). `opq_subcodebooks=0` leaves OPQ out. Same seed, same result.

    Source: OneSearch, RQ-OPQ; OPQ itself is Ge et al., CVPR 2013.
    Raises UserError for empty or non-finite vectors and for sizes that make no codebook.
    """
    vectors = _checked(vectors)
    _check_sizes(level_sizes, opq_subcodebooks, opq_size)
    with _threads_for(vectors):
        residual, levels, codes = vectors, [], []
        for level, size in enumerate(level_sizes):
            balanced = balance_last and level == len(level_sizes) - 1
            centroids = _k_means(residual, min(size, len(vectors)), seed + level, iterations)
            if balanced:
                centroids = _balanced_lloyd(residual, centroids)
            assigned = _assign(residual, centroids, balanced)
            residual = residual - centroids[assigned]
            levels.append(centroids)
            codes.append(assigned)
        codebooks = Codebooks(levels)
        if opq_subcodebooks:
            size = min(opq_size, _power_of_two_below(len(vectors)))
            codebooks.rotation, codebooks.sub_codebooks = _fit_opq(residual, opq_subcodebooks, size, seed, iterations)
        return codebooks, np.column_stack(codes + _opq_codes(codebooks, residual))


def encode(codebooks: Codebooks, vectors: np.ndarray, balance_last: bool = False) -> np.ndarray:
    """Codes (n, L) int64 of vectors (n, d) under fixed codebooks: nearest centroid level by level, then the OPQ codes.

    This is how new items and queries get their codes. `balance_last` applies the capacity constraint at the last residual
    level to *these* vectors; use it when the codebooks were fitted on items and queries together but the catalogue alone is to
    be balanced. Raises UserError for non-finite vectors or another dimension.
    """
    vectors = _checked(vectors)
    if vectors.shape[1] != codebooks.dimension:
        found, wanted = vectors.shape[1], codebooks.dimension
        raise UserError(f"encode: vectors have {found} dimensions, the codebooks {wanted}; use the text encoder of the fit")
    with _threads_for(vectors):
        residual, codes = vectors, []
        for level, centroids in enumerate(codebooks.residual):
            assigned = _assign(residual, centroids, balance_last and level == len(codebooks.residual) - 1)
            residual = residual - centroids[assigned]
            codes.append(assigned)
        return np.column_stack(codes + _opq_codes(codebooks, residual))


def reconstruct(codebooks: Codebooks, codes: np.ndarray) -> np.ndarray:
    """Vectors (n, d) float32 that codes (n, L') stand for; L' < L reconstructs from a prefix, coarser."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] > len(codebooks.sizes):
        raise UserError(f"reconstruct: codes have shape {codes.shape}; expected (n, at most {len(codebooks.sizes)})")
    total = np.zeros((len(codes), codebooks.dimension), np.float32)
    for level, table in enumerate(codebooks.code_vectors()[: codes.shape[1]]):
        total += table[codes[:, level]]
    return total


def balanced_assignment(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Assign vectors (n, d) to centroids (k, d), at most ceil(n / k) each; returns (n,) int64.

    Rounds of proposals: every unplaced vector proposes to its nearest centroid with room left; a centroid that gets more than
    it can hold keeps those who would lose most elsewhere (largest gap to their second choice, ties to the lower row). A
    round either places everyone or fills a centroid, so there are at most k rounds, and no (n, k) matrix is ever stored.
    """
    n, k = len(vectors), len(centroids)
    room = np.full(k, -(-n // k), np.int64)
    assigned = np.full(n, -1, np.int64)
    pending = np.arange(n)
    while len(pending):
        open_centroids = np.flatnonzero(room)
        distances, nearest = faiss.knn(vectors[pending], centroids[open_centroids], min(2, len(open_centroids)))
        target = open_centroids[nearest[:, 0]]
        regret = distances[:, -1] - distances[:, 0]
        order = np.lexsort((-regret, target))  # stable: ties stay in row order
        target = target[order]
        rank = np.arange(len(order)) - np.searchsorted(target, target)
        kept = rank < room[target]
        assigned[pending[order[kept]]] = target[kept]
        room -= np.bincount(target[kept], minlength=k)
        pending = np.sort(pending[order[~kept]])
    return assigned


@contextmanager
def _threads_for(vectors: np.ndarray) -> Iterator[None]:
    """Let faiss use one thread on small inputs: on a busy machine its spinning threads made tiny fits take seconds."""
    before = faiss.omp_get_max_threads()
    if vectors.size < SINGLE_THREAD_CELLS:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _checked(vectors: np.ndarray) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(f"vectors have shape {vectors.shape}; expected (n, d) with n and d at least 1")
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise UserError(f"vectors: row {int(np.argmin(finite))} is not finite; expected real numbers; check the text encoder's output")
    return vectors


def _check_sizes(level_sizes: Sequence[int], opq_subcodebooks: int, opq_size: int) -> None:
    if not len(level_sizes) or min(level_sizes) < 1:
        raise UserError(f"level_sizes is {tuple(level_sizes)}; expected at least one level, each of size 1 or more")
    if opq_subcodebooks < 0:
        raise UserError(f"opq_subcodebooks is {opq_subcodebooks}; expected 0 (no OPQ) or more")
    if opq_subcodebooks and (opq_size < 1 or opq_size & (opq_size - 1)):
        raise UserError(f"opq_size is {opq_size}; expected a power of two; try {_power_of_two_below(max(opq_size, 1))}")


def _power_of_two_below(number: int) -> int:
    """The largest power of two that is at most `number`."""
    return 1 << (int(number).bit_length() - 1)


def _k_means(vectors: np.ndarray, k: int, seed: int, iterations: int, start: np.ndarray | None = None) -> np.ndarray:
    # min_points_per_centroid=1: small catalogues are a supported case, not something faiss should warn about
    model = faiss.Kmeans(
        vectors.shape[1], k, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=MAX_POINTS_PER_CENTROID
    )
    model.train(np.ascontiguousarray(vectors), init_centroids=start)
    return np.array(model.centroids, np.float32).reshape(k, -1)


def _balanced_lloyd(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Move centroids (k, d) to the means of their balanced clusters until nothing changes, a few rounds at most."""
    n, k = len(vectors), len(centroids)
    previous = None
    for _ in range(BALANCED_ROUNDS):
        assigned = balanced_assignment(vectors, centroids)
        if previous is not None and np.array_equal(assigned, previous):
            break
        previous = assigned
        sums = csr_matrix((np.ones(n, np.float32), (assigned, np.arange(n))), (k, n)) @ vectors
        counts = np.bincount(assigned, minlength=k)[:, None]
        centroids = np.where(counts > 0, sums / np.maximum(counts, 1), centroids).astype(np.float32)
    return centroids


def _assign(vectors: np.ndarray, centroids: np.ndarray, balanced: bool) -> np.ndarray:
    if balanced:
        return balanced_assignment(vectors, centroids)
    return faiss.knn(vectors, centroids, 1)[1][:, 0]


def _padded(vectors: np.ndarray, width: int) -> np.ndarray:
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, width - vectors.shape[1]))))


def _fit_opq(residual: np.ndarray, n_sub: int, size: int, seed: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (d_pad, d_pad) and sub-codebooks (n_sub, size, d_pad / n_sub).

    Alternates sub-codebooks for a fixed rotation with the best rotation for fixed codewords (Ge et al., algorithm 1). Written
    out because faiss.OPQMatrix writes a (d, d) product into a buffer of n * d floats: with fewer vectors than dimensions, as in
    a small catalogue, it corrupts memory.
    """
    rng = np.random.default_rng(seed)
    points = _padded(residual, -(-residual.shape[1] // n_sub) * n_sub)
    limit = max(OPQ_TRAIN_POINTS, 256 * size)
    if len(points) > limit:
        points = points[np.sort(rng.choice(len(points), limit, replace=False))]
    rotation = np.linalg.qr(rng.normal(size=(points.shape[1],) * 2))[0].astype(np.float32)
    words = None
    for step in range(iterations + 1):
        # the codebooks only have to follow the rotation in between; they are trained in full at both ends
        rounds = iterations if step in (0, iterations) else OPQ_INNER_ITERATIONS
        parts = np.split(points @ rotation.T, n_sub, axis=1)
        words = [_k_means(part, size, seed, rounds, words and words[sub]) for sub, part in enumerate(parts)]
        if step < iterations:
            nearest = [_assign(np.ascontiguousarray(part), table, False) for part, table in zip(parts, words, strict=True)]
            decoded = np.hstack([table[chosen] for table, chosen in zip(words, nearest, strict=True)])
            left, _, right = np.linalg.svd((points.T @ decoded).astype(np.float64))  # orthogonal Procrustes
            rotation = (left @ right).T.astype(np.float32)
    return rotation, np.stack(words)


def _opq_codes(codebooks: Codebooks, residual: np.ndarray) -> list[np.ndarray]:
    """One (n,) int64 array per sub-codebook."""
    n_sub, _, width = codebooks.sub_codebooks.shape
    if not n_sub:
        return []
    rotated = _padded(residual, n_sub * width) @ codebooks.rotation.T
    slices = np.split(rotated, n_sub, axis=1)
    return [_assign(np.ascontiguousarray(part), words, False) for part, words in zip(slices, codebooks.sub_codebooks, strict=True)]
