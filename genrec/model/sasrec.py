"""SASRec (Kang and McAuley 2018) with cross-entropy over the catalogue: the baseline that a sequence model has to beat.

A network of its own, not ours with parts switched off: learnt positions counted from the newest event, pre-norm
blocks, item vectors tied between input and output, raw dot products. It reads item ids alone, and learns in the same
training loop as ours, with the same batches. BSARec (Shin et al. 2024, arXiv 2312.10325) has other blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.catalogue import Catalogue
from genrec.config.schema import ModelConfig
from genrec.model.batch import Batch
from genrec.model.dropout import dropout_rate
from genrec.model.network import Encoded

# BSARec's alpha, and the frequencies of its c = 5: what its authors set for Beauty.
FILTER_SHARE, FREQUENCIES = 0.7, 3


class ItemTable(nn.Module):
    """A vector per item."""

    def __init__(self, n_items: int, dim: int):
        super().__init__()
        self.ids = nn.Embedding(n_items, dim)
        nn.init.normal_(self.ids.weight, std=0.02)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """All vectors (n_items, dim), or those of ``rows`` (N,): (N, dim)."""
        return self.ids.weight if rows is None else self.ids(rows)


class SASRec(nn.Module):
    """Encodes requests and retrieves by dot product.

    It has the interface of ``GenerativeRecommender`` that the training loop uses.
    """

    decoder = reasoning = ranking = profile = anchor_tables = None

    def __init__(self, config: ModelConfig, catalogue: Catalogue, time_base: float):
        super().__init__()
        self.config, self.catalogue, self.time_base = config, catalogue.share(), time_base
        dim, rate = config.dim, dropout_rate(config.dropout)
        self.item_encoder = ItemTable(catalogue.n_items, dim)
        self.positions = nn.Embedding(config.max_length, dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList(self._block(config, rate) for _ in range(config.layers))
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(rate)

    def _block(self, config: ModelConfig, rate: float) -> nn.Module:
        dim = config.dim
        return nn.TransformerEncoderLayer(dim, config.heads, dim, rate, "relu", batch_first=True, norm_first=True)

    def choose_anchors(self, batch: Batch, leave_out: bool | None = None) -> None:
        """It reads no anchors."""
        return None

    def encode(self, batch: Batch, items: Tensor | None = None, anchors: None = None) -> Encoded:
        """A request's vector is the state of the event before it; zero without one.

        See ``GenerativeRecommender.encode``.
        """
        items = self.item_encoder() if items is None else items
        length, device = batch.items.shape[1], batch.items.device
        index = torch.arange(length, device=device)
        newest = batch.positions.amax(1, keepdim=True)
        position = (newest - 1 - index).clamp(0, self.config.max_length - 1)
        x = self.drop(items[batch.items] * self.config.dim**0.5 + self.positions(position))
        mask = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        x = self.norm(x)
        last = (batch.positions - 1).clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
        requests = x.gather(1, last) * (batch.positions > 0)[..., None]
        return Encoded(
            x[:, :0], requests, index < batch.positions[..., None], items, [requests[:, :, None]], x.new_empty(0), []
        )

    def retrieval_vectors(self, requests: Tensor) -> Tensor:
        """Request vectors (..., dim) for the dot product with ``item_index``."""
        return requests

    def item_index(self, items: Tensor) -> Tensor:
        """Item vectors (n_items, dim) for the dot product."""
        return items


class BSARec(SASRec):
    """SASRec with blocks that mix attention and a low-pass filter of the sequence."""

    def _block(self, config: ModelConfig, rate: float) -> nn.Module:
        return FilterBlock(config.dim, config.heads, rate, config.max_length)


class FilterBlock(nn.Module):
    """``FILTER_SHARE`` x frequency part + the rest x attention, then a feed-forward layer; norms behind each part.

    The frequency part of x is ``low(x) + scale^2 (x - low(x))``, and ``low`` keeps the lowest ``FREQUENCIES`` of a
    sequence that is padded to its full length. The authors filter one prefix per training sample, in which every
    position sees the whole prefix. Here all requests of a window are computed at once, so a position's filter ends at
    itself: of the first block the newest event's output is the same, earlier ones cannot see later events.
    """

    def __init__(self, dim: int, heads: int, rate: float, length: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, rate, batch_first=True)
        self.scale = nn.Parameter(torch.randn(1, 1, dim))
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norms, self.drop = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3)), nn.Dropout(rate)
        self.length = length

    def forward(self, x: Tensor, src_mask: Tensor, is_causal: bool) -> Tensor:
        """States (B, T, dim), as ``nn.TransformerEncoderLayer``."""
        filtered_norm, attended_norm, norm = self.norms
        low = low_pass(x.shape[1], self.length, x.device).to(x.dtype) @ x
        filtered = filtered_norm(x + self.drop(low + self.scale.square() * (x - low)))
        attended = self.attention(x, x, x, attn_mask=src_mask, is_causal=is_causal, need_weights=False)[0]
        attended = attended_norm(x + self.drop(attended))
        x = FILTER_SHARE * filtered + (1 - FILTER_SHARE) * attended
        return norm(x + self.drop(self.down(F.gelu(self.up(x)))))


def low_pass(size: int, length: int, device: torch.device | None = None) -> Tensor:
    """The matrix (size, size) that keeps the lowest ``FREQUENCIES`` of a sequence padded in front to ``length``.

    What follows a row is left out.
    """
    position = torch.arange(size, device=device)
    kept = torch.arange(min(FREQUENCIES, length // 2 + 1), device=device)[:, None, None]
    twice = torch.where((kept == 0) | (2 * kept == length), 1.0, 2.0)  # of a real sequence, a frequency and its mirror
    waves = torch.cos(2 * torch.pi * kept * (position[:, None] - position) / length)
    return ((twice * waves).sum(0) / length).tril()
