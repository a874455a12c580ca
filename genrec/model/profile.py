"""Request tokens that describe the user by behaviour alone (OneSearch, arXiv 2509.03236, multi-view behaviour).

*User ID*: code vectors of the items of past events, recent ones weighing more, over the newest few and over the whole
context. *Long history*: per action and code level the mean code vector of all events before the request, those before
the context included, read by a few learned queries. Both are functions of the events a request may see: no table of
users is kept, and each request of a sequence has its own tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.model.embeddings import ItemEncoder
from genrec.model.pooling import SHORT, prefix_sums, recency_pool

LEVELS = 3  # residual code levels, which describe a taste; deeper ones only tell items apart


class Profile(nn.Module):
    """``users``: two tokens of the user ID; ``summaries``: tokens of the long history.

    Code vectors are the item encoder's.
    """

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
        """Tokens (B, R, tokens, dim) of requests that see the first ``positions`` (B, R) events.

        The events are ``items`` and ``actions`` (B, T). ``older``: ids and actions (n,) of the events before each
        context, and where those of each sequence begin (B,).
        """
        assert encoder.codes is not None
        table, rows = encoder.codes.weight, encoder.code_rows
        vectors = F.embedding(rows[items], table)  # (B, T, L, dim)
        tokens = []
        if len(self.views):
            whole = vectors.sum(2)
            pools = (recency_pool(whole, positions, SHORT), recency_pool(whole, positions, max(items.shape[1], SHORT)))
            tokens = [view(pool)[:, :, None] for view, pool in zip(self.views, pools, strict=True)]
        if self.queries is not None:
            counts, sums = self._totals(vectors[:, :, : self.levels], actions, positions)
            if older is not None:
                ids, done, offsets = older
                codes = F.embedding(rows[ids][:, : self.levels], table)
                counts, sums = self._add_older(counts, sums, codes, done, offsets, positions)
            tokens.append(self._read(self.queries, counts, sums))
        return torch.cat(tokens, dim=2)

    def _totals(self, vectors: Tensor, actions: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Events (B, R, actions) of each action, and the sums of their vectors (B, R, actions, levels, dim)."""
        done = F.one_hot(actions, self.n_actions).to(vectors.dtype)  # (B, T, actions)
        sums = prefix_sums((done[..., None, None] * vectors[:, :, None]).flatten(2), positions)
        return prefix_sums(done, positions), sums.unflatten(2, (self.n_actions, *vectors.shape[2:]))

    def _add_older(
        self, counts: Tensor, sums: Tensor, codes: Tensor, actions: Tensor, offsets: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the events before the contexts: ``codes`` (n, levels, dim), ``actions`` (n,), ``offsets`` (B,)."""
        row = torch.searchsorted(offsets, torch.arange(len(actions), device=actions.device), right=True) - 1
        cell, cells = row * self.n_actions + actions, len(positions) * self.n_actions
        old = codes.new_zeros(cells, codes[0].numel()).index_add(0, cell, codes.flatten(1)).view(len(positions), 1, -1)
        number = codes.new_zeros(cells).index_add(0, cell, torch.ones_like(cell, dtype=codes.dtype))
        sees = (positions > 0)[..., None].to(codes.dtype)
        sums = sums + (sees * old).unflatten(2, sums.shape[2:])
        return counts + sees * number.view(len(positions), 1, -1), sums

    def _read(self, queries: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """Attention of the learned queries over the means per action and level: (B, R, summaries, dim)."""
        means = sums / counts.clamp(min=1)[..., None, None]
        means = self.norm(means + self.kind + counts.log1p()[..., None, None] * self.amount)
        means = means.flatten(2, 3)  # (B, R, actions x levels, dim)
        keys, values = (part.unflatten(-1, (self.heads, -1)) for part in self.key_value(means).chunk(2, dim=-1))
        null = self.null.unflatten(-1, (self.heads, -1))
        keys, values = (
            torch.cat([one.expand(*part.shape[:2], 1, -1, -1), part], dim=2)
            for one, part in zip(null, (keys, values), strict=True)
        )
        live = F.pad(
            (counts > 0).repeat_interleave(self.levels, 2), (1, 0), value=True
        )  # the null key is always visible
        queries = queries.unflatten(-1, (self.heads, -1)) * keys.shape[-1] ** -0.5
        logits = torch.einsum("shd,brkhd->brshk", queries, keys).masked_fill(~live[:, :, None, None], -torch.inf)
        return self.out(torch.einsum("brshk,brkhd->brshd", logits.softmax(-1), values).flatten(3))
