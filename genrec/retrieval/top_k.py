"""Top-k with one order for ties: equal scores go to the lower id, on every device and in every batch."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 16  # columns of a group; on a GPU whole groups are left out before anything is ranked


def top_columns(scores: Tensor, ids: Tensor, k: int) -> Tensor:
    """Columns (B, k) of the best float32 scores (B, N), best first.

    Of equal scores the lower of ``ids`` (B, N) comes first.

    The plain top-k of the CPU is faster than ranking scores and ids as one number, but takes any of equal scores. So it
    is used unless the
    last score that is taken equals the first that is not.
    """
    if scores.device.type == "cpu" and scores.shape[1] > k:
        best, column = scores.topk(k + 1, dim=1)
        if not bool(((best[:, k] == best[:, k - 1]) & best[:, k].isfinite()).any()):
            column = column[:, :k]
            order = sort_keys(best[:, :k], ids.gather(1, column)).argsort(dim=1, descending=True)
            return column.gather(1, order)
    return _highest(sort_keys(scores, ids), min(k, scores.shape[1]))


def best(ids: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of ids and scores (B, N) as rows (B, k): -1 and -inf where there are fewer or a score is -inf."""
    if scores.shape[1] < k:
        pad = (0, k - scores.shape[1])
        ids, scores = (
            torch.nn.functional.pad(part, pad, value=fill) for part, fill in ((ids, -1), (scores, -torch.inf))
        )
    columns = top_columns(scores, ids.clamp(min=0), k)
    scores = scores.gather(1, columns)
    return ids.gather(1, columns).masked_fill(scores.isneginf(), -1), scores


def distinct_ids(ids: Tensor, empty: int) -> Tensor:
    """Each row's distinct ids of (B, N) in rising order, ``empty`` behind them; -1 is no id."""
    ids = torch.where(ids >= 0, ids, empty).sort(dim=1).values
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    ids = torch.where(repeated, empty, ids).sort(dim=1).values
    return ids[:, : max(int((ids < empty).sum(1).max()), 1)]


def sort_keys(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 keys in the order of float32 scores, equal scores by falling id: one top-k then orders both."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0 into 0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) - ids


def _highest(keys: Tensor, k: int) -> Tensor:
    """Columns (B, k) of the highest distinct keys (B, N), highest first.

    They lie in the k groups with the highest maxima.
    """
    batch, columns = keys.shape
    if columns < 4 * GROUP * k:
        return keys.topk(k, dim=1).indices
    padding = -columns % GROUP
    groups = torch.nn.functional.pad(keys, (0, padding), value=torch.iinfo(torch.long).min).view(batch, -1, GROUP)
    group = groups.amax(-1).topk(k, dim=1).indices
    index = groups.gather(1, group[..., None].expand(-1, -1, GROUP)).flatten(1).topk(k, dim=1).indices
    return group.gather(1, index // GROUP) * GROUP + index % GROUP
