"""Item and query vectors (``z_i = W_s s_i + u_i + sum_l C_l[c_il]``)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.catalogue import Catalogue
from genrec.text.query_tokens import HASHED, WORD_BUCKETS

# Standard deviations that numbers of vectors begin with. Text vectors have unit length and are projected to several
# times the size of id vectors, so that items of similar text begin as neighbours and what ids add is learnt slowly.
TEXT_STD, TABLE_STD = 0.16, 0.02
BLOCK = 1 << 16  # items whose text vectors are made wide at once
CODE_SPAN = 1 << 20  # code tokens of a query: level x CODE_SPAN + code, behind the hashed ones


class ItemEncoder(nn.Module):
    """Item vectors from text, id and codes, each switched by config."""

    code_rows: Tensor  # (n_items, levels) rows of each item's codes in the code table
    code_offsets: Tensor  # (levels,) first row of each level
    code_sizes: Tensor  # (levels,) codes in use at each level

    def __init__(self, catalogue: Catalogue, dim: int, inputs: Collection[str], item_dropout: float):
        """``inputs``: some of ``ids``, ``text`` and ``codes``."""
        super().__init__()
        self.item_dropout, self.catalogue = item_dropout, catalogue
        sizes = catalogue.codes.max(dim=0).values + 1
        offsets = sizes.cumsum(0) - sizes
        self.register_buffer("code_rows", catalogue.codes + offsets, persistent=False)
        self.register_buffer("code_offsets", offsets, persistent=False)
        self.register_buffer("code_sizes", sizes, persistent=False)
        self.project = nn.Linear(catalogue.text.shape[1], dim, bias=False) if "text" in inputs else None
        self.ids = nn.Embedding(catalogue.n_items, dim) if "ids" in inputs else None
        self.codes = nn.EmbeddingBag(int(sizes.sum()), dim, mode="sum") if "codes" in inputs else None
        for table in (self.ids, self.codes):
            if table is not None:
                nn.init.normal_(table.weight, std=TABLE_STD)
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=TEXT_STD)

    @property
    def text(self) -> Tensor:
        """Text vectors of the items: (n_items, text_dim)."""
        return self.catalogue.text

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Vectors of all items (n_items, dim), or of ``rows`` (N,) alone. Training hides some id vectors."""
        parts = []
        if self.project is not None:
            parts.append(self._projected(self.project, rows))
        if self.codes is not None:
            parts.append(self.codes(self.code_rows if rows is None else self.code_rows[rows]))
        if self.ids is not None:
            ids = self._id_vectors(self.ids, rows)
            if self.training and self.item_dropout and parts:
                if rows is not None and self.ids.sparse:  # of a large table only distinct rows are computed
                    ids = ids * (torch.rand(len(rows), 1, device=ids.device) >= self.item_dropout)
                else:  # drawn for all items, so that the same items are hidden whichever rows are computed
                    kept = torch.rand(len(self.ids.weight), 1, device=ids.device) >= self.item_dropout
                    ids = ids * (kept if rows is None else kept[rows])
            parts.append(ids)
        return sum(parts[1:], parts[0])

    def _id_vectors(self, table: nn.Embedding, rows: Tensor | None) -> Tensor:
        """Rows of the id table; items that were added after training have none and get zeros."""
        known = table.num_embeddings
        if self.catalogue.n_items == known:
            return table.weight if rows is None else table(rows)
        if rows is None:
            return F.pad(table.weight, (0, 0, 0, self.catalogue.n_items - known))
        return table(rows.clamp(max=known - 1)) * (rows < known)[:, None]

    def _projected(self, project: nn.Linear, rows: Tensor | None) -> Tensor:
        """Projected text vectors; those of all items in blocks where they are kept in half precision."""
        text = self.text if rows is None else self.text[rows]
        if text.dtype == project.weight.dtype:
            return project(text)
        return torch.cat([project(block.to(project.weight.dtype)) for block in text.split(BLOCK)])

    def sum_codes(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Summed code vectors (Q, dim) of ragged code tokens (n,) with offsets (Q,); tokens below 0 add nothing.

        Nor does a code that no item has: the table ends at each level's highest code in use.
        """
        assert self.codes is not None
        level, code = (tokens // CODE_SPAN).clamp(min=0, max=len(self.code_sizes) - 1), tokens % CODE_SPAN
        live = (tokens >= 0) & (code < self.code_sizes[level])
        rows = torch.where(live, self.code_offsets[level] + code, 0)
        weight = self.codes.weight
        return F.embedding_bag(rows, weight, offsets, mode="sum", per_sample_weights=live.to(weight.dtype))


class QueryEncoder(nn.Module):
    """A query's vector: text vector, hashed words, hashed character n-grams, and codes of its semantic ID.

    Words and n-grams are averaged, code vectors summed. Words and model numbers match exactly, n-grams survive typos,
    and the codes are those of items with the same meaning.
    """

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.project = nn.Linear(text_dim, dim, bias=False)
        self.words = nn.Embedding(HASHED, dim)
        nn.init.normal_(self.words.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)

    def forward(self, text: Tensor, tokens: Tensor, offsets: Tensor, items: ItemEncoder) -> Tensor:
        """Vectors (1 + Q, dim) of text (Q, text_dim) and tokens (n_tokens,) with offsets (Q,), as in ``QueryFeatures``.

        Row 0 stands for "no query" and is zero. ``items`` owns the code vectors.
        """
        if not torch.compiler.is_exporting() and not len(text):
            return text.new_zeros(1, self.norm.normalized_shape[0])
        row = torch.bucketize(torch.arange(tokens.shape[0], device=tokens.device), offsets, right=True) - 1
        kind = (tokens >= WORD_BUCKETS).long() + (tokens >= HASHED).long()
        counts = text.new_zeros(text.shape[0] * 3).index_add(0, row * 3 + kind, text.new_ones(tokens.shape[0]))
        weights = 1 / counts[row * 3 + kind] * (kind < 2)
        hashed = tokens.clamp(max=HASHED - 1)
        vectors = self.project(text) + F.embedding_bag(
            hashed, self.words.weight, offsets, mode="sum", per_sample_weights=weights
        )
        if items.codes is not None:
            vectors = vectors + items.sum_codes(tokens - HASHED, offsets)
        vectors = self.norm(vectors)
        return torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
