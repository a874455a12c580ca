"""Block-wise latent reasoning: a request runs K latent steps before decoding (OnePiece, arXiv 2509.18091, section 3.2).

The states of a request's M tokens after the base pass are block B_0; ``B_k = Backbone(B_{k-1} + step_k)`` with the
same weights. Block k sees what the request saw, the request's own tokens and its earlier blocks, through cached keys
and values: K steps cost K x M tokens, not K passes. Its tokens have the position of the request. Unsupervised steps
have almost no benefit, see ``genrec/objectives/progressive.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrec.model.backbone import Backbone, Cache, own_block


class Reasoning(nn.Module):
    """K learned step vectors around a shared backbone.

    With ``feedback``, also a scale and a bias of each step's chance of feedback.
    """

    def __init__(self, dim: int, steps: int, feedback: bool = False):
        super().__init__()
        self.step = nn.Parameter(torch.randn(steps, dim) * 0.02)
        self.calibration = nn.Parameter(torch.tensor([[5.0, 0.0]]).repeat(steps, 1)) if feedback else None

    def forward(
        self, backbone: Backbone, block: Tensor, angles: Tensor, visible: Tensor, cache: Cache
    ) -> tuple[list[Tensor], Cache]:
        """Blocks B_1 .. B_K, each (B, R, M, dim), and the cache with their keys and values.

        ``block`` (B, R, M, dim) is B_0, ``angles`` (B, R x M, planes) its tokens' angles, ``visible`` (B, R, T) the
        context each request sees; ``cache`` holds T context tokens, then the R x M request tokens.
        """
        shape = block.shape
        own = own_block(shape[1], shape[2], block.device).expand(shape[0], -1, -1)
        mask = visible.repeat_interleave(shape[2], 1)
        mask = torch.cat([mask, own], dim=2)
        blocks = []
        for step in self.step:
            mask = torch.cat([mask, own], dim=2)
            x, cache = backbone.extend((block + step).flatten(1, 2), angles, mask, cache)
            block = x.view(shape)
            blocks.append(block)
        return blocks, cache
