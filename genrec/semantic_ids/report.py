"""How good are these semantic IDs? One report of plain numbers, and its headline."""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np

from genrec.errors import UserError
from genrec.semantic_ids.prefixes import prefix_ids
from genrec.semantic_ids.quantizers import Codebooks, reconstruction_error
from genrec.semantic_ids.quantizers.codebooks import blocks, unit

NEIGHBOURS = 10
NEIGHBOUR_SAMPLE = 2000
SAMPLE_SEED = 0  # fixed: the report of one catalogue never changes


def quality_report(
    codes: np.ndarray, vectors: np.ndarray, codebooks: Codebooks, popularity: np.ndarray | None = None
) -> dict[str, Any]:
    """Quality of codes (n, L) of vectors (n, d); ready for JSON. `popularity` (n,), not negative.

    None counts all items alike.

    Fractions are between 0 and 1. Keys:
    - `items`, `sizes` (codes per level), `distinct_prefixes` (per prefix length);
    - `utilisation`: CUR_L1, CUR_L1L2, ...: distinct prefixes / possible prefixes; `utilisation_reachable`: distinct
      prefixes / min(possible prefixes, items), the same measure freed from the catalogue's size;
    - `independent_coding_rate`: fraction of items whose semantic ID no other item has;
    - `entropy_bits`, `entropy_share` (of log2 of the level's size), `gini` of code use: per level, unused codes
      included;
    - `reconstruction_error`: per prefix length, sum |x - x'|^2 / sum |x|^2;
    - `neighbours`: `shared`, per prefix length the fraction of the 10 nearest neighbours by cosine (of a sample of
      at most 2,000 items) that have the same prefix, next to `random`, the same fraction for two random items;
    - `collisions`: `shared_items` (fraction of items that share a code), `weighted` (fraction of popularity on them),
      `popular` (fraction of the most popular tenth of items), `largest` (items on the fullest code);
    - `code_use`: per level, items per code in decreasing order.
    Source: CUR and ICR as in OneSearch (arXiv 2509.03236). Raises UserError where the arrays do not fit together.
    """
    codes, vectors = np.asarray(codes, np.int64), np.ascontiguousarray(vectors, np.float32)
    n, sizes = len(codes), codebooks.sizes
    if not n or codes.shape != (n, len(sizes)) or vectors.shape != (n, codebooks.dimension):
        expected = f"(n, {len(sizes)}) and (n, {codebooks.dimension}), n at least 1"
        raise UserError(f"quality_report: codes {codes.shape}, vectors {vectors.shape}; expected {expected}")
    weight = np.ones(n) if popularity is None else np.asarray(popularity, np.float64)
    if weight.shape != (n,) or not (weight >= 0).all():
        raise UserError(
            f"quality_report: popularity has shape {weight.shape}; expected ({n},), no value negative or missing"
        )
    _, prefixes = prefix_ids(codes)
    distinct = [int(column.max()) + 1 for column in prefixes.T]
    possible = [math.prod(sizes[: level + 1]) for level in range(len(sizes))]
    names = ["CUR_" + "".join(f"L{i + 1}" for i in range(level + 1)) for level in range(len(sizes))]
    use = [np.sort(np.bincount(codes[:, level], minlength=size))[::-1] for level, size in enumerate(sizes)]
    entropy = [_entropy_bits(counts) for counts in use]
    on_code = np.bincount(prefixes[:, -1])[prefixes[:, -1]]  # items on the code of each item
    return {
        "items": n,
        "sizes": list(sizes),
        "distinct_prefixes": distinct,
        "utilisation": {name: count / most for name, count, most in zip(names, distinct, possible, strict=True)},
        "utilisation_reachable": {
            name: count / min(most, n) for name, count, most in zip(names, distinct, possible, strict=True)
        },
        "independent_coding_rate": float((on_code == 1).mean()),
        "entropy_bits": entropy,
        "entropy_share": [
            bits / math.log2(size) if size > 1 else 1.0 for bits, size in zip(entropy, sizes, strict=True)
        ],
        "gini": [_gini(counts) for counts in use],
        "reconstruction_error": reconstruction_error(codebooks, codes, vectors),
        "neighbours": _neighbours_kept(prefixes, vectors),
        "collisions": _collisions(on_code, weight),
        "code_use": [counts.tolist() for counts in use],
    }


