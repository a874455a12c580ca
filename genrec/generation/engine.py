"""Decoding of one network over one catalogue: the search that the config names, with a certificate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from genrec.catalogue.trie import CatalogueTrie
from genrec.config.schema import DecodingConfig
from genrec.generation.beam import SearchResult, beam_search, level_widths
from genrec.generation.constraints import AllowedNodes
from genrec.generation.exact import best_first, full_search
from genrec.generation.graphs import BeamGraphs
from genrec.generation.scorers import CachedScorer
from genrec.model.code_decoder import CodeDecoder, Memory
from genrec.model.node_vectors import NodeVectors
from genrec.retrieval.allowed import AllowedItems

EXACT_ROWS = 96  # first rows of the pool of an exact search, which grows where it needs more


class Searcher:
    """Finds leaves for requests.

    ``search: beam`` returns the result of a beam search and how much of it is proven; ``search: exact`` continues until
    the first ``k`` leaves are proven. A small catalogue, which needs no more network rows than the beam, is scored as a
    whole and so exactly. ``vectors`` (n_nodes, dim) are the node vectors. On a GPU a beam search is one CUDA graph
    (``BeamGraphs``).
    """

    def __init__(
        self, decoder: CodeDecoder, vectors: Tensor | NodeVectors, trie: CatalogueTrie, settings: DecodingConfig
    ):
        self.decoder, self.vectors, self.trie, self.settings = decoder, vectors, trie, settings
        self.graphs = None
        if isinstance(vectors, Tensor) and vectors.is_cuda and settings.search == "beam":
            self.graphs = BeamGraphs(decoder, vectors, trie)
        self._counts = WeakIdKeyDictionary()  # by mask, which requests share: allowed items below each node

    def scores_everything(self, widths: tuple[int, ...]) -> bool:
        """Whether every open prefix of the catalogue is run: no more rows than the beam, and exact."""
        before = (1, *widths[:-1])
        beam = sum(min(width, nodes) for width, nodes in zip(before, self.trie.open_nodes, strict=True))
        return sum(self.trie.open_nodes) <= max(beam, 1)

    @torch.no_grad()
    def search(
        self, memory: Memory, allowed: AllowedItems | None = None, beam: int | None = None, k: int = 10
    ) -> SearchResult:
        """The best leaves of each request of ``memory``: (B, <= beam); ``beam`` None is the setting's."""
        trie, batch, beam = self.trie, len(memory.state), beam or self.settings.beam
        widths = level_widths(beam, trie.depth)
        constraint = None if allowed is None else self._constraint(allowed, batch)
        if self.graphs is not None and self.graphs.fits(batch, memory, beam, constraint):
            return self.graphs.search(memory, beam, constraint)
        if self.scores_everything(widths):
            return full_search(trie, self._scorer(memory, max(sum(trie.open_nodes), 1)), batch, beam, constraint)
        if self.settings.search == "exact":
            return best_first(trie, self._scorer(memory, EXACT_ROWS), batch, min(k, beam), beam, constraint)
        return beam_search(trie, self._scorer(memory, 1 + sum(widths[:-1])), batch, widths, constraint)

    def _constraint(self, allowed: AllowedItems, batch: int) -> AllowedNodes | None:
        counts = None
        if allowed.mask is not None and allowed.only is None:
            counts = self._counts.get(allowed.mask)
            if counts is None:
                counts = self._counts[allowed.mask] = self.trie.allowed_count(allowed.mask)
        return AllowedNodes.of(self.trie, allowed, batch, counts)

    def _scorer(self, memory: Memory, rows: int) -> CachedScorer:
        return CachedScorer(self.decoder, memory, self.vectors, rows)
