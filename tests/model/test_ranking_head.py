"""Candidate tokens and reasoning blocks: who sees whom, tested by perturbation; cached equals uncached.

Blocks of several tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.data.impressions import load_impressions, stage_indices
from genrec.data.sequences import make_windows
from genrec.model.backbone import Backbone, own_block, sequence_mask
from genrec.model.collate import Collator, impression_windows
from genrec.model.query_features import QueryFeatures
from genrec.model.ranking import RankingHead, request_rows
from genrec.model.reasoning import Reasoning
from genrec.training.fit import new_network

EXACT = {"rtol": 0, "atol": 1e-5}
STAGES = ["click", "cart"]


@pytest.fixture(scope="module")
def world(prepared_run):
    """``make()`` -> network with two reasoning steps and a ranking head.

    The collator, dataset, windows and their rows.
    """
    data = prepared_run.dataset
    model = replace(prepared_run.config.model, reasoning_steps=2, ranking=True, stages=STAGES)
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    listed = load_impressions(data, STAGES)
    places = impression_windows(listed, windows, np.asarray(data.offsets))
    keep = np.flatnonzero((listed.split == TRAIN) & (places >= 0))
    collator = Collator(
        model,
        QueryFeatures.build(data.query_texts, prepared_run.ids.encoder),
        stage_indices(data, STAGES),
        listed.take(keep),
    )
    collator.impression_windows = places[keep]

    def make():
        config = replace(prepared_run.config, model=model)
        network = new_network(config, data, prepared_run.ids, generate=True)
        made = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.add_(torch.randn(parameter.shape, generator=made) * 0.1)
        return network.eval()

    rows = np.flatnonzero(windows.stop - windows.start == 11)[:16]
    return make, collator, data, windows, rows


@pytest.fixture(scope="module")
def network(world):
    return world[0]()


@pytest.fixture(scope="module")
def batch(world):
    _, collator, data, windows, rows = world
    return collator.windows(data, windows, rows, True, True)


@torch.inference_mode()
def answers(network, batch):
    """Retrieval vectors of every step (B, R, 3, dim), the decoder's states, and the ranking logits (N, C, 2)."""
    encoded = network.encode(batch)
    trie = network.catalogue.trie
    walk = torch.tensor([0, int(trie.child_start[0])]).expand(*batch.positions.shape, -1)
    vectors = network.decoder.node_vectors(trie, encoded.items)
    states = network.decoder.hidden(network.decoder_memory(encoded), vectors, walk)[0]
    steps = torch.stack([network.retrieval_vectors(block.mean(2)) for block in encoded.blocks], dim=2)
    listed = batch.impressions
    return steps, states, network.rank(encoded, listed.row, listed.column, listed.items, listed.features)


def test_shown_requests_are_further_lanes_of_their_windows(world, batch):
    _, collator, data, windows, rows = world
    listed = batch.impressions
    assert len(listed.row) > 10 and (batch.targets[listed.row, listed.column] == -1).all()
    index = np.flatnonzero(np.isin(collator.impression_windows, rows))
    own = collator.impressions.take(index)
    positions = own.before - windows.start[collator.impression_windows[index]]
    assert batch.positions[listed.row, listed.column].tolist() == positions.tolist() and positions.min() >= 0
    for position in range(len(index)):
        mine = slice(own.offsets[position], own.offsets[position + 1])
        assert listed.items[position][listed.items[position] >= 0].tolist() == own.items[mine].tolist()
        assert np.array_equal(listed.reached[position, : mine.stop - mine.start], own.reached[mine])
    live = batch.targets >= 0
    assert (
        batch.reached.shape == (*live.shape, 2) and not batch.reached[~live].any() and batch.reached[live].any(0).all()
    )


def test_every_shown_training_request_is_in_exactly_one_window(world):
    _, collator, data, windows, _ = world
    starts, stops = windows.first[collator.impression_windows], windows.stop[collator.impression_windows]
    before = collator.impressions.before
    assert (np.diff(collator.impression_windows) >= 0).all() and (before >= starts).all() and (before <= stops).all()
    owner = np.searchsorted(data.offsets, windows.start[collator.impression_windows], side="right") - 1
    assert np.array_equal(owner, collator.impressions.users)


@pytest.mark.parametrize("what", ["items", "actions", "times"])
@pytest.mark.parametrize("position", [1, 4, 7])
def test_no_step_and_no_candidate_sees_a_later_event(network, batch, what, position):
    values = getattr(batch, what).clone()
    values[:, position] = (
        values[:, position] + 999.0
        if what == "times"
        else (values[:, position] + 1)
        % (network.actions.num_embeddings if what == "actions" else network.catalogue.n_items)
    )
    old, new = answers(network, batch), answers(network, replace(batch, **{what: values}))
    sees = (batch.targets >= 0) & (batch.positions > position)
    blind = batch.positions <= position
    for before, after in zip(old[:2], new[:2], strict=True):
        torch.testing.assert_close(after[blind], before[blind], **EXACT)
        assert ((after - before).flatten(2).abs().amax(-1)[sees] > 1e-6).all()
    columns = blind[batch.impressions.row, batch.impressions.column]
    assert columns.any() and not columns.all()
    torch.testing.assert_close(new[2][columns], old[2][columns], **EXACT)
    known = (batch.impressions.items >= 0)[~columns]
    assert ((new[2] - old[2])[~columns].abs().amax(-1)[known] > 1e-7).all()


