"""Slow references of the search: every score worked out from the whole path."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie
from genrec.generation.exact import leaf_scores
from genrec.generation.scorers import CachedScorer
from genrec.model.code_decoder import CodeDecoder, Memory


class UncachedScorer(CachedScorer):
    """Recomputes the whole path of every row: slow, the reference for the cached scorer."""

    def __init__(self, decoder: CodeDecoder, memory: Memory, vectors: Tensor, rows: int = 64):
        super().__init__(decoder, memory, vectors, rows)
        self.walks = torch.zeros_like(self.line)

    def _reserve(self, rows: int) -> None:
        super()._reserve(rows)
        if hasattr(self, "walks"):
            self.walks = F.pad(self.walks, (0, 0, 0, self.line.shape[1] - self.walks.shape[1]))

    def expand(self, depth: int | Tensor, nodes: Tensor, parents: Tensor | None) -> int:
        """As ``Scorer.expand``."""
        slot, rows = self.used, nodes.shape[1]
        self._reserve(slot + rows)
        self.used = slot + rows
        level = torch.full_like(nodes, depth) if isinstance(depth, int) else depth
        walk = self.walks[:, slot : slot + rows]
        if parents is not None:
            walk.copy_(self.walks[self.batch, parents])
        walk.scatter_(2, level[..., None], nodes[..., None])
        states, _ = self.decoder.hidden(self.memory, self.vectors, walk)
        chosen = states.gather(2, level[..., None, None].expand(-1, -1, 1, states.shape[-1]))[:, :, 0]
        self.pool[-1][:, slot : slot + rows] = chosen * self.scale[level][..., None]
        return slot


def exact_scores(
    decoder: CodeDecoder, memory: Memory, vectors: Tensor, trie: CatalogueTrie, chunk: int = 4096
) -> Tensor:
    """Log-probability of every item's leaf for every request: (B, n_items)."""
    scorer = CachedScorer(decoder, memory, vectors, max(sum(trie.open_nodes), 1))
    return leaf_scores(trie, scorer, len(memory.state), chunk)[:, trie.item_leaf - trie.level_bounds[trie.depth]]
