"""Anchors show what other people did, never what the request's own person was counted for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from genrec.data.dataset import TRAIN
from genrec.data.histories import Histories
from genrec.data.sequences import make_windows
from genrec.model.anchors import RECENT, AnchorAttention, Anchors, AnchorTables, AnchorTokens, attend_shared, n_features
from genrec.model.batch import Batch
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.retrieval.neighbours import AnchorTable, cooccurrence_neighbours, items_after_words
from genrec.retrieval.similar_texts import most_similar
from genrec.text.query_tokens import WORD_BUCKETS
from genrec.training.fit import fill_anchors, new_network

N_ITEMS, SHOWN = 15, 4


def tables(histories: Histories) -> AnchorTables:
    counted = cooccurrence_neighbours(histories, N_ITEMS, 2 * SHOWN)
    made = AnchorTables(N_ITEMS, SHOWN)
    ids = np.full((N_ITEMS, 2 * SHOWN), -1, np.int32)
    ids[:, :2] = np.stack([(np.arange(N_ITEMS) + 1) % N_ITEMS, (np.arange(N_ITEMS) + 2) % N_ITEMS], 1)
    made.fill(AnchorTable(counted.ids, counted.counts, counted.users), ids)
    return made


@pytest.fixture
def people():
    rng = np.random.default_rng(3)
    return [rng.permutation(N_ITEMS)[: rng.integers(3, 6)] for _ in range(30)]


def visible(anchors, column: int) -> dict[int, list[float]]:
    """The company anchors of one request: id and event -> features."""
    live = anchors.live[0, column, : RECENT * SHOWN]
    event = torch.arange(RECENT).repeat_interleave(SHOWN)
    return {
        (int(e), int(i)): f.tolist()
        for e, i, f in zip(
            event[live],
            anchors.ids[0, column, : RECENT * SHOWN][live],
            anchors.features[0, column, : RECENT * SHOWN][live],
            strict=True,
        )
    }


def test_training_sees_the_counts_of_everybody_else(people):
    for person in range(6):
        items = torch.from_numpy(people[person].astype(np.int64))
        positions = torch.arange(1, len(items))[None]
        context, targets = items[None, :-1], items[1:][None]
        mine = tables(Histories.from_lists(people)).choose(context, positions, targets)
        others = tables(
            Histories.from_lists([row for position, row in enumerate(people) if position != person])
        ).choose(context, positions)
        for column in range(len(items) - 1):
            ours, theirs = visible(mine, column), visible(others, column)
            # Wide tables are cut: what stands at the very end of one may be missing in the other, never what both hold.
            both = ours.keys() & theirs.keys()
            assert len(both) >= max(len(ours), len(theirs)) - 2 and both
            for key in both:
                assert ours[key] == pytest.approx(theirs[key], abs=1e-5)


def test_a_single_target_sees_the_counts_of_everybody_else(people):
    """What the user chose after the window is in the counts as well."""
    for person in range(6):
        items = torch.from_numpy(people[person].astype(np.int64))[None]
        without = tables(Histories.from_lists([row for place, row in enumerate(people) if place != person]))
        for before in range(1, items.shape[1]):
            positions, context = torch.tensor([[before]]), items[:, :before]
            mine = tables(Histories.from_lists(people)).choose(
                context, positions, items[:, before : before + 1], later=items[:, before + 1 :]
            )
            ours, theirs = visible(mine, 0), visible(without.choose(context, positions), 0)
            both = ours.keys() & theirs.keys()
            assert len(both) >= max(len(ours), len(theirs)) - 2 and both
            for key in both:
                assert ours[key] == pytest.approx(theirs[key], abs=1e-5)


def test_an_answer_counted_once_by_its_own_person_is_no_anchor():
    histories = Histories.from_lists([[0, 1, 2], [3, 4]])
    made = tables(histories)
    context, positions = torch.tensor([[0, 1]]), torch.tensor([[2]])
    stated = made.choose(context, positions)
    assert 2 in stated.ids[stated.live].tolist()
    kept = made.choose(context, positions, torch.tensor([[2]]))
    assert 2 not in kept.ids[0, 0, : RECENT * SHOWN][kept.live[0, 0, : RECENT * SHOWN]].tolist()


def test_what_was_seen_is_no_anchor_and_no_later_event_counts(people):
    made = tables(Histories.from_lists(people))
    items = torch.from_numpy(people[0].astype(np.int64))[None]
    anchors = made.choose(items, torch.tensor([[2]]))
    assert not set(anchors.ids[anchors.live].tolist()) & set(items[0, :2].tolist())
    changed = items.clone()
    changed[0, 2:] = (changed[0, 2:] + 5) % N_ITEMS
    again = made.choose(changed, torch.tensor([[2]]))
    for one, other in ((anchors.ids, again.ids), (anchors.live, again.live), (anchors.features, again.features)):
        assert torch.equal(one, other)


def test_requests_of_one_sequence_are_those_asked_alone(people):
    made = tables(Histories.from_lists(people))
    items = torch.from_numpy(people[1].astype(np.int64))[None]
    together = made.choose(items, torch.tensor([[1, 2, 3]]))
    for column in range(3):
        alone = made.choose(items, torch.tensor([[column + 1]]))
        assert torch.equal(alone.ids[:, 0], together.ids[:, column]) and torch.equal(
            alone.live[:, 0], together.live[:, column]
        )


def test_a_request_without_history_and_new_items_have_no_anchors(people):
    made = tables(Histories.from_lists(people))
    assert not made.choose(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)).live.any()
    anchors = made.choose(torch.tensor([[N_ITEMS + 1]]), torch.tensor([[1]]))
    assert not anchors.live.any() and anchors.ids.max() < N_ITEMS + 2


def test_hidden_anchors_have_no_effect(people):
    torch.manual_seed(0)
    made = tables(Histories.from_lists(people))
    items = torch.from_numpy(people[1].astype(np.int64))[None]
    anchors = made.choose(items, torch.tensor([[3]]))
    tokens, attention = AnchorTokens(8, 2, n_features(False)), AnchorAttention(8, 2, 0.0, n_features(False))
    torch.nn.init.eye_(attention.out.weight)  # a fresh one adds nothing
    vectors, x = torch.randn(N_ITEMS, 8), torch.randn(1, 1, 2, 8)
    before = attention(x, anchors, vectors[anchors.ids], tokens)
    other = torch.where(anchors.live, anchors.ids, (anchors.ids + 3) % N_ITEMS)
    anchors.ids = other
    torch.testing.assert_close(attention(x, anchors, vectors[anchors.ids], tokens), before)
    anchors.live = torch.zeros_like(anchors.live)
    empty = attention(x, anchors, vectors[anchors.ids], tokens)
    assert empty.isfinite().all() and (empty - before).abs().max() > 1e-4


def searching(people, taken: list[tuple[int, int]] = ()) -> AnchorTables:
    """``taken``: pairs of a query (its number is its only word) and the item taken after it."""
    counted = cooccurrence_neighbours(Histories.from_lists(people), N_ITEMS, 2 * SHOWN)
    made = AnchorTables(N_ITEMS, SHOWN, queries=True)
    made.fill(counted, np.full((N_ITEMS, 2 * SHOWN), -1, np.int32))
    pairs = np.array(taken, np.int64).reshape(-1, 2)
    words = np.array(
        [0, 1, 2, 0, 1, 1, WORD_BUCKETS + 5]
    )  # queries 0 to 2 have one word each, query 3 the words 0 and 1, one of them twice
    made.queries.fill(
        items_after_words(words, np.array([0, 1, 2, 3, 7]), pairs[:, 0], pairs[:, 1], WORD_BUCKETS, N_ITEMS, 2 * SHOWN)
    )
    return made


TEXT = torch.nn.functional.normalize(torch.randn(N_ITEMS, 6, generator=torch.Generator().manual_seed(0)), dim=1)
NEAR, TAKEN = slice(-2 * SHOWN, -SHOWN), slice(-SHOWN, None)


def look_up(made, requested: list[list[int]], rows: list[int], words: list[list[int]]):
    offsets = torch.tensor([0, *np.cumsum([len(one) for one in words])[:-1]])
    flat = torch.tensor([word for one in words for word in one], dtype=torch.long)
    ids, cosines = most_similar(TEXT[rows], TEXT, made.users.log1p(), 2 * SHOWN)
    matches = ids.remainder(3) / 2  # some fraction of the best match for each item
    return made.queries.look_up(torch.tensor(requested), (ids, cosines, matches), flat, offsets)


def taken_strengths(anchors) -> dict[int, float]:
    """Of the one request: the items that were taken after its words, and how strongly."""
    live = anchors.live[0, 0, TAKEN]
    return dict(
        zip(
            anchors.ids[0, 0, TAKEN][live].tolist(),
            anchors.features[0, 0, TAKEN][live][:, 4].expm1().tolist(),
            strict=True,
        )
    )


def test_a_search_is_shown_what_is_next_to_its_query(people):
    made = searching(people)
    items = torch.from_numpy(people[0].astype(np.int64))[None]

    def choose(queries):
        return made.choose(items, torch.tensor([[2, 2, 2]]), None, look_up(made, [queries], [3, 7], [[0], [1]]))

    anchors = choose([0, 1, 2])
    assert anchors.features.shape[-1] == n_features(True)
    live, ids = anchors.live[0, :, NEAR], anchors.ids[0, :, NEAR]
    assert not anchors.live[0, 0, -2 * SHOWN :].any() and live[1:].any(1).all()  # who asks nothing is shown none
    seen = set(items[0, :2].tolist())
    for column, item in ((1, 3), (2, 7)):
        shown_ids = ids[column][live[column]].tolist()
        assert not seen & set(shown_ids) and (item in seen or item in shown_ids)
        matches = [one % 3 / 2 for one in shown_ids]
        order = [
            10 * (float(TEXT[item] @ TEXT[one]) + match) + float(made.users[one].log1p())
            for one, match in zip(shown_ids, matches, strict=True)
        ]
        assert order == sorted(order, reverse=True)
        likeness = anchors.features[0, column, NEAR][live[column]][:, 5]
        assert likeness.tolist() == pytest.approx([float(TEXT[item] @ TEXT[one]) for one in shown_ids], abs=1e-5)
        assert anchors.features[0, column, NEAR][live[column]][:, 6].tolist() == matches
    other = choose([0, 2, 2])
    for column, same in ((0, True), (1, False), (2, True)):
        assert torch.equal(other.ids[0, column], anchors.ids[0, column]) is same


def test_training_projects_distinct_anchors_alone(people):
    made, tokens = tables(Histories.from_lists(people)), AnchorTokens(8, 2, n_features(False))
    items = torch.from_numpy(people[0].astype(np.int64))[None]
    anchors, vectors = made.choose(items, torch.tensor([[1, 2]])), torch.randn(N_ITEMS, 8)
    for some, whole in zip(tokens.train()(anchors, vectors), tokens.eval()(anchors, vectors), strict=True):
        torch.testing.assert_close(some, whole)


def test_a_search_is_shown_what_was_taken_after_its_words(people):
    taken = [(0, 4), (0, 4), (1, 4), (1, 9), (3, 9), (2, 11)]
    made, nobody = searching(people, taken), torch.zeros(1, 1, dtype=torch.long)
    weights = {word: float(np.log1p(len(taken) / count)) for word, count in {0: 3, 1: 3, 2: 1}.items()}
    expected = {
        (0,): {4: 2 * weights[0], 9: weights[0]}, (2,): {11: weights[2]}, (7,): {},
        (0, 1): {4: 2 * weights[0] + weights[1], 9: weights[0] + 2 * weights[1]},
    }  # fmt: skip
    for words, strengths in expected.items():
        for repeated in (list(words), [*words, words[0]]):
            anchors = made.choose(nobody, nobody, None, look_up(made, [[1]], [3], [repeated]))
            assert taken_strengths(anchors) == pytest.approx(strengths, rel=1e-4)


def test_a_search_in_training_does_not_count_itself(people):
    taken = [(0, 4), (0, 4), (3, 9), (2, 11)]
    made, nobody = searching(people, taken), torch.zeros(1, 1, dtype=torch.long)
    for own, words in ((0, [0]), (2, [0, 1, 1]), (3, [2])):
        target = torch.tensor([[taken[own][1]]])
        ours = made.choose(nobody, nobody, target, look_up(made, [[1]], [3], [words]))
        rest = searching(people, [pair for position, pair in enumerate(taken) if position != own])
        rest.queries.weight.copy_(made.queries.weight)  # how rare a word is says nothing of the item
        theirs = rest.choose(nobody, nobody, None, look_up(rest, [[1]], [3], [words]))
        assert taken_strengths(ours) == pytest.approx(taken_strengths(theirs), rel=1e-4)
    assert (
        not made.choose(nobody, nobody, torch.tensor([[11]]), look_up(made, [[1]], [3], [[2]])).live[..., TAKEN].any()
    )


def test_a_search_in_training_counts_what_others_had(people):
    for person in range(6):
        items = torch.from_numpy(people[person].astype(np.int64))
        positions, requested = torch.arange(1, len(items))[None], [[1] * (len(items) - 1)]
        mine, others = searching(people), searching([row for position, row in enumerate(people) if position != person])
        context, targets, row = items[None, :-1], items[1:][None], [int(items[-1])]
        ours = mine.choose(context, positions, targets, look_up(mine, requested, row, [[0]]))
        theirs = others.choose(context, positions, None, look_up(others, requested, row, [[0]]))
        for part in ("ids", "live", "features"):
            torch.testing.assert_close(getattr(ours, part)[:, :, NEAR], getattr(theirs, part)[:, :, NEAR])


def test_anchor_attention_equals_attention_over_keys_and_values():
    """Projections on the side of the requests, in one pass for the gradient, against the textbook's order."""
    torch.manual_seed(0)
    dim, heads, features = 8, 2, n_features(False)
    tokens, attention = AnchorTokens(dim, heads, features), AnchorAttention(dim, heads, 0.0, features)
    items = torch.randn(20, dim, requires_grad=True)
    ids, live = torch.randint(20, (3, 2, 7)), torch.rand(3, 2, 7) < 0.7
    live[0, 0] = False
    anchors = Anchors(ids, live, torch.randn(3, 2, 7, features))
    nn.init.normal_(attention.null)
    x = torch.randn(3, 2, 2, dim, requires_grad=True)

    def textbook():
        key, value = tokens(anchors, items)
        query = attention.query(attention.norm(x)).unflatten(-1, (heads, -1)) * (dim // heads) ** -0.5
        bias = attention.bias(anchors.features).transpose(2, 3)[:, :, None]
        logits = torch.einsum("brmhd,brahd->brmha", query, key) + bias
        logits = logits.masked_fill(~live[:, :, None, None], -torch.inf)
        weights = torch.cat([(query * attention.null[0]).sum(-1, keepdim=True), logits], dim=-1).softmax(-1)
        mixed = weights[..., :1] * attention.null[1] + torch.einsum("brmha,brahd->brmhd", weights[..., 1:], value)
        return attention.out(mixed.flatten(3))

    ours, theirs = attention(x, anchors, items[ids], tokens), textbook()
    torch.testing.assert_close(ours, theirs)
    inputs = [x, items, *tokens.parameters(), *attention.parameters()]
    grad = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_shared_attention_is_the_same_in_both_ways():
    """The CPU's own function against plain operations, with the gradient of both results."""
    torch.manual_seed(0)
    shapes = (3, 2, 2, 5), (3, 2, 7, 5), (3, 2, 2, 8)
    query, vectors, bias = (torch.randn(shape).requires_grad_() for shape in shapes)
    outside = tuple(part.double() for part in (query, vectors, bias))  # float64 takes the plain way
    ours, plain = attend_shared(query, vectors, bias), attend_shared(*outside)
    grads = tuple(torch.randn_like(part) for part in ours)
    own = torch.autograd.grad(ours, (query, vectors, bias), grads)
    other = torch.autograd.grad(plain, (query, vectors, bias), tuple(part.double() for part in grads))
    for a, b in zip((*ours, *own), (*plain, *other), strict=True):
        torch.testing.assert_close(a, b.float())


@pytest.mark.parametrize("changes", [{}, {"stages": ["click", "cart"], "ranking": True, "reasoning_steps": 1}])
def test_padding_between_requests_is_left_out(changes, prepared_run, monkeypatch):
    """Requests' states are those of attention over the whole grid of sequences and requests."""
    run = prepared_run
    config = replace(run.config, model=replace(run.config.model, dropout=0.0, item_dropout=0.0, **changes))
    windows = make_windows(run.dataset.offsets, run.dataset.known_lengths(TRAIN), 10, 5)
    collator = Collator(config.model, QueryFeatures.build(run.dataset.query_texts, run.ids.encoder))
    batch = collator.windows(run.dataset, windows, np.arange(0, len(windows), 7)[:12], True, True)
    network = new_network(config, run.dataset, run.ids, generate=False).train()
    fill_anchors(network.anchor_tables, run.dataset, TRAIN)
    live = batch.targets >= 0
    assert 0 < len(batch.slots()) == int(live.sum()) < live.numel()
    ours = network.encode(batch).requests[live]
    monkeypatch.setattr(Batch, "slots", lambda batch, searches=False: None)
    torch.testing.assert_close(ours, network.encode(batch).requests[live])
