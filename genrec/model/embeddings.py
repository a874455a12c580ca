"""Item, query and event vectors (DESIGN: ``z_i = LN(W_s s_i + W_id u_i + sum_l C_l[c_il])``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrec.semantic_ids.catalogue import Catalogue

WORD_BUCKETS = 1 << 14


class ItemEncoder(nn.Module):
    """Vectors of all items: text, id and code parts, each switched by config."""

    def __init__(self, catalogue: Catalogue, dim: int, use_ids: bool, use_text: bool, use_codes: bool, item_dropout: float):
        super().__init__()
        self.item_dropout = item_dropout
        self.register_buffer("text", catalogue.text, persistent=False)
        sizes = catalogue.codes.max(dim=0).values + 1
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)[:-1]])
        self.register_buffer("code_rows", catalogue.codes + offsets, persistent=False)
        self.project = nn.Linear(catalogue.text.shape[1], dim, bias=False) if use_text else None
        self.ids = nn.Embedding(catalogue.n_items, dim) if use_ids else None
        self.codes = nn.EmbeddingBag(int(sizes.sum()), dim, mode="sum") if use_codes else None
        for table in (self.ids, self.codes):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)

    def forward(self) -> Tensor:
        """All item vectors: (n_items, dim). In training a share of the id vectors is hidden."""
        parts = []
        if self.project is not None:
            parts.append(self.project(self.text))
        if self.codes is not None:
            parts.append(self.codes(self.code_rows))
        if self.ids is not None:
            ids = self.ids.weight
            if self.training and self.item_dropout and parts:
                ids = ids * (torch.rand(len(ids), 1, device=ids.device) >= self.item_dropout)
            parts.append(ids)
        return self.norm(torch.stack(parts).sum(0))


class QueryEncoder(nn.Module):
    """A query's vector: its text vector and a bag of hashed words (exact words and model numbers matter in search)."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.project = nn.Linear(text_dim, dim, bias=False)
        self.words = nn.EmbeddingBag(WORD_BUCKETS, dim, mode="mean")
        nn.init.normal_(self.words.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)

    def forward(self, text: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
        """text (Q, text_dim), words (n_words,) with offsets (Q,) -> (1 + Q, dim); row 0 is "no query", the zero vector."""
        vectors = self.norm(self.project(text) + self.words(words, offsets))
        return torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
