"""How good are these semantic IDs? One report of plain numbers, and a plot of how evenly the codes are used."""

import math
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from genrec.errors import UserError
from genrec.semantic_ids.quantizer import Codebooks, reconstruct
from genrec.semantic_ids.trie import prefix_ids

NEIGHBOURS = 10
NEIGHBOUR_SAMPLE = 2000
SAMPLE_SEED = 0  # fixed: the report of one catalogue never changes


def quality_report(codes: np.ndarray, vectors: np.ndarray, codebooks: Codebooks, popularity: np.ndarray | None = None) -> dict[str, Any]:
    """Quality of codes (n, L) of vectors (n, d); ready for JSON. `popularity` (n,), not negative; None counts all items alike.

    Shares are between 0 and 1. Keys:
    - `items`, `sizes` (codes per level), `distinct_prefixes` (per prefix length);
    - `utilisation`: CUR_L1, CUR_L1L2, ...: distinct prefixes / possible prefixes; `utilisation_reachable`: distinct prefixes /
      min(possible prefixes, items), the same measure freed from the catalogue's size;
    - `independent_coding_rate`: share of items whose semantic ID no other item has;
    - `entropy_bits`, `entropy_share` (of log2 of the level's size), `gini` of code use: per level, unused codes included;
    - `reconstruction_error`: per prefix length, sum |x - x'|^2 / sum |x|^2;
    - `neighbours`: share of the 10 nearest neighbours (L2, sample of at most 2,000 items) that have the same first code / first
      two codes, next to the same share for two random items;
    - `collisions`: `shared_items` (share of items that share a code), `weighted` (share of all popularity on them), `popular` (share
      of the tenth of items that is most popular), `largest` (items on the fullest code);
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
        raise UserError(f"quality_report: popularity has shape {weight.shape}; expected ({n},), no value negative or missing")
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
        "utilisation_reachable": {name: count / min(most, n) for name, count, most in zip(names, distinct, possible, strict=True)},
        "independent_coding_rate": float((on_code == 1).mean()),
        "entropy_bits": entropy,
        "entropy_share": [bits / math.log2(size) if size > 1 else 1.0 for bits, size in zip(entropy, sizes, strict=True)],
        "gini": [_gini(counts) for counts in use],
        "reconstruction_error": _reconstruction_error(codes, vectors, codebooks),
        "neighbours": _neighbours_kept(prefixes, vectors),
        "collisions": _collisions(on_code, weight),
        "code_use": [counts.tolist() for counts in use],
    }


def plot_codebook_use(report: dict[str, Any], path: str | Path) -> None:
    """Draw items per code, most used first, one panel per level, against the even use; `path`'s ending picks the format."""
    # Figure with its own canvas: no global pyplot state, no display needed
    figure = Figure(figsize=(3.2 * len(report["code_use"]), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(report["code_use"]), squeeze=False)[0]
    for level, (panel, counts) in enumerate(zip(panels, report["code_use"], strict=True)):
        panel.fill_between(range(1, len(counts) + 1), counts, step="mid", alpha=0.6)
        panel.axhline(report["items"] / len(counts), color="black", linewidth=0.8, linestyle="--", label="even use")
        panel.set(title=f"level {level + 1}: {len(counts)} codes, Gini {report['gini'][level]:.2f}", xlabel="code, by use")
        panel.title.set_fontsize("small")
    panels[0].set_ylabel("items")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _entropy_bits(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def _gini(descending: np.ndarray) -> float:
    """0 where every code has as many items, towards 1 where one code has them all."""
    k = len(descending)
    rank = np.arange(k, 0, -1)
    return float(2 * (rank * descending).sum() / (k * descending.sum()) - (k + 1) / k)


def _reconstruction_error(codes: np.ndarray, vectors: np.ndarray, codebooks: Codebooks) -> list[float]:
    total = max(float((vectors.astype(np.float64) ** 2).sum()), np.finfo(np.float32).tiny)
    lengths = range(1, codes.shape[1] + 1)
    return [float(((vectors - reconstruct(codebooks, codes[:, :length])) ** 2).sum(dtype=np.float64)) / total for length in lengths]


def _neighbours_kept(prefixes: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    n = len(vectors)
    shown = {"first_level": 0, "first_two_levels": min(1, prefixes.shape[1] - 1)}
    if n < 2:
        return {name: 1.0 for name in shown} | {f"{name}_random": 1.0 for name in shown}
    sample = np.sort(np.random.default_rng(SAMPLE_SEED).choice(n, min(n, NEIGHBOUR_SAMPLE), replace=False))
    found = faiss.knn(vectors[sample], vectors, min(NEIGHBOURS + 1, n))[1]
    # an item is not its own neighbour; where duplicates pushed it out of the list, the last one found goes instead
    is_self = found == sample[:, None]
    is_self[~is_self.any(1), -1] = True
    neighbours = found[~is_self].reshape(len(sample), -1)
    result = {}
    for name, level in shown.items():
        column = prefixes[:, level]
        result[name] = float((column[neighbours] == column[sample][:, None]).mean())
        counts = np.bincount(column).astype(np.float64)
        result[f"{name}_random"] = float((counts * (counts - 1)).sum() / (n * (n - 1)))
    return result


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
