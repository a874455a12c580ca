"""InfoNCE against hard negatives: the second half of SynerGen's ``alpha x easy + (1 - alpha) x hard`` (arXiv 2509.21777, section 1.5).

Hard are the items that the same person was shown and did not want; in a log that does not say, those that the model itself ranks highest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.model.batch import BatchImpressions


def contrast(requests: Tensor, index: Tensor, targets: Tensor, hard: Tensor) -> Tensor:
    """Mean cross-entropy of targets (N,) among themselves and their hard negatives (N, H), -1 for none; 0 where nobody has one.

    ``requests`` (N, dim), ``index`` (n_items, dim) as for ``sampled_softmax``.
    """
    some = (hard >= 0).any(1)
    if not some.any():
        return requests.sum() * 0
    requests, targets, hard = requests[some], targets[some], hard[some]
    own = (requests * index[targets]).sum(-1, keepdim=True)
    others = torch.einsum("nd,nhd->nh", requests, index[hard.clamp(min=0)]).masked_fill(
        (hard < 0) | (hard == targets[:, None]), -torch.inf
    )
    return (torch.cat([own, others], dim=1).float().logsumexp(1) - own[:, 0].float()).mean()


def ignored_impressions(shown: BatchImpressions, rows: Tensor, count: int, n_rows: int, n_items: int) -> Tensor:
    """For each of the requests in sequences ``rows`` (N,): up to ``count`` items that its sequence was shown and never reached the first
    stage with, drawn anew: (N, count), -1 where there are fewer.
    """
    owner = shown.row[:, None].expand_as(shown.items)
    live, wanted = shown.items >= 0, shown.reached[..., 0]
    key = owner * n_items + shown.items
    vain = key[live & ~wanted].unique()
    vain = vain[~torch.isin(vain, key[live & wanted])]
    vain = vain[torch.randperm(len(vain), device=vain.device)]
    vain = vain[torch.argsort(vain // n_items, stable=True)]
    have = torch.zeros(n_rows, dtype=torch.long, device=vain.device).index_add(
        0, vain // n_items, torch.ones_like(vain)
    )
    lane = torch.arange(len(vain), device=vain.device) - (have.cumsum(0) - have)[vain // n_items]
    table = vain.new_full((n_rows, count), -1)
    kept = lane < count
    table[(vain // n_items)[kept], lane[kept]] = (vain % n_items)[kept]
    return table[rows]


@torch.no_grad()
def mined(
    requests: Tensor, index: Tensor, targets: Tensor, known: Tensor, count: int, among: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``count`` of the 2 x ``count`` items that score highest for each request: (N, count), -1 where there are fewer.

    Also the lowest score of the 2 x ``count``, and the share of them that is taken: (N,) each. An item that scores so high is drawn with that chance.
    ``targets`` (N,) and what the person is ``known`` (N, T) to have had are left out, and what is not ``among`` (n,) the ids given.
    """
    scores = requests @ index.T
    if among is not None:
        scores.masked_fill_(
            torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device).index_fill(
                0, among.to(scores.device), False
            ),
            -torch.inf,
        )
    scores.scatter_(1, known, -torch.inf).scatter_(1, targets[:, None], -torch.inf)
    best = scores.topk(min(2 * count, scores.shape[1]), dim=1)
    keys = torch.rand(best.values.shape, device=scores.device).masked_fill(best.values.isneginf(), -1.0)
    kept = keys.topk(min(count, keys.shape[1]), dim=1)
    live = best.values.isfinite()
    share = kept.values.ge(0).sum(1) / live.sum(1).clamp(min=1)
    lowest = torch.where(live, best.values, torch.inf).amin(1)
    return best.indices.gather(1, kept.indices).masked_fill(kept.values < 0, -1), lowest, share