def test_requests_and_their_blocks_do_not_see_each_other(network, batch):
    changed = replace(
        batch, request_queries=batch.request_queries.index_fill(1, torch.tensor([0]), 1),
        positions=batch.positions.index_fill(1, torch.tensor([0]), 3),
    )  # fmt: skip
    old, new = answers(network, batch), answers(network, changed)
    for before, after in zip(old[:2], new[:2], strict=True):
        torch.testing.assert_close(after[:, 1:], before[:, 1:], **EXACT)
        assert (after[:, 0] - before[:, 0]).abs().max() > 1e-4
    others = batch.impressions.column != 0
    torch.testing.assert_close(new[2][others], old[2][others], **EXACT)


def test_candidates_do_not_see_one_another(network, batch):
    listed = batch.impressions
    full = (listed.items[:, :2] >= 0).all(1)
    items = listed.items.clone()
    items[:, 0] = (items[:, 0] + 1) % network.catalogue.n_items
    old, new = answers(network, batch), answers(network, replace(batch, impressions=replace(listed, items=items)))
    assert torch.equal(old[0], new[0]) and torch.equal(old[1], new[1])  # no other token sees a candidate
    assert (new[2][:, 0] - old[2][:, 0]).abs().min(1).values.min() > 0
    assert (new[2][full, 1] - old[2][full, 1]).abs().max() < 1e-6


def test_what_became_of_the_items_is_no_input(network, batch):
    flipped = replace(
        batch,
        reached=~batch.reached,
        impressions=replace(batch.impressions, reached=~batch.impressions.reached),
        targets=batch.targets.clamp(max=0),  # padding stays padding
    )
    for old, new in zip(answers(network, batch), answers(network, flipped), strict=True):
        assert torch.equal(old, new)


def test_evidence_reaches_its_own_candidate_alone(network, batch):
    evidence = batch.impressions.features.clone()
    evidence[3, 0] += 1
    old, new = (
        answers(network, batch),
        answers(network, replace(batch, impressions=replace(batch.impressions, features=evidence))),
    )
    moved = (new[2] - old[2]).abs().amax(-1) > 1e-6
    assert moved.nonzero().tolist() == [[3, 0]]


def test_one_request_alone_ranks_as_in_its_window(network, world, batch):
    """Inference puts each request into a row of its own.

    Times of a window and of a history start alike on short ones.
    """
    _, collator, data, windows, rows = world
    index = np.flatnonzero(np.isin(collator.impression_windows, rows))
    whole = (
        collator.impressions.before[index] - data.offsets[collator.impressions.users[index]]
        == batch.positions[batch.impressions.row, batch.impressions.column].numpy()
    )
    assert whole.sum() >= 3
    alone = collator.impression_batch(collator.impressions, index[whole])
    wide = answers(network, batch)[2][torch.from_numpy(whole)]
    known = batch.impressions.items[torch.from_numpy(whole)] >= 0
    narrow = answers(network, alone)[2]
    torch.testing.assert_close(narrow[alone.impressions.items >= 0], wide[known], rtol=0, atol=1e-4)


def test_blocks_of_several_tokens_equal_one_pass():
    """Two requests of M = 3 tokens, two steps, candidates of one request.

    Cache against a single pass with the whole mask.
    """
    torch.manual_seed(2)
    backbone, reasoning = Backbone(8, 2, 2, 0.0).eval(), Reasoning(8, 2)
    head = RankingHead(8, np.zeros((2, 3), np.float32), 0.0).eval()
    length, block, positions = 4, 3, torch.tensor([[2, 4]])
    x, angles = torch.randn(1, length + 6, 8), torch.randn(1, length + 6, 2)
    base = sequence_mask(length, positions, block)
    states, cache = backbone.extend(x, angles, base)
    visible = base[:, length::block, :length]
    blocks, cache = reasoning(backbone, states[:, length:].unflatten(1, (2, 3)), angles[:, length:], visible, cache)
    slot = torch.tensor([1])
    items = torch.randn(1, 5, 8)
    kept, seen = request_rows(cache, visible, torch.tensor([0]), slot, block, 3)
    assert kept[0][0].shape[2] == seen.shape[1] == length + 3 * block and seen.sum() == 4 + 9
    logits = head(backbone, items, None, angles[:, length + block], seen, kept)
    # the same without cache: all tokens, one mask
    own = own_block(2, block, x.device)
    first = states[:, length:] + reasoning.step[0]
    second = blocks[0].flatten(1, 2) + reasoning.step[1]
    candidates = head.drop(head.norm(head.kind + head.item(items) + head.features(torch.zeros(1, 5, 3))))
    size = length + 18 + 5
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, : length + 6, : length + 6] = base
    for later in (1, 2):
        rows = slice(length + 6 * later, length + 6 * later + 6)
        mask[:, rows, :length] = visible.repeat_interleave(block, 1)
        for earlier in range(later + 1):
            mask[:, rows, length + 6 * earlier : length + 6 * earlier + 6] = own
    mask[:, length + 18 :, :length] = visible[:, 1:]
    for step in range(3):
        mask[:, length + 18 :, length + 6 * step + 3 : length + 6 * step + 6] = True
    mask[:, length + 18 :, length + 18 :] = torch.eye(5, dtype=torch.bool)
    together = torch.cat([x, first, second, candidates], 1)
    turned = torch.cat(
        [angles, angles[:, length:], angles[:, length:], angles[:, length + block :][:, :1].expand(-1, 5, -1)], 1
    )
    whole = backbone(together, turned, mask)
    torch.testing.assert_close(blocks[1].flatten(1, 2), whole[:, length + 12 : length + 18], **EXACT)
    torch.testing.assert_close(logits, head.score(whole[:, length + 18 :]), **EXACT)
