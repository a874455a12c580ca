"""The searcher keeps to its settings: which search runs, what it costs, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.catalogue.trie import build_trie
from genrec.config.load import load_config
from genrec.config.schema import DecodingConfig
from genrec.errors import UserError
from genrec.generation.beam import beam_search
from genrec.generation.constraints import AllowedNodes
from genrec.generation.engine import Searcher
from genrec.generation.exact import full_search
from genrec.generation.graphs import BeamGraphs, GraphShape
from genrec.generation.scorers import CachedScorer
from genrec.model.code_decoder import CodeDecoder, Memory
from genrec.retrieval.allowed import AllowedItems, id_lists
from genrec.retrieval.top_k import top_columns

DIM, BATCH, ITEMS, VOCAB = 16, 3, 600, (12, 10, 8)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    codes = torch.stack([(torch.rand(ITEMS) ** 1.5 * size).long() for size in VOCAB], 1)
    trie = build_trie(codes, VOCAB)
    decoder = CodeDecoder(trie, DIM, 2, 2, 0.0, 0.2).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        memory = decoder.memory(
            torch.randn(BATCH, 1, DIM), torch.randn(BATCH, 5, DIM), torch.ones(BATCH, 1, 5, dtype=torch.bool)
        )
        return trie, decoder, memory, decoder.node_vectors(trie, torch.randn(ITEMS, DIM))


def search(parts, **settings):
    trie, decoder, memory, vectors = parts
    searcher = Searcher(decoder, vectors, trie, DecodingConfig(**settings))
    return searcher, searcher.search(memory)


@pytest.fixture(scope="module")
def truth(parts):
    trie, decoder, memory, vectors = parts
    with torch.no_grad():
        return full_search(trie, CachedScorer(decoder, memory, vectors), BATCH, ITEMS)


def test_exact_search_proves_its_top_and_a_narrow_beam_does_not(parts, truth):
    _, exact = search(parts, beam=20, search="exact")
    assert exact.exact(5).all() and torch.equal(exact.leaves[:, :5], truth.leaves[:, :5])
    _, narrow = search(parts, beam=3)
    assert narrow.leaves.shape == (BATCH, 3) and not narrow.exact(4).any()


def test_a_small_catalogue_is_scored_whole(parts, truth):
    trie, *_ = parts
    searcher, actual = search(parts, beam=500)
    assert searcher.scores_everything((500,) * 3) and actual.rows == sum(trie.open_nodes) and actual.exact(500).all()
    assert torch.equal(actual.leaves, truth.leaves[:, : actual.leaves.shape[1]])
    assert not searcher.scores_everything((5,) * 3)


@pytest.mark.parametrize(
    "override, key",
    [
        (["decoding.search=greedy"], "decoding.search"),
        (["decoding.index=tree"], "decoding.index"),
    ],
)
def test_settings_that_cannot_work_name_their_key(override, key):
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        load_config(None, override)


def test_ties_go_to_the_lower_id_with_and_without_the_pre_cut():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(40, (3, 5000), generator=generator).float()
    ids = torch.stack([torch.randperm(5000, generator=generator) for _ in range(3)])
    for k in (1, 7, 60, 5000):
        expected = torch.stack([torch.from_numpy(np.lexsort((i, -s))[:k]) for s, i in zip(scores, ids, strict=True)])
        assert torch.equal(top_columns(scores, ids, k), expected)


class FakeCapture:
    """Stands in for a CUDA graph: a replay runs the search again on the tensors that it was captured with."""

    def __init__(self):
        self.captured = 0

    def __call__(self, run):
        self.captured += 1
        return run


def test_graphs_pad_requests_between_shapes_and_obey_constraints(parts):
    trie, decoder, memory, vectors = parts
    capture = FakeCapture()
    graphs = BeamGraphs(decoder, vectors, trie, capture, torch.float32)
    excluded = id_lists([[3, 5, 5], [], list(range(40))])
    mask = torch.arange(ITEMS) % 2 == 0
    for allowed in (AllowedItems(), AllowedItems(excluded=excluded), AllowedItems(mask, excluded), AllowedItems()):
        constraint = AllowedNodes.of(trie, allowed, BATCH)
        assert graphs.fits(BATCH, memory, 20, constraint)
        actual = graphs.search(memory, 20, constraint)
        eager = beam_search(trie, CachedScorer(decoder, memory, vectors), BATCH, 20, constraint)
        assert torch.equal(actual.leaves, eager.leaves)
        torch.testing.assert_close(actual.scores, eager.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(actual.bound, eager.bound, rtol=0, atol=1e-5)
    assert capture.captured == 2 and graphs.shapes == [GraphShape(4, 64, 20, named, 0, 0) for named in (512, 0)]
    alone = graphs.search(memory.take(torch.tensor([1]), torch.tensor([0])), 20, None)
    torch.testing.assert_close(alone.scores[0], actual.scores[1], rtol=0, atol=1e-5)
    only = AllowedNodes.of(trie, AllowedItems(only=excluded), BATCH)
    assert not graphs.fits(BATCH, memory, 20, only) and not graphs.fits(300, memory, 20, None)


def test_the_least_recently_used_graph_is_dropped(parts):
    trie, decoder, memory, vectors = parts
    capture = FakeCapture()
    graphs = BeamGraphs(decoder, vectors, trie, capture, torch.float32, limit=2)
    for width in (5, 10, 5, 20, 5):
        graphs.search(memory, width, None)
    assert [shape.width for shape in graphs.shapes] == [20, 5] and capture.captured == 3
    graphs.search(memory, 10, None)
    assert [shape.width for shape in graphs.shapes] == [5, 10] and capture.captured == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_equals_the_cpu(parts):
    trie, decoder, memory, vectors = parts
    there = Memory(
        memory.state.cuda(),
        *([part.cuda() for part in side] for side in (memory.keys, memory.values)),
        memory.mask.cuda(),
    )
    graphs = BeamGraphs(decoder.cuda(), vectors.cuda(), trie.to("cuda"))
    actual, again = (graphs.search(there, 20, None) for _ in range(2))
    decoder.cpu()
    trie.to("cpu")
    _, exact = search(parts, beam=20)
    assert torch.equal(actual.leaves, again.leaves)
    overlap = (actual.leaves.cpu()[:, :10, None] == exact.leaves[:, None]).any(-1).float().mean()
    assert overlap > 0.8  # bfloat16 against float32