def prefix_agreement(left: np.ndarray, right: np.ndarray) -> dict[str, list[float]]:
    """How often pairs of codes (n, L) agree, per prefix length: `shared`, and `random` where the pairs are broken up.

    For queries and the items they led to: a common first code is what lets the generator start right.
    """
    _, prefixes = prefix_ids(np.concatenate([left, right]))
    n = len(left)
    shared = (prefixes[:n] == prefixes[n:]).mean(0)
    random = []
    for column in prefixes.T:
        size = int(column.max()) + 1
        random.append(
            float((np.bincount(column[:n], minlength=size) / n) @ (np.bincount(column[n:], minlength=size) / n))
        )
    return {"shared": shared.tolist(), "random": random}


def headline(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The report as a small table: a header row, then one row per prefix length.

    The last rows concern the whole code.
    """
    rows: list[tuple[str, ...]] = [
        ("", *(f"L1..{level}" if level > 1 else "L1" for level in range(1, len(report["sizes"]) + 1)))
    ]

    def add(name: str, values: list, form: str) -> None:
        rows.append((name, *(format(value, form) for value in values)))

    add("codes", report["sizes"], "d")
    add("prefixes in use", report["distinct_prefixes"], ",d")
    add("of those possible for so many items", list(report["utilisation_reachable"].values()), ".1%")
    add("Gini of the level's codes", report["gini"], ".2f")
    add("reconstruction error", report["reconstruction_error"], ".3f")
    add("10 nearest neighbours with the same prefix", report["neighbours"]["shared"], ".1%")
    queries = report.get("queries")
    if queries:
        add(f"{queries['kind']} query and its item", queries["shared"], ".1%")
        add("query and a random item", queries["random"], ".2%")
    return rows


def summary(report: dict[str, Any]) -> str:
    """One line: how many items have a code of their own, before and after collisions were resolved."""
    rate, crowd = report["independent_coding_rate"], report["collisions"]
    before = report.get("collision_resolution", {}).get("independent_coding_rate_before")
    first = f"{report['items']:,} items, {rate:.2%} with a code of their own" + (
        f" ({before:.2%} before collisions were resolved)" if before is not None else ""
    )
    return f"{first}; codes shared carry {crowd['weighted']:.2%} of all events"


def _entropy_bits(counts: np.ndarray) -> float:
    fraction = counts[counts > 0] / counts.sum()
    return float(-(fraction * np.log2(fraction)).sum()) + 0.0


def _gini(descending: np.ndarray) -> float:
    """0 where every code has as many items, towards 1 where one code has them all."""
    k = len(descending)
    rank = np.arange(k, 0, -1)
    return float(2 * (rank * descending).sum() / (k * descending.sum()) - (k + 1) / k)


def _neighbours_kept(prefixes: np.ndarray, vectors: np.ndarray) -> dict[str, list[float]]:
    n, levels = prefixes.shape
    if n < 2:
        return {"shared": [1.0] * levels, "random": [1.0] * levels}
    sample = np.sort(np.random.default_rng(SAMPLE_SEED).choice(n, min(n, NEIGHBOUR_SAMPLE), replace=False))
    nearest = _nearest(vectors, sample, min(NEIGHBOURS + 1, n))
    # an item is not its own neighbour; where duplicates pushed it out of the list, the last one found goes instead
    is_self = nearest == sample[:, None]
    is_self[~is_self.any(1), -1] = True
    neighbours = nearest[~is_self].reshape(len(sample), -1)
    shared, random = [], []
    for column in prefixes.T:
        shared.append(float((column[neighbours] == column[sample][:, None]).mean()))
        counts = np.bincount(column).astype(np.float64)
        random.append(float((counts * (counts - 1)).sum() / (n * (n - 1))))
    return {"shared": shared, "random": random}


def _nearest(vectors: np.ndarray, sample: np.ndarray, k: int) -> np.ndarray:
    """The k nearest rows by cosine of the rows ``sample`` (m,), block by block: (m, k), the row itself included."""
    queries = np.ascontiguousarray(unit(vectors[sample]))
    scores, ids = np.zeros((len(sample), 0), np.float32), np.zeros((len(sample), 0), np.int64)
    for rows, block in blocks(vectors):
        nearest = faiss.knn(queries, unit(block), min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
        scores, ids = np.concatenate([scores, nearest[0]], 1), np.concatenate([ids, nearest[1] + rows.start], 1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    return ids


def _collisions(on_code: np.ndarray, weight: np.ndarray) -> dict[str, float | int]:
    shared = on_code > 1
    top = np.argsort(-weight, kind="stable")[: -(-len(weight) // 10)]
    total = float(weight.sum())
    return {
        "shared_items": float(shared.mean()),
        "weighted": float(weight[shared].sum()) / total if total else 0.0,
        "popular": float(shared[top].mean()),
        "largest": int(on_code.max()),
    }
