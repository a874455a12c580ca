"""Windows and batches against the log itself, event by event."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN, VALID, Requests
from genrec.data.sequences import make_windows
from genrec.model.collate import Collator, request_batches
from genrec.model.query_features import QueryFeatures
from genrec.text.query_tokens import WORD_BUCKETS
from genrec.training.fit import fill_anchors, new_network


@pytest.mark.parametrize("max_length", [1, 2, 5, 10])
@pytest.mark.parametrize("stride", [1, 3, 10, 50])
def test_windows_predict_every_event_once_with_short_contexts(max_length, stride):
    totals = np.array([0, 1, 2, 3, 5, 6, 10, 11, 12, 13, 27, 0, 40])
    lengths = np.array([0, 1, 1, 3, 4, 6, 10, 11, 12, 13, 25, 0, 40])  # what is known is less than what is there
    offsets = np.concatenate([[0], np.cumsum(totals)])
    windows = make_windows(offsets, lengths, max_length, stride)
    predicted = []
    for start, first, stop in zip(windows.start, windows.first, windows.stop, strict=True):
        user = np.searchsorted(offsets, start, side="right") - 1
        assert offsets[user] <= start <= first < stop <= offsets[user] + lengths[user]
        for event in range(first, stop):
            assert event - start <= max_length
            assert event == offsets[user] or event > start, (
                "an event other than a user's first is predicted from nothing"
            )
            predicted.append(event)
    expected = [event for user, length in enumerate(lengths) for event in range(offsets[user], offsets[user] + length)]
    assert sorted(predicted) == expected


def test_a_training_batch_names_what_its_users_chose_later(run, collator):
    data, max_length = run.dataset, run.config.model.max_length
    lengths = data.known_lengths(TRAIN)
    windows = make_windows(data.offsets, lengths, max_length, 1)
    rows = np.arange(0, len(windows), 7)[:40]
    batch = collator.windows(data, windows, rows, True, True)
    assert (batch.later_items >= 0).any()
    for row, window in enumerate(rows):
        user = np.searchsorted(data.offsets, windows.start[window], side="right") - 1
        end = data.offsets[user] + lengths[user]
        later = np.asarray(data.items)[windows.stop[window] : min(end, windows.stop[window] + max_length)]
        actual = batch.later_items[row]
        assert actual[actual >= 0].tolist() == later.tolist()


def test_short_sequences_need_one_window():
    windows = make_windows(np.array([0, 11]), np.array([11]), 10, 3)
    assert (windows.start.tolist(), windows.first.tolist(), windows.stop.tolist()) == ([0], [0], [11])


@pytest.fixture(scope="module", params=["logged", "synthetic"])
def run(request, prepared_run, synthetic_run):
    return prepared_run if request.param == "logged" else synthetic_run


@pytest.fixture(scope="module")
def collator(run):
    return Collator(run.config.model, QueryFeatures.build(run.dataset.query_texts, run.ids.encoder))


def table_ids(batch, features: QueryFeatures) -> list[int]:
    """The dataset's query id of each entry of the batch's own table, found by its features alone."""
    ids = [-1]
    for row in range(len(batch.query_text)):
        same = np.flatnonzero((features.text == batch.query_text[row].numpy()).all(1))
        bounds = [*batch.query_offsets.tolist(), len(batch.query_words)]
        words = batch.query_words[bounds[row] : bounds[row + 1]].tolist()
        ids.append(
            next(
                query
                for query in same
                if features.words[features.offsets[query] : features.offsets[query + 1]].tolist() == words
            )
        )
    return ids


@pytest.mark.parametrize("recommend_searches", [False, True])
def test_training_batches_hold_what_the_log_says(run, collator, recommend_searches):
    data, model = run.dataset, run.config.model
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), model.max_length, 5)
    rows = np.random.default_rng(0).permutation(len(windows))[:40]
    batch = collator.windows(data, windows, rows, recommend_searches, True)
    ids = table_ids(batch, collator.features)
    searches = 0
    for position, row in enumerate(rows):
        start, first, stop = int(windows.start[row]), int(windows.first[row]), int(windows.stop[row])
        context = slice(start, stop - 1)
        length = stop - 1 - start
        assert batch.items[position, :length].tolist() == data.items[context].tolist()
        assert batch.actions[position, :length].tolist() == data.actions[context].tolist()
        assert [ids[query] for query in batch.queries[position, :length].tolist()] == data.queries[context].tolist()
        assert (batch.queries[position, length:] == 0).all()
        days = (data.timestamps[context] - data.timestamps[start]) / model.time_bucket
        np.testing.assert_allclose(batch.times[position, :length], days, rtol=1e-6)
        expected = []
        for event in range(first, stop):
            query = int(data.queries[event])
            time = (data.timestamps[max(event - 1, start)] - data.timestamps[start]) / model.time_bucket
            if event > start and (recommend_searches or query < 0):
                expected.append((event - start, int(data.items[event]), -1, round(float(time), 3)))
            if query >= 0:
                expected.append((event - start, int(data.items[event]), query, round(float(time), 3)))
                searches += 1
        live = batch.targets[position] >= 0
        actual = zip(
            batch.positions[position][live].tolist(), batch.targets[position][live].tolist(),
            [ids[query] for query in batch.request_queries[position][live].tolist()],
            [round(time, 3) for time in batch.request_times[position][live].tolist()], strict=True,
        )  # fmt: skip
        assert sorted(actual) == sorted(expected)
    assert searches > 0


def test_without_searches_no_request_has_a_query(run, collator):
    data = run.dataset
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    batch = collator.windows(data, windows, np.arange(10), True, False)
    assert (batch.request_queries == 0).all() and (batch.queries > 0).any()


def test_a_search_does_not_find_its_own_query_in_its_context(prepare_table, prepared_run):
    """Every event has a query of its own, so any query in sight must be that of an earlier event."""
    events = [
        {"user_id": f"u{u}", "item_id": f"i{(u * 3 + e) % 9}", "timestamp": e, "query": f"q{u} e{e}"}
        for u in range(4)
        for e in range(14)
    ]
    data = prepare_table(events)
    features = QueryFeatures.build(data.query_texts, prepared_run.ids.encoder)
    collator = Collator(prepared_run.config.model, features)
    windows = make_windows(data.offsets, data.known_lengths(VALID), 10, 4)
    batch = collator.windows(data, windows, np.arange(len(windows)), False, True)
    own, seen = batch.request_queries, batch.queries
    visible = torch.arange(seen.shape[1]) < batch.positions[..., None]
    live = batch.targets >= 0
    assert (own[live] > 0).all() and visible[live].any()
    assert not ((seen[:, None] == own[..., None]) & visible & live[..., None]).any()
    assert (batch.query_words < WORD_BUCKETS).sum() == 2 * len(batch.query_text)
    requests = data.requests("test", "logged")
    batch = collator.requests(requests)
    assert not (batch.queries == batch.request_queries).any()


def test_request_batches_equal_windows_of_the_same_history(run, collator, network):
    """The training road and the answering road encode one history alike."""
    if (
        run.config.name == "synthetic"
    ):  # text vectors and actions of another log: any network fitting its shapes will do
        network = new_network(run.config, run.dataset, run.ids, generate=False).eval()
    assert_requests_equal_windows(network, run.dataset, collator)


def test_anchors_of_searches_alone_leave_recommendations_as_they_are(run, collator):
    """Without anchors of events, who has no query attends to nothing, alone or beside searches."""
    config = replace(run.config, model=replace(run.config.model, anchors=0, query_anchors=True))
    network = new_network(config, run.dataset, run.ids, generate=False).eval()
    for attention in (network.early_anchors, network.late_anchors):  # zero at first: no request would see its anchors
        torch.nn.init.normal_(attention.out.weight, std=0.2)
        torch.nn.init.normal_(attention.null, std=0.2)
    fill_anchors(network.anchor_tables, run.dataset, TRAIN)
    assert_requests_equal_windows(network, run.dataset, collator)
    plain = new_network(replace(config, model=replace(config.model, query_anchors=False)), run.dataset, run.ids, False)
    plain.load_state_dict(network.state_dict(), strict=False)
    requests = run.dataset.requests("valid")
    with torch.inference_mode():
        for _, chunk, batch in request_batches(requests, collator, 64):
            search = torch.from_numpy(chunk.request_queries >= 0)
            ours, theirs = (one.encode(batch).requests[:, 0] for one in (network, plain.eval()))
            torch.testing.assert_close(ours[~search], theirs[~search])
            assert not search.any() or not torch.allclose(ours[search], theirs[search], atol=1e-2)


def assert_requests_equal_windows(network, data, collator) -> None:
    """Requests of training windows and the same requests asked one by one have the same vectors."""
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    rows = np.flatnonzero((windows.first == windows.start) & (windows.stop - windows.start > 2))[:12]
    batch = collator.windows(data, windows, rows, True, True)
    compared = 0
    with torch.inference_mode():
        encoded = network.encode(batch).requests
        row, column = (batch.targets >= 0).nonzero(as_tuple=True)
        events = windows.start[rows][row.numpy()] + batch.positions[row, column].numpy()
        requested = np.where(batch.request_queries[row, column].numpy() > 0, data.queries[events], -1).astype(np.int64)
        requests = data.requests_before(events, requested)
        assert np.array_equal(requests.targets, batch.targets[row, column].numpy())
        for indices, _, chunk in request_batches(requests, collator, 16):
            torch.testing.assert_close(
                network.encode(chunk).requests[:, 0], encoded[row[indices], column[indices]], rtol=0, atol=1e-5
            )
            compared += len(indices)
    assert compared == len(events) > 50 and (requested >= 0).any()


def test_request_batches_cut_long_histories_to_the_newest_events(run, collator):
    data = run.dataset
    requests = data.requests("test")
    batch = collator.requests(requests)
    for row in range(len(requests)):
        history = requests.items[requests.offsets[row] : requests.offsets[row + 1]][-10:]
        assert batch.items[row, : len(history)].tolist() == history.tolist() and batch.positions[row, 0] == len(history)
        event = data.heldout_events("test")[row]
        assert (
            requests.items[requests.offsets[row + 1] - 1] == data.items[event - 1]
            and requests.targets[row] == data.items[event]
        )


def test_chunks_cover_all_requests_once(run, collator):
    requests = run.dataset.requests("test")
    rows = np.concatenate([indices for indices, _, _ in request_batches(requests, collator, 7)])
    assert np.array_equal(np.sort(rows), np.arange(len(requests)))
    for indices, chunk, batch in request_batches(requests, collator, 7):
        assert np.array_equal(chunk.targets, requests.targets[indices]) and np.array_equal(
            batch.targets[:, 0].numpy(), chunk.targets
        )


def test_requests_without_any_history(run, collator):
    none = np.zeros(0, np.int64)
    requests = Requests(
        np.zeros(3, np.int64),
        none,
        none,
        none,
        none,
        np.array([5, 9]),
        np.array([-1, 0]),
        np.array([-1, -1]),
        run.dataset.query_texts,
    )
    batch = collator.requests(requests)
    assert len(batch.items) == 2 and batch.positions.tolist() == [[0], [0]] and (batch.request_times == 0).all()
    assert batch.request_queries.tolist() == [[0], [1]]
    mixed = replace(run.dataset.requests("test").take(np.array([0])), times=np.array([7]))
    assert collator.requests(mixed).positions[0, 0] > 0
