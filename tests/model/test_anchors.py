"""Anchors show what other people did, never what the request's own person was counted for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.data.anchors import AnchorTable, company
from genrec.data.histories import Histories
from genrec.model.anchors import RECENT, AnchorAttention, AnchorTables, AnchorTokens, n_features

N_ITEMS, SHOWN = 15, 4


def tables(histories: Histories) -> AnchorTables:
    counted = company(histories, N_ITEMS, 2 * SHOWN)
    made = AnchorTables(N_ITEMS, SHOWN)
    ids = np.full((N_ITEMS, 2 * SHOWN), -1, np.int32)
    ids[:, :2] = np.stack([(np.arange(N_ITEMS) + 1) % N_ITEMS, (np.arange(N_ITEMS) + 2) % N_ITEMS], 1)
    made.fill(AnchorTable(counted.ids, counted.counts, counted.users), ids)
    return made


@pytest.fixture
def people():
    rng = np.random.default_rng(3)
    return [rng.permutation(N_ITEMS)[: rng.integers(3, 6)] for _ in range(30)]


def shown(anchors, lane: int) -> dict[int, list[float]]:
    """The company anchors of one request: id and event -> features."""
    live = anchors.live[0, lane, : RECENT * SHOWN]
    event = torch.arange(RECENT).repeat_interleave(SHOWN)
    return {(int(e), int(i)): f.tolist() for e, i, f in zip(event[live], anchors.ids[0, lane, : RECENT * SHOWN][live], anchors.features[0, lane, : RECENT * SHOWN][live], strict=True)}


def test_training_sees_the_counts_of_everybody_else(people):
    for person in range(6):
        items = torch.from_numpy(people[person].astype(np.int64))
        positions = torch.arange(1, len(items))[None]
        context, targets = items[None, :-1], items[1:][None]
        mine = tables(Histories.from_lists(people)).choose(context, positions, targets)
        others = tables(Histories.from_lists([row for place, row in enumerate(people) if place != person])).choose(context, positions)
        for lane in range(len(items) - 1):
            ours, theirs = shown(mine, lane), shown(others, lane)
            # Wide tables are cut: what stands at the very end of one may be missing in the other, never what both hold.
            both = ours.keys() & theirs.keys()
            assert len(both) >= max(len(ours), len(theirs)) - 2 and both
            for key in both:
                assert ours[key] == pytest.approx(theirs[key], abs=1e-5)


def test_an_answer_counted_once_by_its_own_person_is_no_anchor():
    histories = Histories.from_lists([[0, 1, 2], [3, 4]])
    made = tables(histories)
    context, positions = torch.tensor([[0, 1]]), torch.tensor([[2]])
    told = made.choose(context, positions)
    assert 2 in told.ids[told.live].tolist()
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
    for lane in range(3):
        alone = made.choose(items, torch.tensor([[lane + 1]]))
        assert torch.equal(alone.ids[:, 0], together.ids[:, lane]) and torch.equal(alone.live[:, 0], together.live[:, lane])


def test_a_request_without_history_and_new_items_have_no_anchors(people):
    made = tables(Histories.from_lists(people))
    assert not made.choose(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)).live.any()
    made.grow(N_ITEMS + 2)
    anchors = made.choose(torch.tensor([[N_ITEMS + 1]]), torch.tensor([[1]]))
    assert not anchors.live.any() and anchors.ids.max() < N_ITEMS + 2


def test_hidden_anchors_have_no_effect(people):
    torch.manual_seed(0)
    made = tables(Histories.from_lists(people))
    items = torch.from_numpy(people[1].astype(np.int64))[None]
    anchors = made.choose(items, torch.tensor([[3]]))
    tokens, attention = AnchorTokens(8, 2, n_features(False)), AnchorAttention(8, 2, 0.0, n_features(False))
    vectors, x = torch.randn(N_ITEMS, 8), torch.randn(1, 1, 2, 8)
    before = attention(x, anchors, *tokens(anchors, vectors))
    other = torch.where(anchors.live, anchors.ids, (anchors.ids + 3) % N_ITEMS)
    anchors.ids = other
    torch.testing.assert_close(attention(x, anchors, *tokens(anchors, vectors)), before)
    anchors.live = torch.zeros_like(anchors.live)
    empty = attention(x, anchors, *tokens(anchors, vectors))
    assert empty.isfinite().all() and (empty - before).abs().max() > 1e-4


def searching(people) -> AnchorTables:
    counted = company(Histories.from_lists(people), N_ITEMS, 2 * SHOWN)
    made = AnchorTables(N_ITEMS, SHOWN, queries=True)
    made.fill(counted, np.full((N_ITEMS, 2 * SHOWN), -1, np.int32))
    return made


def test_a_search_is_shown_what_is_next_to_its_query(people):
    made, text = searching(people), torch.nn.functional.normalize(torch.randn(N_ITEMS, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    items = torch.from_numpy(people[0].astype(np.int64))[None]
    asked = torch.tensor([[0, 1, 2]])
    near = made.near(asked, text[[3, 7]], text)
    anchors = made.choose(items, torch.tensor([[2, 2, 2]]), None, near)
    assert anchors.features.shape[-1] == n_features(True)
    live, ids = anchors.live[0, :, -SHOWN:], anchors.ids[0, :, -SHOWN:]
    assert not live[0].any() and live[1:].any(1).all()  # who asks nothing is shown none
    seen = set(items[0, :2].tolist())
    for lane, item in ((1, 3), (2, 7)):
        shown_ids = ids[lane][live[lane]].tolist()
        assert not seen & set(shown_ids) and (item in seen or item in shown_ids)
        order = [10 * float(text[item] @ text[one]) + float(made.users[one].log1p()) for one in shown_ids]
        assert order == sorted(order, reverse=True)
        likeness = anchors.features[0, lane, -SHOWN:][live[lane]][:, 5]
        assert likeness.tolist() == pytest.approx([float(text[item] @ text[one]) for one in shown_ids], abs=1e-5)
    other = made.choose(items, torch.tensor([[2, 2, 2]]), None, made.near(torch.tensor([[0, 2, 2]]), text[[3, 7]], text))
    for lane, same in ((0, True), (1, False), (2, True)):
        assert torch.equal(other.ids[0, lane], anchors.ids[0, lane]) is same


def test_a_search_in_training_counts_what_others_had(people):
    text = torch.nn.functional.normalize(torch.randn(N_ITEMS, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    for person in range(6):
        items = torch.from_numpy(people[person].astype(np.int64))
        positions, asked = torch.arange(1, len(items))[None], torch.ones(1, len(items) - 1, dtype=torch.long)
        mine, others = searching(people), searching([row for place, row in enumerate(people) if place != person])
        context, targets, query = items[None, :-1], items[1:][None], text[items[-1:]]
        ours = mine.choose(context, positions, targets, mine.near(asked, query, text))
        theirs = others.choose(context, positions, None, others.near(asked, query, text))
        for part in ("ids", "live", "features"):
            torch.testing.assert_close(getattr(ours, part)[:, :, -SHOWN:], getattr(theirs, part)[:, :, -SHOWN:])
