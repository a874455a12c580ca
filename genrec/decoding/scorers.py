"""Scorers that let the engine walk with the network: cached (levels so far are kept) and uncached (recomputed; the reference)."""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.decoding.beam import beam_search
from genrec.model.code_decoder import CodeDecoder, Memory
from genrec.objectives.generation import path_log_probabilities
from genrec.semantic_ids.trie import CatalogueTrie


class CachedScorer:
    """One new level per step; keys and values of earlier levels follow their beams. Context keys and values are shared by all beams."""

    def __init__(self, decoder: CodeDecoder, memory: Memory, vectors: Tensor):
        self.decoder, self.memory, self.vectors = decoder, memory, vectors
        self.cache: list | None = None
        self.state: Tensor | None = None

    def advance(self, level: int, nodes: Tensor, beams: Tensor | None) -> None:
        if beams is not None:
            batch = len(beams)
            earlier = self.state.shape[1]
            rows = (beams + torch.arange(batch, device=beams.device)[:, None] * earlier).flatten()
            self.cache = [(k[rows], v[rows]) for k, v in self.cache]
        states, self.cache = self.decoder.hidden(self.memory, self.vectors, nodes[..., None], level, self.cache)
        self.state = states[:, :, 0] * self.decoder.log_scale[level].exp()

    def child_logits(self, level: int, children: Tensor) -> Tensor:
        if level == 0:  # all lanes share the root's children: one product instead of a gather
            return (self.state[:, 0] @ self.vectors[children[0, 0]].T)[:, None]
        return (self.vectors[children] @ self.state[..., None])[..., 0]


class UncachedScorer(CachedScorer):
    """Runs every level of every walk again at each step: slow, and what the cached one must equal."""

    def __init__(self, decoder: CodeDecoder, memory: Memory, vectors: Tensor):
        super().__init__(decoder, memory, vectors)
        self.walk: Tensor | None = None

    def advance(self, level: int, nodes: Tensor, beams: Tensor | None) -> None:
        if beams is None:
            self.walk = nodes[..., None]
        else:
            self.walk = torch.cat([self.walk.gather(1, beams[..., None].expand(-1, -1, level)), nodes[..., None]], dim=2)
        states, _ = self.decoder.hidden(self.memory, self.vectors, self.walk)
        self.state = states[:, :, -1] * self.decoder.log_scale[level].exp()


def generate(decoder: CodeDecoder, memory: Memory, vectors: Tensor, trie: CatalogueTrie, width: int, allowed: Tensor | None = None):
    """Beam search with the cached scorer; see ``beam_search``."""
    return beam_search(trie, CachedScorer(decoder, memory, vectors), len(memory.state), width, allowed)


def exact_scores(decoder: CodeDecoder, memory: Memory, vectors: Tensor, trie: CatalogueTrie, chunk: int = 2048) -> Tensor:
    """Log-probability of every item's leaf for every request, by teacher forcing: (B, n_items). The reference of the beam."""
    batch, n_items = len(memory.state), len(trie.item_path)
    result = []
    for start in range(0, n_items, chunk):
        paths = trie.item_path[start : start + chunk].expand(batch, -1, -1)
        entered = torch.cat([torch.zeros_like(paths[..., :1]), paths[..., :-1]], dim=-1)
        states, _ = decoder.hidden(memory, vectors, entered)
        steps = path_log_probabilities(states.flatten(0, 1), decoder.log_scale.exp(), vectors, trie, paths.flatten(0, 1))
        result.append(steps.sum(-1).view(batch, -1))
    return torch.cat(result, dim=1)
