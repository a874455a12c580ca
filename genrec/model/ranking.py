"""Candidate tokens and the ranking head (SynerGen, arXiv 2509.21777; OnePiece, arXiv 2509.18091).

A candidate token is the projected item vector plus features of the pair: impression rates where the log has
impressions, else scores of retrieval and anchors (``pair_features``). It has the position of its request, and sees
what the request saw, the request's tokens and reasoning blocks, and itself. No other token sees it, so scoring more
candidates changes no answer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from genrec.model.backbone import Backbone, Cache
from genrec.model.dropout import Dropout


class RankingHead(nn.Module):
    """Candidate tokens in, one logit per stage of the feedback chain out."""

    def __init__(self, dim: int, initial: np.ndarray, dropout: float):
        """``initial`` (stages, F): weights that the logits start with for the F features of each candidate."""
        super().__init__()
        stages, features = initial.shape
        self.stages = stages
        self.kind = nn.Parameter(torch.randn(dim) * 0.02)
        self.item = nn.Linear(dim, dim, bias=False)
        self.features = nn.Sequential(nn.Linear(features, dim), nn.GELU(), nn.Linear(dim, dim))
        self.direct = nn.Linear(features, stages, bias=False)  # counts act on the logit without a norm in between
        with torch.no_grad():
            self.direct.weight.copy_(torch.from_numpy(initial))
        self.norm, self.drop = nn.LayerNorm(dim), Dropout(dropout)
        self.score = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), Dropout(dropout), nn.Linear(dim, stages))

    def forward(
        self, backbone: Backbone, items: Tensor, features: Tensor | None, angles: Tensor, seen: Tensor, cache: Cache
    ) -> Tensor:
        """Logits (N, C, stages) of N requests with C candidates each.

        ``items`` (N, C, dim) item vectors, ``features`` (N, C, F) or None for zeros, ``angles`` (N, planes) of the
        requests, ``seen`` (N, S) which of the S cached tokens the candidates of a request see.
        """
        n, count, _ = items.shape
        features = items.new_zeros(n, count, self.direct.in_features) if features is None else features.to(items.dtype)
        x = self.drop(self.norm(self.kind + self.item(items) + self.features(features)))
        states = backbone.extend_separately(x, angles[:, None].expand(-1, count, -1), seen, cache)
        return self.score(states) + self.direct(features)


def request_rows(
    cache: Cache, visible: Tensor, row: Tensor, column: Tensor, block: int, blocks: int
) -> tuple[Cache, Tensor]:
    """The cached tokens of some requests as rows of their own.

    The cache holds T context tokens and then, ``blocks`` times, R x M = ``block`` tokens of each request; ``visible``
    is (B, R, T), ``row`` and ``column`` (N,). Returns keys and values (N, heads, T + M x blocks, d), and which of
    these tokens each request sees (N, T + M x blocks).
    """
    requests, length = visible.shape[1:]
    own = torch.arange(blocks, device=row.device)[:, None] * (requests * block) + torch.arange(block, device=row.device)
    own = length + (column * block)[:, None] + own.flatten()
    index = torch.cat([torch.arange(length, device=row.device).expand(len(row), -1), own], dim=1)
    seen = torch.cat([visible[row, column], visible.new_ones(len(row), own.shape[1])], dim=1)

    def pick(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2)[row[:, None], index].transpose(1, 2)

    return [(pick(keys), pick(values)) for keys, values in cache], seen
