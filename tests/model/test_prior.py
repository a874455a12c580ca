"""The retrieval head as a prior of the code decoder: exact before training, and the same in every search."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from genrec.generation.beam import beam_search
from genrec.generation.exact import leaf_scores
from genrec.generation.scorers import CachedScorer
from genrec.model import saved
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.objectives.generation import path_log_probabilities
from genrec.training.fit import new_network, with_rules


@pytest.fixture(scope="module")
def network(prepared_run):
    """An untrained network with a prior, whose request states and item vectors are far from equal."""
    model = replace(prepared_run.config.model, pointer=False, prior=None)
    config = with_rules(replace(prepared_run.config, model=model), prepared_run.dataset)
    assert config.model.prior
    return new_network(config, prepared_run.dataset, prepared_run.ids, generate=True).eval()


@pytest.fixture(scope="module")
def encoded(network, prepared_run):
    data = prepared_run.dataset
    collator = Collator(network.config, QueryFeatures.build(data.query_texts, prepared_run.ids.encoder))
    return network.encode(collator.requests(data.requests("valid").take(torch.arange(6).numpy())))


def retrieval(network, encoded):
    """Log-probabilities (B, n_items) of the retrieval head."""
    return (network.retrieval_vectors(encoded.requests[:, 0]) @ network.item_index(encoded.items).T).log_softmax(-1)


@torch.inference_mode()
def test_without_own_logits_generation_is_retrieval(network, encoded):
    """Each leaf has the probability of its items, and a beam search finds the best of them."""
    scale, trie = network.decoder.log_scale.clone(), network.catalogue.trie
    network.decoder.log_scale.fill_(-100)
    try:
        memory, vectors = network.decoder_memory(encoded), network.decoder.node_vectors(trie, encoded.items)
        leaves = leaf_scores(trie, CachedScorer(network.decoder, memory, vectors), 6)
        expected = torch.zeros(6, trie.n_leaves).index_add(
            1, trie.item_leaf - trie.level_bounds[trie.depth], retrieval(network, encoded).exp()
        )
        torch.testing.assert_close(leaves.exp(), expected, rtol=1e-3, atol=1e-6)
        result = beam_search(trie, CachedScorer(network.decoder, memory, vectors), 6, 20)
        torch.testing.assert_close(result.scores[:, 0].exp(), expected.amax(1), rtol=1e-3, atol=1e-6)
    finally:
        network.decoder.log_scale.copy_(scale)


@torch.inference_mode()
def test_training_scores_what_the_search_scores(network, encoded):
    """The loss's log-probabilities of all leaves equal those of the search, with rows that are taken and repeated."""
    trie, decoder = network.catalogue.trie, network.decoder
    memory, vectors = network.decoder_memory(encoded), decoder.node_vectors(trie, encoded.items)
    searched = leaf_scores(trie, CachedScorer(decoder, memory, vectors), 6)
    items = torch.arange(trie.n_items)
    paths = trie.item_path[items]
    entered = F.pad(paths[:, :-1], (1, 0))
    rows = torch.arange(6).repeat_interleave(len(items))
    states, _ = decoder.hidden(memory, vectors, entered.expand(6, -1, -1))
    biases = [bias.take(rows) for bias in memory.biases]
    logs = path_log_probabilities(
        states.flatten(0, 1), decoder.log_scale.exp(), vectors, trie, paths.repeat(6, 1), biases=biases
    )
    leaf = trie.item_leaf[items] - trie.level_bounds[trie.depth]
    torch.testing.assert_close(logs.sum(-1).view(6, -1), searched[:, leaf], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_request_keeps_its_prior_when_others_leave(network, encoded):
    trie = network.catalogue.trie
    memory, vectors = network.decoder_memory(encoded), network.decoder.node_vectors(trie, encoded.items)
    scorer, kept = CachedScorer(network.decoder, memory, vectors), torch.tensor([4, 1])
    scorer.expand(0, torch.zeros(6, 1, dtype=torch.long), None)
    first, last = trie.level_bounds[1], trie.level_bounds[2]
    every = scorer.root_logits(first, last)
    scorer.select(kept)
    torch.testing.assert_close(scorer.root_logits(first, last), every[kept])
    assert (every[4] - every[1]).abs().max() > 1e-3


def test_a_model_whose_prior_weight_is_a_scalar_still_loads(trained_run, monkeypatch):
    """The weight has one dimension since shards cannot hold scalars; earlier models saved one."""
    folder, actions = trained_run.folder / "model", len(trained_run.dataset.actions_chain)
    weights = load_file(folder / "model.safetensors")
    earlier = weights | {saved.PRIOR: weights[saved.PRIOR].view(())}
    assert earlier[saved.PRIOR].ndim == 0
    expected = saved.load_network(folder, actions, trained_run.ids)[0].state_dict()[saved.PRIOR]
    monkeypatch.setattr(saved, "load_file", lambda path: dict(earlier))
    assert torch.equal(saved.load_network(folder, actions, trained_run.ids)[0].state_dict()[saved.PRIOR], expected)
