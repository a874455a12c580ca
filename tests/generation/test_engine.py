"""The searcher keeps to its settings: which search runs, what it costs, and what it promises."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from genrec.catalogue.trie import build_trie
from genrec.config.load import load_config
from genrec.config.schema import DecodingConfig
from genrec.errors import UserError
from genrec.generation.engine import GraphedBeam, Searcher
from genrec.generation.exact import full_search
from genrec.generation.scorers import CachedScorer, compiled
from genrec.model.code_decoder import CodeDecoder
from genrec.retrieval.top_k import top_lanes

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
    _, exact = search(parts, beam=20, search="exact", exact_top=5)
    assert exact.exact(5).all() and torch.equal(exact.leaves[:, :5], truth.leaves[:, :5])
    _, narrow = search(parts, beam=3)
    assert narrow.leaves.shape == (BATCH, 3) and not narrow.exact(4).any()


def test_a_small_catalogue_is_scored_whole(parts, truth):
    trie, *_ = parts
    searcher, found = search(parts, beam=500)
    assert (
        searcher.scores_everything(searcher.widths()) and found.rows == sum(trie.open_nodes) and found.exact(500).all()
    )
    assert torch.equal(found.leaves, truth.leaves[:, : found.leaves.shape[1]])
    narrow = search(parts, beam=5)[0]
    assert not narrow.scores_everything(narrow.widths())
    diverse, found = search(parts, beam=500, per_first_code=1)
    assert (
        not diverse.scores_everything(diverse.widths())
        and int((found.leaves[0] >= 0).sum()) == trie.level_bounds[2] - 1
    )


def test_level_beams_and_diversity_take_effect(parts):
    trie, *_ = parts
    _, found = search(parts, beam=20, level_beams=[1, 30, 20])
    first = trie.item_path[trie.leaf_items[trie.leaf_item_offsets[:-1]], 0]
    assert len(first[found.leaves[0][found.leaves[0] >= 0] - trie.level_bounds[trie.depth]].unique()) == 1
    with pytest.raises(UserError, match="2 beam widths for 3 levels"):
        search(parts, level_beams=[4, 4])


def test_compiled_layers_find_the_same(parts, truth, monkeypatch):
    # The eager backend traces and guards as any other and needs no C++ compiler.
    compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    _, found = search(parts, beam=20, compile=True)
    compiled.cache_clear()
    _, plain = search(parts, beam=20)
    assert torch.equal(found.leaves, plain.leaves)
    torch.testing.assert_close(found.scores, plain.scores, rtol=0, atol=1e-5)


def test_int8_stays_close(parts, truth):
    _, exact = search(parts, beam=20)
    _, rough = search(parts, beam=20, int8=True)
    overlap = (rough.leaves[:, :10, None] == exact.leaves[:, None]).any(-1).float().mean()
    assert overlap > 0.7 and not torch.equal(rough.scores, exact.scores)


@pytest.mark.parametrize(
    "override, key",
    [
        (["decoding.search=greedy"], "decoding.search"),
        (["decoding.index=tree"], "decoding.index"),
        (["decoding.exact_top=0"], "decoding.exact_top"),
        (["decoding.level_beams=[5,0]"], "decoding.level_beams"),
        (["decoding.per_first_code=-1"], "decoding.per_first_code"),
        (["decoding.search=exact", "decoding.level_beams=[5,5]"], "decoding.level_beams"),
        (["decoding.search=exact", "decoding.exact_top=60"], "decoding.exact_top"),
        (["decoding.int8=true", "decoding.cuda_graph=true"], "decoding.int8"),
        (["decoding.compile=true", "decoding.int8=true"], "decoding.compile"),
    ],
)
def test_settings_that_cannot_work_name_their_key(override, key):
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        load_config(None, override)


def test_the_pre_cut_changes_nothing():
    keys = torch.randperm(3 * 5000, generator=torch.Generator().manual_seed(0)).view(3, 5000)
    for k in (1, 7, 60):
        assert torch.equal(top_lanes(keys, k), keys.topk(k, dim=1).indices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_equals_the_cpu(parts):
    trie, decoder, memory, vectors = parts
    move = lambda part: part.cuda()
    there = type(memory)(
        move(memory.state), [move(k) for k in memory.keys], [move(v) for v in memory.values], move(memory.mask)
    )
    graph = GraphedBeam(decoder.cuda(), vectors.cuda(), trie.to("cuda"), (20, 20, 20), 4, 8)
    found = graph(there)
    again = graph(there)
    decoder.cpu()
    _, exact = search(parts, beam=20)
    assert torch.equal(found.leaves, again.leaves)
    assert (found.leaves.cpu()[:, :10, None] == exact.leaves[:, None]).any(
        -1
    ).float().mean() > 0.8  # bfloat16 against float32
