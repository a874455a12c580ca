"""Beam search as CUDA graphs of a few fixed shapes; inputs are padded to the next shape, old graphs are dropped."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from genrec.catalogue.subtree_mass import SubtreeMass
from genrec.catalogue.trie import CatalogueTrie
from genrec.generation.beam import SearchResult, beam_search
from genrec.generation.constraints import AllowedNodes
from genrec.generation.scorers import CachedScorer
from genrec.model.code_decoder import CodeDecoder, DecoderLayer, Memory
from genrec.model.pointer import CopyBias
from genrec.model.prior import RetrievalPrior

BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = (64, 256, 1024, 2048)
NAMED = (0, 512, 4096)  # nodes above excluded items of a request
MAX_GRAPHS = 8

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Capture = Callable[[Callable[[], SearchResult]], Callable[[], SearchResult]]


@dataclass(frozen=True)
class GraphShape:
    """The sizes of a graph.

    Requests, context positions, beam width, constrained nodes, nodes with a copy bias, running sums of a prior.
    """

    batch: int
    context: int
    width: int
    named: int
    copied: int
    prior: int


class BeamGraphs:
    """Graphs of one decoder over one catalogue, at most ``limit`` of them."""

    def __init__(
        self,
        decoder: CodeDecoder,
        vectors: Tensor,
        trie: CatalogueTrie,
        capture: Capture | None = None,
        dtype: torch.dtype = torch.bfloat16,
        limit: int = MAX_GRAPHS,
    ):
        """The network runs in ``dtype``; states, node vectors and all scores stay in float32.

        ``capture`` records a search and returns its replay.
        """
        self.decoder, self.vectors, self.trie = copy.deepcopy(decoder).to(dtype), vectors, trie
        self.capture, self.dtype, self.limit = capture or cuda_capture, dtype, limit
        self._graphs: OrderedDict[GraphShape, _BeamGraph] = OrderedDict()
        self._lock = threading.Lock()  # a replay reads and writes the graph's own tensors

    @property
    def shapes(self) -> list[GraphShape]:
        """Shapes of the graphs that are kept, the most recently used last."""
        return list(self._graphs)

    def fits(self, batch: int, memory: Memory, width: int, constraint: AllowedNodes | None) -> bool:
        """Whether a graph can answer: the sizes are within the largest shape, and no request names its candidates."""
        return (constraint is None or constraint.counts is not None) and self._shape(
            batch, memory, width, constraint
        ) is not None

    def search(self, memory: Memory, width: int, constraint: AllowedNodes | None) -> SearchResult:
        """As ``beam_search`` of the same width."""
        shape = self._shape(len(memory.state), memory, width, constraint)
        assert shape is not None
        with self._lock:
            if shape not in self._graphs:
                while len(self._graphs) >= self.limit:
                    self._graphs.popitem(last=False)
                self._graphs[shape] = _BeamGraph(self, shape)
            self._graphs.move_to_end(shape)
            return self._graphs[shape](memory, constraint)

    def _shape(self, batch: int, memory: Memory, width: int, constraint: AllowedNodes | None) -> GraphShape | None:
        named = 0 if constraint is None else constraint.paths.shape[1]
        sizes = ((batch, BATCHES), (memory.keys[0].shape[2], CONTEXTS), (named, NAMED))
        if any(size > shapes[-1] for size, shapes in sizes):
            return None
        rounded = [next(shape for shape in shapes if shape >= size) for size, shapes in sizes]
        copied = 0 if memory.copy_bias is None else memory.copy_bias.nodes.shape[-1]
        prior = 0 if memory.prior is None else memory.prior.mass.running.shape[1]
        return GraphShape(rounded[0], rounded[1], width, rounded[2], copied, prior)


class _BeamGraph:
    """One captured search with the tensors that it reads."""

    def __init__(self, graphs: BeamGraphs, shape: GraphShape):
        layer, device = graphs.decoder.layers[0], graphs.vectors.device
        assert isinstance(layer, DecoderLayer)
        dim, layers, trie = graphs.vectors.shape[1], len(graphs.decoder.layers), graphs.trie
        kept = (shape.batch, layer.heads, shape.context, dim // layer.heads)
        keys, values = (
            [torch.zeros(kept, device=device, dtype=graphs.dtype) for _ in range(layers)] for _ in ("keys", "values")
        )
        mask = torch.ones(shape.batch, 1, shape.context, device=device, dtype=torch.bool)
        self.memory = Memory(torch.zeros(shape.batch, 1, dim, device=device, dtype=graphs.dtype), keys, values, mask)
        if shape.copied:
            size = (shape.batch, 1, shape.copied)
            nodes, bonus = torch.full(size, trie.n_nodes, device=device), torch.zeros(size, device=device)
            self.memory.copy_bias = CopyBias(nodes, bonus)
        if shape.prior:
            running = torch.zeros(shape.batch, shape.prior, device=device, dtype=torch.float64)
            weight = graphs.decoder.prior_weight
            assert weight is not None
            self.memory.prior = RetrievalPrior(SubtreeMass(trie, running), weight.detach().float())
        self.trie = trie
        paths = torch.full((shape.batch, shape.named), trie.n_nodes, device=device, dtype=trie.item_path.dtype)
        self.nodes = AllowedNodes(paths, trie.node_item_count.clone())
        rows = 1 + shape.width * (trie.depth - 1)

        def run() -> SearchResult:
            scorer = CachedScorer(graphs.decoder, self.memory, graphs.vectors, rows)
            return beam_search(trie, scorer, shape.batch, shape.width, self.nodes, static=True)

        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        with torch.no_grad():
            self.replay = graphs.capture(run)
        if device.type == "cuda":
            log.info("CUDA graph of %s: %.0f MB", shape, (torch.cuda.memory_allocated() - before) / 1e6)

    def __call__(self, memory: Memory, constraint: AllowedNodes | None) -> SearchResult:
        batch, length = len(memory.state), memory.keys[0].shape[2]
        self.memory.state[:batch] = memory.state
        for own, given in ((self.memory.keys, memory.keys), (self.memory.values, memory.values)):
            for mine, theirs in zip(own, given, strict=True):
                mine[:batch, :, :length] = theirs
        self.memory.mask[:batch].zero_()
        self.memory.mask[:batch, :, :length] = memory.mask
        if memory.copy_bias is not None and self.memory.copy_bias is not None:
            self.memory.copy_bias.nodes[:batch] = memory.copy_bias.nodes
            self.memory.copy_bias.bonus[:batch] = memory.copy_bias.bonus
        if memory.prior is not None and self.memory.prior is not None:
            self.memory.prior.mass.running[:batch] = memory.prior.mass.running
            self.memory.prior.weight.copy_(memory.prior.weight)
        counts = None if constraint is None else constraint.counts
        assert self.nodes.counts is not None
        self.nodes.counts.copy_(self.trie.node_item_count if counts is None else counts)
        self.nodes.paths.fill_(self.trie.n_nodes)
        if constraint is not None:
            self.nodes.paths[:batch, : constraint.paths.shape[1]] = constraint.paths
        result = self.replay()
        leaves, scores, bound = (part[:batch].clone() for part in (result.leaves, result.scores, result.bound))
        return replace(result, leaves=leaves, scores=scores, bound=bound)


def cuda_capture(run: Callable[[], Result]) -> Callable[[], Result]:
    """Record ``run`` as a CUDA graph, after three runs in which memory is allocated and kernels are chosen.

    The returned function replays it and gives the same tensors each time.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay
