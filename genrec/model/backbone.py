"""The decoder-only backbone: one masked sequence of context and request tokens (SynerGen, section 1.3 of its token kinds).

Context token i sees context j <= i. A request at position p sees context j < p and itself: never a later event, never another request.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.model.dropout import Dropout
from genrec.model.rope import rotate


def sequence_mask(length: int, positions: Tensor) -> Tensor:
    """Who sees whom: (batch, T + R, T + R) bool for T = ``length`` context tokens and R requests at ``positions`` (batch, R).

    Padding needs no entry: contexts are padded on the right, so causality already hides it.
    """
    batch, requests = positions.shape
    device = positions.device
    total = length + requests
    mask = torch.zeros(batch, total, total, dtype=torch.bool, device=device)
    mask[:, :length, :length] = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask[:, length:, :length] = torch.arange(length, device=device) < positions[..., None]
    mask[:, length:, length:] = torch.eye(requests, dtype=torch.bool, device=device)
    return mask


class Block(nn.Module):
    """Pre-norm self-attention and a GELU feed-forward layer."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        """x (batch, length, dim), angles (batch, length, planes), mask (batch, length, length) -> (batch, length, dim)."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v, attn_mask=mask[:, None], dropout_p=rate)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, length, dim)))
        return x + self.drop(self.down(F.gelu(self.up(self.feed_norm(x)))))


class Backbone(nn.Module):
    """A stack of blocks with a final norm."""

    def __init__(self, dim: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, angles, mask)
        return self.norm(x)
