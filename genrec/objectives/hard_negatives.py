"""InfoNCE against hard negatives.

The second half of SynerGen's ``alpha x easy + (1 - alpha) x hard`` (arXiv 2509.21777, section 1.5).

Hard negatives are impressions that the same user ignored; in a log without impressions, the items that the model
itself ranks highest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.model.batch import BatchImpressions
from genrec.model.device import selected, weighted_mean


def contrast(requests: Tensor, index: Tensor, targets: Tensor, hard: Tensor) -> Tensor:
    """Mean cross-entropy of targets (N,) among themselves and their hard negatives (N, H), -1 for none; 0 without any.

    ``requests`` (N, dim), ``index`` (n_items, dim) as for ``sampled_softmax``.
    """
    rows, weights = selected((hard >= 0).any(1))
    requests, targets, hard = requests[rows], targets[rows], hard[rows]
    own = (requests * index[targets]).sum(-1, keepdim=True)
    others = torch.einsum("nd,nhd->nh", requests, index[hard.clamp(min=0)]).masked_fill(
        (hard < 0) | (hard == targets[:, None]), -torch.inf
    )
    losses = torch.cat([own, others], dim=1).float().logsumexp(1) - own[:, 0].float()
    return weighted_mean(losses, weights)


def ignored_impressions(impressions: BatchImpressions, count: int, n_rows: int, n_items: int) -> Tensor:
    """For each sequence up to ``count`` items of its impressions that never reached the first stage.

    (n_rows, count), -1 where there are fewer.

    They are drawn anew each time. Sizes depend on the data, so ``impressions`` is the batch's copy on the host.
    """
    owner = impressions.row[:, None].expand_as(impressions.items)
    live, chosen = impressions.items >= 0, impressions.reached[..., 0]
    key = owner * n_items + impressions.items
    ignored = key[live & ~chosen].unique()
    ignored = ignored[~torch.isin(ignored, key[live & chosen])]
    ignored = ignored[torch.randperm(len(ignored))]
    ignored = ignored[torch.argsort(ignored // n_items, stable=True)]
    row = ignored // n_items
    per_row = torch.zeros(n_rows, dtype=torch.long).index_add(0, row, torch.ones_like(row))
    column = torch.arange(len(ignored)) - (per_row.cumsum(0) - per_row)[row]
    table = ignored.new_full((n_rows, count), -1)
    kept = column < count
    table[row[kept], column[kept]] = (ignored % n_items)[kept]
    return table


@torch.no_grad()
def mined(
    requests: Tensor, index: Tensor, targets: Tensor, known: Tensor, count: int, among: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ``count`` of the 2 x ``count`` items that score highest for each request.

    (N, count), -1 where there are fewer.

    Also the lowest score of the 2 x ``count``, and the fraction of them that is drawn, which is the chance of an item
    that scores so high: (N,) each. ``targets`` (N,), the user's ``known`` items (N, T), and ids not ``among`` (n,)
    are left out.
    """
    scores = requests @ index.T
    if among is not None:
        hidden = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device).index_fill(0, among, False)
        scores.masked_fill_(hidden, -torch.inf)
    scores.scatter_(1, known, -torch.inf).scatter_(1, targets[:, None], -torch.inf)
    best = scores.topk(min(2 * count, scores.shape[1]), dim=1)
    keys = torch.rand(best.values.shape, device=scores.device).masked_fill(best.values.isneginf(), -1.0)
    kept = keys.topk(min(count, keys.shape[1]), dim=1)
    live = best.values.isfinite()
    share = kept.values.ge(0).sum(1) / live.sum(1).clamp(min=1)
    lowest = torch.where(live, best.values, torch.inf).amin(1)
    return best.indices.gather(1, kept.indices).masked_fill(kept.values < 0, -1), lowest, share
