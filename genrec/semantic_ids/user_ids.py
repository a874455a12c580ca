"""User IDs computed from behaviour, and pooled long histories; neither is trained.

Source: OneSearch (arXiv 2509.03236), multi-view behaviour. Everything is a function of the histories alone, so that a
user ID changes with every event, a new user has one after the first event, and no table of users is kept. Pass
histories that end before the request (``Dataset.requests`` and ``requests_before`` make such): every event that is
passed counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from genrec.data.histories import Histories
from genrec.errors import UserError

# Events of the short and of the long view: OneSearch's window of 5 and its sequences of up to 10^3.
SHORT, LONG = 5, 1000
NO_CODE = -1
ROUNDING = 1e-6  # a weighted mean of equal codes is that code, whatever float64 adds to it


def recency_weights(histories: Histories) -> np.ndarray:
    """(n_events,) float64: ``lambda_i = exp(sqrt(i)) / sum_t exp(sqrt(t))``, i = 1 the oldest event of its history.

    The sum is over the events t of the history. The weights of a history that is not empty add up to 1. The root of the
    history's length is subtracted before ``exp``, which changes no weight but keeps long histories finite.
    """
    position = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], histories.lengths) + 1
    raised = np.exp(np.sqrt(position) - np.repeat(np.sqrt(histories.lengths), histories.lengths))
    total = np.bincount(histories.rows, weights=raised, minlength=len(histories))
    return raised / total[histories.rows]


def behaviour_codes(codes: np.ndarray, histories: Histories) -> np.ndarray:
    """``SID = ceil(sum_i lambda_i SID_i)``, level by level: (n, L) int64, -1 for an empty history.

    ``codes`` (n_items, L) semantic IDs; weights as in ``recency_weights``. The result is a code of each level's range;
    it is the paper's user ID for one view and names no item. For something a network can blend, see ``code_weights``.
    """
    _check(codes, histories)
    weights = recency_weights(histories)
    sums = np.column_stack([
        np.bincount(histories.rows, weights=weights * codes[histories.items, level], minlength=len(histories))
        for level in range(codes.shape[1])
    ])  # fmt: skip
    result = np.ceil(sums - ROUNDING).astype(np.int64)
    result[histories.lengths == 0] = NO_CODE
    return result


def user_codes(
    codes: np.ndarray, histories: Histories, short: int = SHORT, long: int = LONG, fallback: Histories | None = None
) -> np.ndarray:
    """The user ID of each history: (n, 2 L) int64.

    It holds the codes of the newest ``short`` events, then those of the newest ``long`` events.

    ``fallback`` (n histories) stands in for empty histories (see ``clicked_for_query``); where it is empty too, the
    codes are -1.
    """
    if short < 1 or long < 1:
        raise UserError(f"user_codes got short={short}, long={long}; expected 1 or more events")
    histories = histories if fallback is None else with_fallback(histories, fallback)
    return np.concatenate([behaviour_codes(codes, histories.last_n(count)) for count in (short, long)], axis=1)


def code_weights(codes: np.ndarray, sizes: Sequence[int], histories: Histories) -> list[sp.csr_matrix]:
    """Per level l a matrix (n, sizes[l]) float32 of weights of its codes.

    Its product with the code vectors of the level is ``sum_i lambda_i C_l[c_il]``.

    The same weights as ``behaviour_codes``, over vectors instead of code numbers, so that near users get near vectors
    and the code vectors may be trainable. Rows add up to 1; a row of an empty history is empty.
    """
    _check(codes, histories, sizes)
    weights = recency_weights(histories).astype(np.float32)
    return [_matrix(codes[histories.items, level], weights, histories, size) for level, size in enumerate(sizes)]


def long_history_vectors(
    codes: np.ndarray, histories: Histories, centroids: Sequence[np.ndarray], actions: np.ndarray | None = None,
    n_actions: int = 1,
    long: int = LONG,
) -> np.ndarray:  # fmt: skip
    """``V[b, l] = sum over events i of behaviour b of centroid_l[c_il]``: (n, n_actions, levels, d) float32.

    ``centroids``: one (k_l, d) array per residual level, coarse to fine; their count says how many levels of ``codes``
    are read. ``actions`` (n_events,) in [0, n_actions) splits a history by behaviour (OneSearch: click, order,
    relevant; with its 3 levels 9 vectors a user); None takes all events together. The newest ``long`` events of each
    behaviour count. A behaviour without events gives zeros.
    """
    _check(codes, histories, [len(level) for level in centroids])
    actions = np.zeros(len(histories.items), np.int64) if actions is None else np.asarray(actions)
    if actions.shape != histories.items.shape or (len(actions) and not 0 <= actions.min() <= actions.max() < n_actions):
        raise UserError(
            f"long_history_vectors: actions {actions.shape} must be {histories.items.shape} numbers from 0 to "
            f"{n_actions - 1}"
        )
    result = np.zeros((len(histories), n_actions, len(centroids), centroids[0].shape[1]), np.float32)
    for action in range(n_actions):
        chosen = np.concatenate([[0], np.cumsum(actions == action)])
        view = Histories(chosen[histories.offsets], histories.items[actions == action]).last_n(long)
        ones = np.ones(len(view.items), np.float32)
        for level, table in enumerate(centroids):
            result[:, action, level] = _matrix(codes[view.items, level], ones, view, len(table)) @ table
    return result


def clicked_for_query(
    request_queries: np.ndarray, queries: np.ndarray, items: np.ndarray, count: int = SHORT
) -> Histories:
    """For each request a history of the items most often clicked after its query.

    The most frequent item comes last, as the last event weighs most.

    ``queries``, ``items`` (n_events,): training events, -1 where there was no query; ``request_queries`` (N,) query
    ids, -1 for none. Ties go to the lower item id. This is how OneSearch gives a user without any history an ID. A
    query never seen gives an empty history.
    """
    searched = queries >= 0
    pairs, clicks = np.unique(
        np.column_stack([queries[searched], items[searched]]).astype(np.int64), axis=0, return_counts=True
    )
    pairs = pairs[np.lexsort((pairs[:, 1], -clicks, pairs[:, 0]))]
    start = np.searchsorted(pairs[:, 0], request_queries, side="left")
    length = np.minimum(np.searchsorted(pairs[:, 0], request_queries, side="right") - start, count)
    offsets = np.concatenate([[0], np.cumsum(length)])
    backwards = np.repeat(start + length - 1 + offsets[:-1], length) - np.arange(offsets[-1])
    return Histories(offsets, pairs[backwards, 1])


def with_fallback(histories: Histories, fallback: Histories) -> Histories:
    """Each history, or where it is empty the fallback at the same index."""
    if len(histories) != len(fallback):
        raise UserError(f"{len(histories)} histories have {len(fallback)} fallbacks; expected one each")
    both = Histories(
        np.concatenate([histories.offsets, histories.offsets[-1] + fallback.offsets[1:]]),
        np.concatenate([histories.items, fallback.items]),
    )
    return both.take(np.arange(len(histories)) + np.where(histories.lengths == 0, len(histories), 0))


def _matrix(column: np.ndarray, weights: np.ndarray, histories: Histories, size: int) -> sp.csr_matrix:
    # copies: summing duplicates works in place, on arrays that other levels share
    matrix = sp.csr_matrix((weights.copy(), column.copy(), histories.offsets.copy()), shape=(len(histories), size))
    matrix.sum_duplicates()
    return matrix


def _check(codes: np.ndarray, histories: Histories, sizes: Sequence[int] | None = None) -> None:
    items = histories.items
    if codes.ndim != 2 or (len(items) and not 0 <= items.min() <= items.max() < len(codes)):
        raise UserError(
            f"histories name items outside the {codes.shape} codes; expected (n_items, levels) codes and ids from 0 "
            f"to n_items - 1"
        )
    if sizes is not None and (
        len(sizes) > codes.shape[1] or not len(sizes) or (codes[:, : len(sizes)] >= np.asarray(sizes)).any()
    ):
        raise UserError(
            f"codes {codes.shape} do not fit levels of sizes {tuple(sizes)}; pass the codebooks the codes were made "
            f"with"
        )
