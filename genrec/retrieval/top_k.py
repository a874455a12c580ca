"""Top-k with one order for ties: equal scores go to the lower index."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 16  # lanes per block of the pre-cut


def top_lanes(keys: Tensor, k: int) -> Tensor:
    """The places (B, k) of the highest distinct keys (B, N), highest first.

    With many lanes a pre-cut comes first: the k best lie in the k blocks with the highest maxima, so the rest is never ranked.
    """
    batch, lanes = keys.shape
    if lanes < 4 * BLOCK * k:
        return keys.topk(k, dim=1).indices
    spare = -lanes % BLOCK
    blocks = torch.nn.functional.pad(keys, (0, spare), value=torch.iinfo(torch.long).min).view(batch, -1, BLOCK)
    block = blocks.amax(-1).topk(k, dim=1).indices
    place = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK)).flatten(1).topk(k, dim=1).indices
    return block.gather(1, place // BLOCK) * BLOCK + place % BLOCK


def sort_keys(scores: Tensor, nodes: Tensor) -> Tensor:
    """int64 keys in the order of float32 scores, equal scores by falling node: one top-k then orders both, everywhere the same."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0 into 0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) - nodes
