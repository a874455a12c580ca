"""Decoding of one network over one catalogue: the search that the config names, in the precision it names, with a certificate.

On a GPU the whole beam search, selection included, can be one CUDA graph; these paths run only there.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from genrec.catalogue.trie import CatalogueTrie
from genrec.config.schema import DecodingConfig
from genrec.generation.beam import SearchResult, beam_search, level_widths
from genrec.generation.constraints import Constraint
from genrec.generation.exact import best_first, full_search
from genrec.generation.scorers import PLAIN, CachedScorer, compiled
from genrec.model.code_decoder import CodeDecoder, Memory
from genrec.model.pointer import CopyBias

_EXACT_ROWS = 96  # rows an exact search sets out with; the pool grows where it needs more, and unused room costs a batch page faults


class Searcher:
    """Finds leaves for requests.

    ``search: beam`` finds what a beam finds and says how much of it is proven; ``search: exact`` goes on until the first ``exact_top``
    leaves are proven. Where scoring the whole catalogue runs no more rows than the beam would, that is done instead: small catalogues
    are then exact for nothing. ``vectors`` (n_nodes, dim) are the node vectors.
    """

    def __init__(self, decoder: CodeDecoder, vectors: Tensor, trie: CatalogueTrie, settings: DecodingConfig):
        self.decoder, self.vectors, self.trie, self.settings = decoder, vectors, trie, settings
        level_widths(
            settings.level_beams or settings.beam, trie.depth
        )  # a wrong number of widths shows before the first request
        if settings.int8:
            self.decoder = quantized(decoder)
        self.parts = compiled() if settings.compile else PLAIN
        self.graphs: dict[tuple, GraphedBeam] = {}

    def widths(self, beam: int | None = None) -> tuple[int, ...]:
        """The beam width of each level, where a caller wants ``beam`` leaves instead of the setting's."""
        return level_widths(self.settings.level_beams or beam or self.settings.beam, self.trie.depth)

    def scores_everything(self, widths: tuple[int, ...]) -> bool:
        """Whether every open prefix of the catalogue is run: no dearer than the beam, and exact."""
        before = (1, *widths[:-1])
        beam = sum(min(width, nodes) for width, nodes in zip(before, self.trie.open_nodes, strict=True))
        return not self.settings.per_first_code and sum(self.trie.open_nodes) <= max(beam, 1)

    @torch.no_grad()
    def search(
        self, memory: Memory, allowed: Tensor | Constraint | None = None, beam: int | None = None
    ) -> SearchResult:
        """The best leaves of each request of ``memory``: (B, <= beam). ``beam``: None for the setting's."""
        settings, trie, batch = self.settings, self.trie, len(memory.state)
        widths = self.widths(beam)
        if settings.cuda_graph and memory.state.is_cuda and allowed is None and settings.search == "beam":
            return self._graphed(memory, widths)
        if self.scores_everything(widths):
            scorer = self._scorer(memory, max(sum(trie.open_nodes), 1))
            return full_search(trie, scorer, batch, widths[-1], allowed)
        if settings.search == "exact":
            scorer = self._scorer(memory, _EXACT_ROWS)
            return best_first(trie, scorer, batch, settings.exact_top, beam or settings.beam, allowed)
        return beam_search(
            trie, self._scorer(memory, 1 + sum(widths[:-1])), batch, widths, allowed, settings.per_first_code
        )

    def _scorer(self, memory: Memory, rows: int) -> CachedScorer:
        return CachedScorer(self.decoder, memory, self.vectors, rows, self.parts)

    def _graphed(self, memory: Memory, widths: tuple[int, ...]) -> SearchResult:
        """Graphs are kept per widths, batch size and context length, the latter two rounded up to a power of two."""
        batch, length = len(memory.state), memory.keys[0].shape[2]
        shape = (1 << (batch - 1).bit_length(), 1 << (length - 1).bit_length(), widths)
        if shape not in self.graphs:
            copy_bias = 0 if memory.copy_bias is None else memory.copy_bias.nodes.shape[-1]
            self.graphs[shape] = GraphedBeam(
                self.decoder,
                self.vectors,
                self.trie,
                shape[2],
                shape[0],
                shape[1],
                self.settings.per_first_code,
                copy_bias,
            )
        return self.graphs[shape](memory)


class GraphedBeam:
    """A beam search captured once as a CUDA graph for ``batch`` requests with ``length`` context positions; smaller inputs are padded.

    The network runs in bfloat16; states, node vectors and all scores stay in float32.
    """

    def __init__(
        self,
        decoder: CodeDecoder,
        vectors: Tensor,
        trie: CatalogueTrie,
        widths: tuple[int, ...],
        batch: int,
        length: int,
        per_first: int = 0,
        copy_bias: int = 0,
    ):
        layer, device, dtype = decoder.layers[0], vectors.device, torch.bfloat16
        dim, layers = vectors.shape[1], len(decoder.layers)
        kept = (batch, layer.heads, length, dim // layer.heads)
        self.memory = Memory(
            torch.zeros(batch, 1, dim, device=device, dtype=dtype),
            [torch.zeros(kept, device=device, dtype=dtype) for _ in range(layers)],
            [torch.zeros(kept, device=device, dtype=dtype) for _ in range(layers)],
            torch.ones(batch, 1, length, device=device, dtype=torch.bool),
        )
        if copy_bias:  # so many nodes of each request that anchors are below
            shape = (batch, 1, copy_bias)
            self.memory.copy_bias = CopyBias(
                torch.full(shape, trie.n_nodes, device=device), torch.zeros(shape, device=device)
            )
        network = copy.deepcopy(decoder).to(dtype)
        rows = 1 + sum(widths[:-1])

        def run() -> SearchResult:
            return beam_search(
                trie, CachedScorer(network, self.memory, vectors, rows), batch, widths, None, per_first, static=True
            )

        with torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # allocations and choices of kernels happen before the capture
                    run()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.found = run()

    def __call__(self, memory: Memory) -> SearchResult:
        batch, length = len(memory.state), memory.keys[0].shape[2]
        self.memory.state[:batch] = memory.state
        for own, given in ((self.memory.keys, memory.keys), (self.memory.values, memory.values)):
            for mine, theirs in zip(own, given, strict=True):
                mine[:batch, :, :length] = theirs
        self.memory.mask[:batch].zero_()
        self.memory.mask[:batch, :, :length] = memory.mask
        if memory.copy_bias is not None:
            self.memory.copy_bias.nodes[:batch] = memory.copy_bias.nodes
            self.memory.copy_bias.bonus[:batch] = memory.copy_bias.bonus
        self.graph.replay()
        found = self.found
        return replace(
            found,
            leaves=found.leaves[:batch].clone(),
            scores=found.scores[:batch].clone(),
            bound=found.bound[:batch].clone(),
        )


def quantized(decoder: CodeDecoder) -> CodeDecoder:
    """A copy whose linear layers hold int8 weights and quantise their input as it comes (CPU only). Scores change a little."""
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(decoder).cpu(), {nn.Linear}, dtype=torch.qint8)
