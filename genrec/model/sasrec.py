"""SASRec (Kang and McAuley 2018) with cross-entropy over the catalogue: the baseline that a sequence model has to beat.

A network of its own, not ours with parts switched off: learnt positions counted from the newest event, pre-norm
blocks, item vectors tied between input and output, raw dot products. It reads item ids alone, and learns in the same
training loop as ours, with the same batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrec.catalogue.catalogue import Catalogue
from genrec.config.schema import ModelConfig
from genrec.model.batch import Batch
from genrec.model.dropout import dropout_rate
from genrec.model.network import Encoded


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
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, config.heads, dim, rate, "relu", batch_first=True, norm_first=True)
            for _ in range(config.layers)
        )
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(rate)

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
