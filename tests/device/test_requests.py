"""Answering requests on one device: prefill, beam search in static shapes, retrieval, ranking head and re-ranker.

Nothing is read back.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from genrec.generation.beam import beam_search, leaf_items
from genrec.generation.sampling import sample_items
from genrec.generation.scorers import CachedScorer
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.preference.policy import Policy
from genrec.ranking.candidates import Candidates
from genrec.ranking.features import FEATURES
from genrec.ranking.reranker import Reranker
from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.dense import DenseRetriever
from genrec.training.fit import new_network

REQUESTS, WIDTH = 6, 20
NETWORKS = {
    "plain": {},
    "reasoning and ranking": {"reasoning_steps": 2, "ranking": True, "query_anchors": True},
    "profile": {"user_tokens": True, "summary_tokens": 2},
    "without anchors": {"anchors": 0},
}


@pytest.fixture(scope="module", params=NETWORKS)
def served(request, prepared_run, with_settings):
    """A network on meta, moved by its parent, and a batch of validation requests there."""
    config = with_settings(NETWORKS[request.param])
    network = new_network(config, prepared_run.dataset, prepared_run.ids, generate=True)
    features = QueryFeatures.build(prepared_run.dataset.query_texts, prepared_run.ids.encoder)
    requests = prepared_run.dataset.requests("valid").take(np.arange(REQUESTS))
    collator = Collator(config.model, features)
    moved = torch.nn.ModuleList([network]).to("meta")[0].eval()
    return moved, collator, requests, collator.requests(requests).to("meta")


@torch.inference_mode()
def test_generation(served, one_device):
    network, _, _, batch = served
    trie = network.catalogue.trie
    with one_device.OneDevice():
        items = network.item_encoder()
        vectors = network.decoder.node_vectors(trie, items)
        memory = network.decoder_memory(network.encode(batch, items))
        scorer = CachedScorer(network.decoder, memory, vectors, 1 + WIDTH * trie.depth)
        hidden = torch.zeros(REQUESTS, trie.n_items, dtype=torch.bool, device="meta")
        actual = beam_search(trie, scorer, REQUESTS, WIDTH, trie.restrict(~hidden))
        ids, scores = leaf_items(trie, actual.leaves, actual.scores, lambda ids: torch.zeros(ids.shape, device="meta"))
    assert ids.device.type == scores.device.type == "meta" and len(actual.leaves) == REQUESTS


@torch.inference_mode()
def test_retrieval_and_ranking(served, one_device):
    network, _, _, batch = served
    with one_device.OneDevice():
        items = network.item_encoder()
        encoded = network.encode(batch, items)
        vectors = network.retrieval_vectors(encoded.requests[:, 0])
        mask = torch.ones(len(items), dtype=torch.bool, device="meta")
        excluded = torch.zeros(REQUESTS, 3, dtype=torch.long, device="meta")
        dense = DenseRetriever(network.item_index(items), lambda requests: requests.vectors, "exact")
        ids, scores = dense.search(vectors, 10, AllowedItems(mask, excluded))
        assert ids.shape == scores.shape == (REQUESTS, 10)
        if network.ranking is not None:
            row = torch.arange(REQUESTS, device="meta")
            assert network.rank(encoded, row, torch.zeros_like(row), ids).device.type == "meta"


def test_the_reranker(one_device):
    torch.manual_seed(0)
    lists = torch.randn(300, 12, len(FEATURES))
    ids = torch.arange(12).expand(300, -1).contiguous()
    reranker = Reranker.fit([(Candidates(ids, lists), lists[..., 0].argmax(1))])
    candidates = Candidates(ids.to("meta"), lists.to("meta"))
    with one_device.OneDevice():
        ranked, scores = copy.deepcopy(reranker).rank(candidates, 5)
    assert ranked.shape == scores.shape == (300, 5) and scores.device.type == "meta"


def test_the_policy_of_the_preference_stage(served, one_device, read_backs):
    """States, steps with their gradients, and samples from a generator on the device."""
    network, collator, requests, _ = served
    policy = Policy(copy.deepcopy(network))
    with one_device.OneDevice():
        requested = policy.encode(collator, requests)
        paths = network.catalogue.trie.item_path[torch.zeros(REQUESTS, 3, dtype=torch.long, device="meta")]
        policy.steps(requested, paths).sum().backward()
        policy.reference_steps(requested, paths)
        memory, trie = policy.memory(requested), network.catalogue.trie
        scorer = CachedScorer(policy.decoder, memory, policy.vectors(), 1 + 4 * (trie.depth - 1))
        sample_items(trie, scorer, REQUESTS, 4, None)
    assert read_backs.calls == 3  # walked nodes once, children on the way of each of two sets of paths
