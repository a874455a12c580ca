"""Drift: compares new items with those that the codebooks were fitted on, and says when to tokenize again."""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec.semantic_ids.prefixes import prefix_ids
from genrec.semantic_ids.quantizers import Codebooks, encode, reconstruct
from genrec.semantic_ids.quantizers.balance import Rows

FAR_QUANTILE = 0.95
MAX_FAR_SHARE = 0.15  # three times the fraction in the catalogue of the fit
COLLISION_FACTOR, COLLISION_SLACK = 2.0, 0.05
MIN_EFFECTIVE_CODES = 0.5
MAX_GROWTH = 2.0
MIN_ITEMS = 30  # fewer new items say nothing
SAMPLE = 20_000
DRAWS = 20
RULE = (
    f"tokenize again when more than {MAX_FAR_SHARE:.0%} of the new items are farther from their first code than "
    f"{FAR_QUANTILE:.0%} of the catalogue was, or they meet taken codes more than {COLLISION_FACTOR:g} times as often "
    f"as the catalogue did (+ {COLLISION_SLACK:.0%}), or they use fewer than {MIN_EFFECTIVE_CODES:.0%} as many first "
    f"codes as equally many items of the catalogue, or the catalogue has grown to more than {MAX_GROWTH:g} times "
    f"the items fitted on; never on fewer than {MIN_ITEMS} new items"
)


def drift_baseline(codebooks: Codebooks, vectors: Rows, codes: np.ndarray) -> dict[str, Any]:
    """What `drift_report` compares with; ready for JSON.

    `vectors` (n, d) are the catalogue's items *as new ones would be seen* (no co-consumption of their own), `codes` (n,
    L) the codes they have. At most 20,000 items are read.
    """
    rows = np.arange(len(vectors))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), SAMPLE, replace=False))
    some = vectors[rows]
    seen = encode(codebooks, some)
    return {
        "items": len(vectors),
        "far": float(np.quantile(_distance(codebooks, seen, some), FAR_QUANTILE)),
        "taken": float((_holders(codes, seen) > (seen == codes[rows]).all(1)).mean()),  # by another item than itself
        "first_codes": np.bincount(seen[:, 0], minlength=codebooks.sizes[0]).tolist(),
    }


def drift_report(
    codebooks: Codebooks, baseline: dict[str, Any], catalogue: np.ndarray, codes: np.ndarray, vectors: np.ndarray
) -> dict[str, Any]:
    """Compare new items, `codes` (m, L) of `vectors` (m, d), with the fit's `baseline`.

    `catalogue` (n, L) are the codes in use.

    Keys: `new_items`; `far_share` (farther from their first code than 95 % of the catalogue was; 0.05 is no drift);
    `taken` and `taken_fit` (fraction of items whose code, before resolution, another item of the catalogue has);
    `effective_codes` (2^entropy of the first code's use, as a fraction of that of equally many catalogue items, 1 is
    no drift); `growth` (items now and new / items fitted on); `reasons` (which of the rule's limits are passed),
    `retokenize` and the `rule` itself. Empty codes (m = 0) are no drift.
    """
    m = len(codes)
    report: dict[str, Any] = {
        "new_items": m,
        "growth": (len(catalogue) + m) / baseline["items"],
        "taken_fit": baseline["taken"],
    }
    if m:
        report["far_share"] = float((_distance(codebooks, codes, vectors) > baseline["far"]).mean())
        report["taken"] = float((_holders(catalogue, codes) > 0).mean())
        report["effective_codes"] = _effective_share(np.asarray(baseline["first_codes"]), codes[:, 0])
    limits = {
        "far_share": report.get("far_share", 0) > MAX_FAR_SHARE,
        "taken": report.get("taken", 0) > COLLISION_FACTOR * baseline["taken"] + COLLISION_SLACK,
        "effective_codes": report.get("effective_codes", 1) < MIN_EFFECTIVE_CODES,
        "growth": report["growth"] > MAX_GROWTH,
    }
    report["reasons"] = [name for name, passed in limits.items() if passed and m >= MIN_ITEMS]
    return report | {"retokenize": bool(report["reasons"]), "rule": RULE}


def _distance(codebooks: Codebooks, codes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(n,) distance of each vector from what its first code alone stands for."""
    return np.linalg.norm(codebooks.project(vectors) - reconstruct(codebooks, codes[:, :1]), axis=1)


def _holders(catalogue: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(m,) how many items of the catalogue (n, L) have each of the codes (m, L)."""
    leaf = prefix_ids(np.concatenate([catalogue, codes]))[1][:, -1]
    return np.bincount(leaf[: len(catalogue)], minlength=int(leaf.max()) + 1)[leaf[len(catalogue) :]]


def _effective_share(counts: np.ndarray, first: np.ndarray) -> float:
    """Effective number of codes of the new items, as a fraction of that of catalogue items.

    The latter is the mean over seeded draws of equally many items from `counts`.
    """
    draws = np.random.default_rng(0).multinomial(len(first), counts / counts.sum(), size=DRAWS)
    return float(_effective(np.bincount(first, minlength=len(counts))[None])[0] / _effective(draws).mean())


def _effective(counts: np.ndarray) -> np.ndarray:
    fraction = counts / counts.sum(1, keepdims=True)
    return np.exp(-(fraction * np.log(np.where(fraction > 0, fraction, 1))).sum(1))
