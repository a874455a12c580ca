"""What a request's situation adds to its token: one vector for each value of each field, zero before training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrec.data.situation import Situation

HIDDEN_FIELDS = 0.1  # fraction of values that training hides, so that row 0 learns what to answer for unknown ones


class SituationVectors(nn.Module):
    """The sum of the vectors of a request's fields."""

    offsets: Tensor  # (F,) first row of each field

    def __init__(self, situation: Situation, dim: int):
        super().__init__()
        self.situation = situation
        sizes = torch.tensor([field.size for field in situation.fields])
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        # Zero, and no number drawn: the other weights begin as those of a network without.
        self.table = nn.EmbeddingBag.from_pretrained(torch.zeros(int(sizes.sum()), dim), freeze=False, mode="sum")

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors (B, R, dim) of rows (B, R, F)."""
        if self.training:
            rows = rows * (torch.rand(rows.shape, device=rows.device) >= HIDDEN_FIELDS)
        return self.table((rows + self.offsets).flatten(0, 1)).unflatten(0, rows.shape[:2])
