"""Cached equals uncached: tokens that run later see exactly what they would have seen in one pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from genrec.data.sequences import make_windows
from genrec.model.backbone import Backbone, own_block, sequence_mask, visible_context
from genrec.model.code_decoder import Memory
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.training.fit import new_network

EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(dim=16, layers=3, heads=2, dropout=0.5).eval()


def test_extending_equals_one_pass_over_everything(backbone):
    """Base tokens, then two extensions whose masks leave out some cached tokens."""
    made = torch.Generator().manual_seed(1)
    x, angles = torch.randn(2, 12, 16, generator=made), torch.randn(2, 12, 4, generator=made)
    mask = (torch.rand(2, 12, 12, generator=made) < 0.6) | torch.eye(12, dtype=torch.bool)
    for start, stop in ((0, 5), (5, 9)):
        mask[:, start:stop, stop:] = False  # what one pass must not show, as it has not run yet
    whole = backbone(x, angles, mask)
    cache, parts = None, []
    for start, stop in ((0, 5), (5, 9), (9, 12)):
        state, cache = backbone.extend(x[:, start:stop], angles[:, start:stop], mask[:, start:stop, :stop], cache)
        parts.append(state)
    torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)
    changed = mask.clone()
    changed[:, 9:, 2] = ~changed[:, 9:, 2]
    assert (backbone(x, angles, changed)[:, 9:] - whole[:, 9:]).abs().max() > 1e-3


def test_gradients_through_the_cache_equal_those_of_one_pass(backbone):
    made = torch.Generator().manual_seed(2)
    angles, mask = torch.randn(1, 8, 4, generator=made), torch.ones(1, 8, 8, dtype=torch.bool).tril()
    inputs = torch.randn(1, 8, 16, generator=made)
    actual = []
    for cut in (8, 3):
        x = inputs.clone().requires_grad_()
        first, cache = backbone.extend(x[:, :cut], angles[:, :cut], mask[:, :cut, :cut])
        rest = backbone.extend(x[:, cut:], angles[:, cut:], mask[:, cut:], cache)[0] if cut < 8 else first[:, 8:]
        (torch.cat([first, rest], 1) ** 3).sum().backward()
        actual.append(x.grad)
    torch.testing.assert_close(actual[1], actual[0], rtol=1e-4, atol=1e-4)


def test_the_mask_of_request_blocks():
    mask = sequence_mask(3, torch.tensor([[0, 2]]), block=2)[0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 1, 1],
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # uncompiled, it says so
@pytest.mark.parametrize("block", [1, 3])
def test_flex_attention_with_a_block_mask_is_the_same(block):
    """What ``scripts/bench/attention.py`` times.

    Every token sees itself, so no row is empty, where the two would differ.
    """
    torch.manual_seed(1)
    positions = torch.randint(0, 21, (4, 6))
    mask = sequence_mask(20, positions, block)
    size = mask.shape[-1]
    q, k, v = torch.randn(3, 4, 2, size, 16)
    seen = create_block_mask(lambda row, head, one, other: mask[row, one, other], 4, None, size, size, device="cpu")
    with torch.no_grad():
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
        torch.testing.assert_close(flex_attention(q, k, v, block_mask=seen), expected)
    assert mask.any(-1).all() and not mask.all()


@pytest.fixture(scope="module")
def thinking(prepared_run):
    """An untrained network that thinks two steps, and a batch with several requests in a row."""
    config = replace(prepared_run.config, model=replace(prepared_run.config.model, reasoning_steps=2))
    network = new_network(config, prepared_run.dataset, prepared_run.ids, generate=True).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    data = prepared_run.dataset
    windows = make_windows(data.offsets, data.known_lengths(0), 10, 5)
    rows = (windows.stop - windows.start == 11).nonzero()[0][:4]
    features = QueryFeatures.build(data.query_texts, prepared_run.ids.encoder)
    return network, Collator(config.model, features).windows(data, windows, rows, True, True)


@torch.inference_mode()
def test_reasoning_with_cache_equals_reasoning_without(thinking):
    """B_k = Backbone(B_{k-1} + step_k): each step again as one pass over context, requests and all blocks so far."""
    network, batch = thinking
    encoded = network.encode(batch)
    length, requests = batch.items.shape[1], batch.positions.shape[1]
    base = _inputs(network, batch)
    assert len(encoded.blocks) == 3
    x, blocks = base, encoded.blocks[0]
    angles = _angles(network, batch)
    for step in range(2):
        x = torch.cat([x, blocks.flatten(1, 2) + network.reasoning.step[step]], 1)
        angles = torch.cat([angles, encoded.angles], 1)
        size = x.shape[1]
        mask = torch.zeros(len(x), size, size, dtype=torch.bool)
        mask[:, : length + requests, : length + requests] = sequence_mask(length, batch.positions)
        own = own_block(requests, 1, x.device)
        for later in range(1, step + 2):
            start = length + later * requests
            mask[:, start : start + requests, :length] = encoded.visible
            for earlier in range(later + 1):
                mask[:, start : start + requests, length + earlier * requests : length + (earlier + 1) * requests] = own
        blocks = network.backbone(x, angles, mask)[:, -requests:].unflatten(1, (requests, 1))
        torch.testing.assert_close(encoded.blocks[step + 1], blocks, **EXACT)
    torch.testing.assert_close(encoded.requests, blocks.mean(2), **EXACT)


def _inputs(network, batch):
    """The base tokens as the backbone gets them."""
    seen = []
    handle = network.input_norm.register_forward_hook(lambda module, given, made: seen.append(made))
    network.encode(batch)
    handle.remove()
    return seen[0]


def _angles(network, batch):
    from genrec.model import network as module

    seen, real = [], module.rotary_angles
    module.rotary_angles = lambda *given, **named: seen.append(real(*given, **named)) or seen[-1]
    try:
        network.encode(batch)
    finally:
        module.rotary_angles = real
    return seen[0]


@torch.inference_mode()
def test_taking_requests_out_of_the_memory_changes_no_state(thinking):
    """The private positions of other requests are left out, not merely hidden."""
    network, batch = thinking
    encoded = network.encode(batch)
    memory = network.decoder_memory(encoded)
    trie = network.catalogue.trie
    vectors = network.decoder.node_vectors(trie, encoded.items)
    walk = torch.tensor([0, int(trie.child_start[0])]).expand(*batch.positions.shape, -1)
    together, _ = network.decoder.hidden(memory, vectors, walk)
    row, column = (batch.targets >= 0).nonzero(as_tuple=True)
    alone = network.decoder_memory(encoded, row, column)
    assert alone.mask.shape[-1] == 1 + batch.items.shape[1] + 2 + encoded.anchors.ids.shape[2]
    states, _ = network.decoder.hidden(alone, vectors, walk[row, column][:, None])
    torch.testing.assert_close(states[:, 0], together[row, column], **EXACT)
    blind = Memory(memory.state, memory.keys, memory.values, memory.mask.clone())
    blind.mask[..., 1 + batch.items.shape[1] :] = False
    assert (network.decoder.hidden(blind, vectors, walk)[0] - together).abs().max() > 1e-4


@torch.inference_mode()
def test_without_a_code_decoder_only_the_context_states_are_missing(thinking):
    """Leaving the last layer out where nobody reads it changes no request and no key."""
    network, batch = thinking
    whole = network.encode(batch)
    decoder, network.decoder = network.decoder, None
    try:
        lean = network.encode(batch)
    finally:
        network.decoder = decoder
    assert whole.context.shape[1] == batch.items.shape[1] and lean.context.shape[1] == 0
    torch.testing.assert_close(lean.requests, whole.requests, **EXACT)
    for one, other in zip(lean.cache, whole.cache, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("cache_only", [0, 7])
def test_the_first_pass_equals_one_under_the_mask(backbone, block, cache_only):
    """Only scores that the mask would hide are left out, in states and in the cache."""
    made = torch.Generator().manual_seed(4)
    positions = torch.tensor([[0, 3, 7], [5, 2, 6]])
    size = 7 + 3 * block
    x, angles = torch.randn(2, size, 16, generator=made), torch.randn(2, size, 4, generator=made)
    expected, kept = backbone.extend(x, angles, sequence_mask(7, positions, block), cache_only=cache_only)
    states, cache = backbone.first_pass(x, angles, visible_context(7, positions), cache_only)
    torch.testing.assert_close(states, expected, **EXACT)
    for one, other in zip(cache, kept, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
