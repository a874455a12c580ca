"""Tokens of a request's block that say who asks, made of behaviour alone (OneSearch, arXiv 2509.03236, multi-view behaviour).

*User ID*: the code vectors of the past events' items, recent ones weighing more, of the newest few and of all that the context holds.
*Long history*: for each action and code level the mean code vector over all events before the request, those in front of the context too,
read by a few learnt queries. Both are functions of the events that the request may see, so nobody's table is kept, several requests of a
sequence have their own, and a request that sees nothing has empty ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.model.embeddings import ItemEncoder
from genrec.semantic_ids.user_ids import SHORT
from genrec.semantic_ids.user_prefixes import prefix_sums, recency_pool

LEVELS = 3  # code levels that are summed: the residual ones; what lies below names an item, not a taste


class Profile(nn.Module):
    """``users``: two tokens of the user ID; ``summaries`` tokens of the long history. Code vectors are the item encoder's."""

    def __init__(self, dim: int, heads: int, n_actions: int, levels: int, users: bool, summaries: int):
        super().__init__()
        self.heads, self.n_actions, self.levels = heads, n_actions, min(levels, LEVELS)
        self.views = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2 * users))
        self.queries = None
        if summaries:
            self.queries = nn.Parameter(torch.randn(summaries, dim) * 0.02)
            self.kind = nn.Parameter(torch.randn(n_actions, self.levels, dim) * 0.02)
            self.amount = nn.Parameter(torch.randn(n_actions, self.levels, dim) * 0.02)
            self.null = nn.Parameter(torch.zeros(2, dim))
            self.norm, self.key_value = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim, bias=False)
            self.out = nn.Linear(dim, dim)

    def forward(
        self,
        encoder: ItemEncoder,
        items: Tensor,
        actions: Tensor,
        positions: Tensor,
        older: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:
        """(B, R, tokens, dim) of requests that see the first ``positions`` (B, R) of ``items`` / ``actions`` (B, T).

        ``older``: ids and actions (n,) of the events in front of each sequence, and where each sequence's begin (B,).
        """
        table, rows = encoder.codes.weight, encoder.code_rows
        vectors = F.embedding(rows[items], table)  # (B, T, L, dim)
        tokens = []
        if len(self.views):
            whole = vectors.sum(2)
            pools = (recency_pool(whole, positions, SHORT), recency_pool(whole, positions, max(items.shape[1], SHORT)))
            tokens = [view(pool)[:, :, None] for view, pool in zip(self.views, pools, strict=True)]
        if self.queries is not None:
            far = None if older is None else (F.embedding(rows[older[0]][:, : self.levels], table), *older[1:])
            tokens.append(self._summaries(vectors[:, :, : self.levels], actions, positions, far))
        return torch.cat(tokens, dim=2)

    def _summaries(
        self, vectors: Tensor, actions: Tensor, positions: Tensor, far: tuple[Tensor, Tensor, Tensor] | None
    ) -> Tensor:
        batch, length, levels, dim = vectors.shape
        done = F.one_hot(actions, self.n_actions).to(vectors.dtype)  # (B, T, actions)
        counts = prefix_sums(done, positions)
        sums = prefix_sums((done[..., None, None] * vectors[:, :, None]).flatten(2), positions).unflatten(
            2, (self.n_actions, levels, dim)
        )
        if far is not None:
            sees = (positions > 0)[..., None].to(vectors.dtype)
            row = torch.searchsorted(far[2], torch.arange(len(far[1]), device=actions.device), right=True) - 1
            place = row * self.n_actions + far[1]
            old = (
                vectors.new_zeros(batch * self.n_actions, levels * dim)
                .index_add(0, place, far[0].flatten(1))
                .view(batch, 1, -1)
            )
            number = vectors.new_zeros(batch * self.n_actions).index_add(
                0, place, torch.ones_like(place, dtype=vectors.dtype)
            )
            sums = sums + (sees * old).unflatten(2, (self.n_actions, levels, dim))
            counts = counts + sees * number.view(batch, 1, -1)
        means = sums / counts.clamp(min=1)[..., None, None]
        means = self.norm(means + self.kind + counts.log1p()[..., None, None] * self.amount).flatten(
            2, 3
        )  # (B, R, actions x levels, dim)
        keys, values = (part.unflatten(-1, (self.heads, -1)) for part in self.key_value(means).chunk(2, dim=-1))
        null = self.null.unflatten(-1, (self.heads, -1))
        keys, values = (
            torch.cat([one.expand(*part.shape[:2], 1, -1, -1), part], dim=2)
            for one, part in zip(null, (keys, values), strict=True)
        )
        live = F.pad((counts > 0).repeat_interleave(levels, 2), (1, 0), value=True)  # the null key is always visible
        queries = self.queries.unflatten(-1, (self.heads, -1)) * keys.shape[-1] ** -0.5
        weights = (
            torch.einsum("shd,brkhd->brshk", queries, keys).masked_fill(~live[:, :, None, None], -torch.inf).softmax(-1)
        )
        return self.out(torch.einsum("brshk,brkhd->brshd", weights, values).flatten(3))
