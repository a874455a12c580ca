"""What a request must not see: later events, other requests, padding, and its own time unless that is allowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.data.sequences import make_windows
from genrec.model.batch import Batch
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures

EXACT = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def features(prepared_run):
    return QueryFeatures.build(prepared_run.dataset.query_texts, prepared_run.ids.encoder)


@pytest.fixture(scope="module")
def batch(prepared_run, features) -> Batch:
    """Rows of ten events with a request at every position."""
    data = prepared_run.dataset
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    long_rows = np.flatnonzero(windows.stop - windows.start == 11)[:6]
    return Collator(prepared_run.config.model, features).windows(
        data, windows, long_rows, recommend_searches=True, searches=True
    )


def answers(network, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What leaves the network for each request.

    Retrieval vectors and the decoder's states over the first two levels.
    """
    with torch.inference_mode():
        encoded = network.encode(batch)
        trie = network.catalogue.trie
        walk = torch.tensor([0, int(trie.child_start[0])]).expand(*batch.positions.shape, -1)
        vectors = network.decoder.node_vectors(trie, encoded.items)
        return network.retrieval_vectors(encoded.requests), network.decoder.hidden(
            network.decoder_memory(encoded), vectors, walk
        )[0]


def other(values: torch.Tensor, size: int) -> torch.Tensor:
    return (values + 1) % size


def perturb(batch: Batch, network, what: str, position: int) -> Batch:
    values = getattr(batch, what).clone()
    if what == "times":
        values[:, position] += 1000.0
    else:
        size = {
            "items": network.catalogue.n_items,
            "actions": network.actions.num_embeddings,
            "queries": len(batch.query_text) + 1,
        }[what]
        values[:, position] = other(values[:, position], size)
    return replace(batch, **{what: values})


@pytest.mark.parametrize("what", ["items", "actions", "times", "queries"])
@pytest.mark.parametrize("position", [0, 4, 8])
def test_requests_see_earlier_events_and_no_later_ones(network, batch, what, position):
    before, after = answers(network, batch), answers(network, perturb(batch, network, what, position))
    live = batch.targets >= 0
    blind, sees = live & (batch.positions <= position), live & (batch.positions > position)
    assert (position == 0 or blind.any()) and sees.any()
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new[blind], old[blind], **EXACT)
        assert ((new - old).flatten(2).abs().amax(-1)[sees] > 1e-6).all(), f"{what} of an earlier event has no effect"


def test_requests_do_not_see_each_other(network, batch):
    changed = replace(
        batch,
        request_queries=batch.request_queries.index_fill(1, torch.tensor([0]), 1),
        request_times=batch.request_times.index_add(
            1, torch.tensor([0]), torch.full((len(batch.items), 1), 500.0, dtype=batch.request_times.dtype)
        ),
        positions=batch.positions.index_fill(1, torch.tensor([0]), 3),
    )
    for old, new in zip(answers(network, batch), answers(network, changed), strict=True):
        torch.testing.assert_close(new[:, 1:], old[:, 1:], **EXACT)
        assert (new[:, 0] - old[:, 0]).abs().max() > 1e-4


def test_targets_are_no_input(network, batch):
    for old, new in zip(
        answers(network, batch), answers(network, replace(batch, targets=batch.targets.clamp(max=0))), strict=True
    ):
        assert torch.equal(old, new)


@pytest.mark.parametrize("allowed", [False, True])
def test_the_requests_own_time(network, prepared_run, features, allowed):
    requests = prepared_run.dataset.requests("test")
    collator = Collator(replace(prepared_run.config.model, request_time=allowed), features)
    later = replace(requests, times=requests.times + 30 * 86_400)
    old, new = (answers(network, collator.requests(requested))[0] for requested in (requests, later))
    assert torch.equal(old, new) is not allowed


@pytest.mark.parametrize("allowed", [False, True])
def test_the_time_of_a_training_target(network, prepared_run, features, allowed):
    """The last event of a window is only a target: its time may matter only where the request's time may be read."""
    data = prepared_run.dataset
    config = replace(prepared_run.config.model, request_time=allowed)
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    rows = np.flatnonzero(windows.first == windows.start)[:8]  # one window a user: what is moved is nobody's context
    moved = _Copy(data)
    moved.timestamps[windows.stop[rows] - 1] += 30 * 86_400
    old, new = (Collator(config, features).windows(source, windows, rows, True, True) for source in (data, moved))
    last = (old.targets >= 0) & (
        old.positions == torch.from_numpy(windows.stop[rows] - windows.start[rows] - 1)[:, None]
    )
    old, new = (answers(network, one)[0][last] for one in (old, new))
    assert last.any() and torch.equal(old, new) is not allowed


class _Copy:
    """A dataset's arrays, writable."""

    def __init__(self, data):
        for name in ("items", "timestamps", "actions", "queries"):
            setattr(self, name, np.array(getattr(data, name)))


def test_padding_changes_nothing(network, prepared_run, features):
    requests = prepared_run.dataset.requests("valid")
    lengths = np.diff(requests.offsets)
    short, longest = np.flatnonzero((lengths > 0) & (lengths < 6))[:5], int(lengths.argmax())
    collator = Collator(prepared_run.config.model, features)
    together = answers(network, collator.requests(requests.take(np.append(short, longest))))
    for position, row in enumerate(short):
        alone = answers(network, collator.requests(requests.take(np.array([row]))))
        for padded, exact in zip(together, alone, strict=True):
            torch.testing.assert_close(padded[position], exact[0], **EXACT)


def test_what_padding_holds_is_not_read(network, prepared_run, features):
    requests = prepared_run.dataset.requests("valid")
    lengths = np.minimum(np.diff(requests.offsets), 10)
    batch = Collator(prepared_run.config.model, features).requests(requests)
    assert batch.items.shape[1] >= 10 and (lengths < 10).any()
    empty = torch.arange(batch.items.shape[1]) >= torch.from_numpy(lengths)[:, None]
    filled = replace(batch, items=torch.where(empty, 7, batch.items), times=torch.where(empty, 99.0, batch.times))
    for old, new in zip(answers(network, batch), answers(network, filled), strict=True):
        torch.testing.assert_close(new, old, **EXACT)


def test_a_query_moves_its_own_request(network, prepared_run, features):
    requests = prepared_run.dataset.requests("test", "logged")
    collator = Collator(prepared_run.config.model, features)
    silent = replace(requests, request_queries=np.full(len(requests), -1))
    requested, none = (answers(network, collator.requests(one))[0][:, 0] for one in (requests, silent))
    assert ((requested - none).abs().amax(-1) > 1e-4).all()
