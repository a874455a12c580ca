"""Candidate tokens and the ranking head (SynerGen, arXiv 2509.21777, sections 1.2 to 1.5; OnePiece, arXiv 2509.18091, section 3.1).

A candidate token is the item's vector through a projection of its own, plus what is known of the pair: from counts of what was shown where the log says so,
else from the retrieval head and the anchors (``candidate_evidence``). It stands where its request
stands, and sees what the request saw, the request's tokens and reasoning blocks, and itself; its fellow candidates only with
``model.candidates_visible``. Nothing sees a candidate but itself (and fellows), so scoring more of them changes no other answer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from genrec.model.backbone import Backbone, Cache
from genrec.model.dropout import Dropout


class RankingHead(nn.Module):
    """Candidate tokens in, one logit per stage of the feedback chain out."""

    def __init__(self, dim: int, stages: int, starting: np.ndarray | None, dropout: float, visible: bool):
        """``stages`` logits per candidate; ``starting`` (stages, F) weights of the evidence that each carries, None where it carries none;
        ``visible``: candidates see one another.
        """
        super().__init__()
        self.stages, self.visible = stages, visible
        self.kind = nn.Parameter(torch.randn(dim) * 0.02)
        self.item = nn.Linear(dim, dim, bias=False)
        self.evidence = self.direct = None
        if starting is not None:
            evidence = starting.shape[1]
            self.evidence = nn.Sequential(nn.Linear(evidence, dim), nn.GELU(), nn.Linear(dim, dim))
            self.direct = nn.Linear(
                evidence, stages, bias=False
            )  # counts speak plainly; no norm is between them and the logit
            with torch.no_grad():
                self.direct.weight.copy_(torch.from_numpy(starting))
        self.norm, self.drop = nn.LayerNorm(dim), Dropout(dropout)
        self.score = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), Dropout(dropout), nn.Linear(dim, stages))

    def forward(
        self,
        backbone: Backbone,
        items: Tensor,
        evidence: Tensor | None,
        live: Tensor,
        angles: Tensor,
        seen: Tensor,
        cache: Cache,
    ) -> Tensor:
        """Logits (N, C, stages) of N requests with C candidates each.

        ``items`` (N, C, dim) item vectors, ``evidence`` (N, C, F) or None for nothing known, ``live`` (N, C) bool false for padding,
        ``angles`` (N, planes) of the requests, ``seen`` (N, S) which of the S cached tokens each request's candidates see.
        """
        n, count, _ = items.shape
        x = self.kind + self.item(items)
        if self.evidence is not None:
            evidence = (
                items.new_zeros(n, count, self.direct.in_features) if evidence is None else evidence.to(items.dtype)
            )
            x = x + self.evidence(evidence)
        x = self.drop(self.norm(x))
        angles = angles[:, None].expand(-1, count, -1)
        if self.visible:
            fellows = torch.eye(count, dtype=torch.bool, device=x.device) | live[:, None]
            mask = torch.cat([seen[:, None].expand(-1, count, -1), fellows], dim=2)
            states, _ = backbone.extend(x, angles, mask, cache)
        else:
            states = backbone.alone(x, angles, seen, cache)
        logits = self.score(states)
        return logits if self.direct is None else logits + self.direct(evidence)


def request_rows(
    cache: Cache, visible: Tensor, row: Tensor, lane: Tensor, block: int, blocks: int
) -> tuple[Cache, Tensor]:
    """The cached tokens of some requests as rows of their own: keys and values (N, heads, T + M x blocks, d), and which are seen (N, same).

    The cache holds T context tokens and then, ``blocks`` times, R x M = ``block`` tokens of each request; ``visible`` (B, R, T).
    """
    requests, length = visible.shape[1:]
    own = torch.arange(blocks, device=row.device)[:, None] * (requests * block) + torch.arange(block, device=row.device)
    own = length + (lane * block)[:, None] + own.flatten()
    place = torch.cat([torch.arange(length, device=row.device).expand(len(row), -1), own], dim=1)
    seen = torch.cat([visible[row, lane], visible.new_ones(len(row), own.shape[1])], dim=1)
    pick = lambda part: part.transpose(1, 2)[row[:, None], place].transpose(1, 2)
    return [(pick(keys), pick(values)) for keys, values in cache], seen
