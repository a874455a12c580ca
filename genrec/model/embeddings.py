"""Item, query and event vectors (DESIGN: ``z_i = LN(W_s s_i + W_id u_i + sum_l C_l[c_il])``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.catalogue import Catalogue
from genrec.text.query_tokens import HASHED, WORD_BUCKETS

CODE_SPAN = 1 << 20  # code tokens of a query: level x CODE_SPAN + code, behind the hashed ones


class ItemEncoder(nn.Module):
    """Vectors of all items: text, id and code parts, each switched by config."""

    def __init__(
        self, catalogue: Catalogue, dim: int, use_ids: bool, use_text: bool, use_codes: bool, item_dropout: float
    ):
        super().__init__()
        self.item_dropout, self.catalogue = item_dropout, catalogue
        sizes = catalogue.codes.max(dim=0).values + 1
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)[:-1]])
        self.register_buffer("code_rows", catalogue.codes + offsets, persistent=False)
        self.register_buffer("code_offsets", offsets, persistent=False)
        self.register_buffer("code_sizes", sizes, persistent=False)
        self.project = nn.Linear(catalogue.text.shape[1], dim, bias=False) if use_text else None
        self.ids = nn.Embedding(catalogue.n_items, dim) if use_ids else None
        self.codes = nn.EmbeddingBag(int(sizes.sum()), dim, mode="sum") if use_codes else None
        for table in (self.ids, self.codes):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)

    @property
    def text(self) -> Tensor:
        """Text vectors of the items: (n_items, text_dim)."""
        return self.catalogue.text

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The vectors of all items (n_items, dim), or of ``rows`` (N,) alone: (N, dim). In training a share of the id vectors is hidden."""
        parts = []
        if self.project is not None:
            parts.append(self.project(self.text if rows is None else self.text[rows]))
        if self.codes is not None:
            parts.append(self.codes(self.code_rows if rows is None else self.code_rows[rows]))
        if self.ids is not None:
            ids = self.ids.weight if rows is None else F.embedding(rows, self.ids.weight)
            if self.training and self.item_dropout and parts:
                shown = (
                    torch.rand(len(self.ids.weight), 1, device=ids.device) >= self.item_dropout
                )  # drawn for all: rows change nothing
                ids = ids * (shown if rows is None else shown[rows])
            parts.append(ids)
        return self.norm(sum(parts[1:], parts[0]))

    def sum_codes(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Summed code vectors (Q, dim) of ragged code tokens (n,) with offsets (Q,); tokens below 0 are none.

        A code that no item has, in levels where items use fewer than the codebook holds, has no vector and adds nothing.
        """
        level, code = (tokens // CODE_SPAN).clamp(min=0, max=len(self.code_sizes) - 1), tokens % CODE_SPAN
        live = (tokens >= 0) & (code < self.code_sizes[level])
        rows = torch.where(live, self.code_offsets[level] + code, 0)
        weight = self.codes.weight
        return F.embedding_bag(rows, weight, offsets, mode="sum", per_sample_weights=live.to(weight.dtype))


class QueryEncoder(nn.Module):
    """A query's vector: its text vector, a bag of hashed words, one of hashed character n-grams, and its semantic ID's code vectors.

    Exact words and model numbers matter in search, n-grams survive typos, and the codes are those of items that mean the same.
    """

    def __init__(self, text_dim: int, dim: int, ngrams: bool = True, codes: bool = True):
        super().__init__()
        self.ngrams, self.codes = ngrams, codes
        self.project = nn.Linear(text_dim, dim, bias=False)
        self.words = nn.Embedding(HASHED if ngrams else WORD_BUCKETS, dim)
        nn.init.normal_(self.words.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)

    def forward(self, text: Tensor, tokens: Tensor, offsets: Tensor, items: ItemEncoder | None = None) -> Tensor:
        """text (Q, text_dim), tokens (n_tokens,) with offsets (Q,) as ``QueryFeatures`` has them -> (1 + Q, dim).

        Row 0 is "no query", the zero vector. Words and n-grams are averaged each, codes summed; ``items`` owns the code vectors.
        """
        row = torch.bucketize(torch.arange(tokens.shape[0], device=tokens.device), offsets, right=True) - 1
        kind = (tokens >= WORD_BUCKETS).long() + (tokens >= HASHED).long()
        counts = text.new_zeros(text.shape[0] * 3).index_add(0, row * 3 + kind, text.new_ones(tokens.shape[0]))
        weights = 1 / counts[row * 3 + kind]
        hashed = weights * (kind < (2 if self.ngrams else 1))
        place = tokens.clamp(max=len(self.words.weight) - 1)
        vectors = self.project(text) + F.embedding_bag(
            place, self.words.weight, offsets, mode="sum", per_sample_weights=hashed
        )
        if self.codes and items is not None and items.codes is not None:
            vectors = vectors + items.sum_codes(tokens - HASHED, offsets)
        vectors = self.norm(vectors)
        return torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
