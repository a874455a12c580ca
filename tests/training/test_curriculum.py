"""What a training learns from: tasks and stages."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec.artifacts.folders import read_json
from genrec.config.load import load_config
from genrec.data.dataset import TRAIN, VALID
from genrec.errors import UserError
from genrec.model.collate import TEXT_SEARCHES
from genrec.training.batches import EpochLoader
from genrec.training.curriculum import (
    ALIGN,
    BACKBONE_EPOCHS,
    CO_OCCUR,
    PERSONALISE,
    Curriculum,
    epochs_by_size,
    stage_name,
)
from genrec.training.data_module import TrainingData, training_collator, validation_batches
from genrec.training.fit import FitPlan, fit, new_network
from genrec.training.module import TrainingModule


@pytest.fixture(scope="module")
def job(synthetic_run):
    config = copy.deepcopy(synthetic_run.config)
    config.training.epochs, config.training.align_epochs, config.training.cooccur_epochs = 4, 1, 1
    return config, synthetic_run.dataset, synthetic_run.ids


def parts(job, epoch: int, searches: bool = True, recommends: bool = True):
    config, data, ids = job
    curriculum = Curriculum(data, training_collator(data, ids, config), config, TRAIN, searches, recommends)
    return curriculum, list(EpochLoader(curriculum.batches(epoch, 0, 1)))


def train_events(data) -> np.ndarray:
    return np.flatnonzero(np.asarray(data.split) == TRAIN)


def test_the_stage_of_an_epoch(job):
    assert [stage_name(job[0].training, epoch) for epoch in range(4)] == [ALIGN, CO_OCCUR, PERSONALISE, PERSONALISE]


def test_epochs_by_size_fall_from_the_most_to_the_fewest():
    assert [epochs_by_size(events, BACKBONE_EPOCHS) for events in (0, 200_000, 400_000, 1_000_000, 10**9)] == [
        20,
        20,
        10,
        4,
        4,
    ]


def test_epochs_not_given_are_set_by_the_training_split_for_both_fits(job, tmp_path):
    config = copy.deepcopy(job[0])
    config.training.epochs, config.training.align_epochs, config.training.cooccur_epochs = None, 0, 0
    for name, plan in (
        ("model", FitPlan(generate=False, epochs=1)),
        ("model_refit", FitPlan(last=VALID, generate=False, epochs=1)),
    ):
        folder = fit(config, job[1], job[2], tmp_path / name, plan)
        assert read_json(folder / "resolved.json")["training"]["epochs"] == 20
    config.training.align_epochs = 20
    with pytest.raises(UserError, match=r"training\.epochs"):
        fit(config, job[1], job[2], tmp_path / "other", FitPlan(generate=False, epochs=1))


def test_align_asks_every_item_by_its_own_text_without_history(job):
    config, data, ids = job
    curriculum, actual = parts(job, 0)
    items = np.concatenate([part.batch.targets.ravel().numpy() for part in actual])
    counts = np.bincount(items, minlength=data.n_items)
    assert len(set(counts.tolist())) == 1 and counts[0] >= 1 and len(actual) == curriculum.steps
    for part in actual[:3]:
        batch = part.batch
        assert not batch.positions.any() and (batch.request_queries > 0).all() and not batch.request_times.any()
        requested = batch.query_text[batch.request_queries[:, 0] - 1].numpy()
        expected = ids.encoder.encode([_text(data, item) for item in batch.targets[:, 0]])
        np.testing.assert_allclose(requested, expected, atol=1e-5)
        network = new_network(config, data, ids, generate=False).eval()
        other = copy.copy(batch)
        other.items = (batch.items + 1) % data.n_items
        assert torch.equal(network.encode(batch).requests, network.encode(other).requests), (
            "whatever stands in the context is not seen"
        )


def _text(data, item) -> str:
    from genrec.text.encoder import item_texts
    from genrec.text.query_tokens import readable

    return readable(item_texts(data.item_table))[int(item)]


def test_co_occur_sees_one_event_and_searches_see_none(job):
    config, data, _ = job
    curriculum, actual = parts(job, 1)
    recommended, searched = [], []
    for part in actual:
        batch = part.batch
        live, requested = batch.targets >= 0, batch.request_queries > 0
        assert (
            batch.items.shape[1] == 1
            and (batch.positions[live & ~requested] == 1).all()
            and not batch.positions[requested].any()
        )
        row, column = (live & ~requested).nonzero(as_tuple=True)
        recommended += list(zip(batch.items[row, 0].tolist(), batch.targets[row, column].tolist(), strict=True))
        searched += batch.targets[live & requested].tolist()
    events = train_events(data)
    owner = np.searchsorted(data.offsets, events, side="right")
    later = events[1:][owner[1:] == owner[:-1]]
    assert sorted(recommended) == sorted(zip(data.items[later - 1].tolist(), data.items[later].tolist(), strict=True))
    with_query = events[np.asarray(data.queries)[events] >= 0]
    assert sorted(searched) == sorted(data.items[with_query].tolist())
    assert abs(len(actual) - curriculum.steps) <= 1 and len(recommended) + len(searched) == curriculum.counts.sum()


def test_tasks_leave_the_other_requests_out(job):
    for searches, recommends in ((True, True), (True, False), (False, True)):
        curriculum, actual = parts(job, 3, searches, recommends)
        requested = sum(int((part.batch.request_queries > 0).sum()) for part in actual)
        live = sum(int((part.batch.targets >= 0).sum()) for part in actual)
        assert live == curriculum.counts.sum() and (requested > 0) == searches and (live > requested) == recommends


def test_a_search_only_network_is_chosen_by_searches(job):
    config, data, ids = job
    batches = validation_batches(data, training_collator(data, ids, config), 0, 1, recommends=False)
    kinds = [data.requests("valid", kind) for kind in data.query_kinds]
    assert all((one.batch.request_queries > 0).all() for one in batches)
    assert sum(len(one.batch.targets) for one in batches) == sum(map(len, kinds))
    assert all(len(one.seen_rows) == 0 for one in batches), "a search may find an item of the history"


def test_a_network_for_both_is_chosen_by_both(job):
    config, data, ids = job
    batches = validation_batches(data, training_collator(data, ids, config), 0, 1)
    searches = [bool((one.batch.request_queries > 0).any()) for one in batches]
    assert all((one.batch.request_queries > 0).all() == kind for one, kind in zip(batches, searches, strict=True))
    count = {
        kind: sum(len(one.batch.targets) for one, own in zip(batches, searches, strict=True) if own == kind)
        for kind in (True, False)
    }
    available = sum(len(data.requests("valid", kind)) for kind in data.query_kinds)
    assert count[False] == len(data.requests("valid")) and count[True] == min((count[False] + 1) // 2, available)
    assert all((len(one.seen_rows) > 0) != kind for one, kind in zip(batches, searches, strict=True))
    alone = validation_batches(data, training_collator(data, ids, config), 0, 1, searches=False)
    assert all((one.batch.request_queries == 0).all() for one in alone)


def test_errors(prepare_table, synthetic_run, tmp_path):
    for override, message in {
        "training.tasks=[]": "empty list",
        "training.tasks=[ranking]": "'ranking' is not one of",
        "training.epochs=3 training.align_epochs=3": "leaves none",
    }.items():
        with pytest.raises(UserError, match=message):
            load_config(None, override.split())
    data = prepare_table([{"user_id": f"u{u}", "item_id": f"i{e}", "timestamp": e} for u in range(5) for e in range(4)])
    with pytest.raises(UserError, match="no training request"):
        TrainingData(data, synthetic_run.ids, load_config(None), FitPlan(recommends=False))


def test_without_same_time_no_request_sees_its_own_second(prepare_table, job):
    """One purchase written as several events, each with a query of its own, must not give its item away."""
    rows = [
        ("u", 1, "a", "x"),
        ("u", 1, "a", "y"),
        ("u", 2, "b", None),
        ("u", 2, "c", "z"),
        ("u", 2, "c", "x"),
        ("u", 3, "d", "y"),
        ("w", 1, "b", "x"),
        ("w", 5, "a", None),
        ("w", 5, "a", "y"),
        ("w", 6, "e", "z"),
    ]
    names = ("user_id", "timestamp", "item_id", "query")
    data = prepare_table(
        [dict(zip(names, row, strict=True)) | {"split": "train"} for row in rows], None, "split.kind=given"
    )
    config = copy.deepcopy(job[0])
    config.training.align_epochs = config.training.cooccur_epochs = 0
    for strict in (False, True):
        config.training.same_time = not strict
        for searches, recommends in ((True, True), (True, False), (False, True)):
            collator = training_collator(data, job[2], config)
            curriculum = Curriculum(data, collator, config, VALID, searches, recommends)
            batch = curriculum.batches(0, 0, 1)[0].batch
            live = batch.targets >= 0
            assert live.sum() == curriculum.counts.sum()
            row, column = live.nonzero(as_tuple=True)
            for one, two in zip(row.tolist(), column.tolist(), strict=True):
                seen = batch.items[one, : batch.positions[one, two]].tolist()
                if strict:
                    assert int(batch.targets[one, two]) not in seen or len(seen) > 2
            if strict and recommends:
                assert (batch.positions[live & (batch.request_queries == 0)] > 0).all()


def test_items_own_texts_may_ask_for_an_item_nobody_had(job):
    """While they do, a whole softmax runs over all items; then over those with a training event alone, by the ids of
    these."""
    config, data, ids = copy.deepcopy(job[0]), *job[1:]
    config.training.negatives, config.training.align_epochs = 0, 1
    trained = torch.arange(0, data.n_items, 2)
    module = TrainingModule(new_network(config, data, ids, generate=False), config, 1, trained_items=trained)
    module.trainer = SimpleNamespace(global_rank=0, current_epoch=0)

    def batch(*targets):
        table = torch.tensor([targets])
        return SimpleNamespace(targets=table, on_host=SimpleNamespace(targets=table))

    assert module.candidates(batch(1, 3), 0) is None
    module.trainer.current_epoch = 1
    actual = module.candidates(batch(4, 10), 0)
    assert torch.equal(actual.ids, trained) and actual.index_of(trained[[2, 5]]).tolist() == [2, 5]


def test_windows_of_long_histories_overlap_by_half_unless_stated(job):
    """Null is half of the length that is read; every event is predicted once, whichever it is."""
    config, data, ids = copy.deepcopy(job[0]), *job[1:]
    config.model.max_length = 6
    made = {}
    for stride in (None, 3, 1):
        config.training.stride = stride
        windows = Curriculum(data, training_collator(data, ids, config), config, TRAIN, False, True).windows
        made[stride] = len(windows)
        assert (windows.stop - windows.first).sum() == data.known_lengths(TRAIN).sum()
    assert made[None] == made[3] < made[1]


def test_a_part_of_later_searches_asks_by_the_text_of_the_target_where_texts_are_aligned(job):
    config, data, ids = copy.deepcopy(job[0]), job[1], job[2]

    def searched(align: int, chunks: int, epoch: int = 2) -> list[tuple[int, bytes]]:
        config.training.align_epochs, config.training.accumulate = align, chunks
        curriculum = Curriculum(data, training_collator(data, ids, config), config, TRAIN, True, True)
        pairs = []
        for part in EpochLoader(curriculum.batches(epoch, 0, 1)):
            batch = part.batch
            asks = (batch.targets >= 0) & (batch.request_queries > 0)
            texts = batch.query_text[batch.request_queries[asks] - 1].numpy()
            pairs += zip(batch.targets[asks].tolist(), map(bytes, texts), strict=True)
        return sorted(pairs)

    own = [text.tobytes() for text in ids.encoder.encode([_text(data, item) for item in range(data.n_items)])]
    fraction = [np.mean([text == own[item] for item, text in searched(align, 1)]) for align in (0, 1)]
    assert fraction[0] < 0.02 and abs(fraction[1] - TEXT_SEARCHES) < 0.08
    assert searched(1, 1) == searched(1, 3) != searched(1, 1, epoch=3)
