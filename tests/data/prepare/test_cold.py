"""Items held out of training entirely: no event of theirs is left to learn from, and all that ask for them are."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from genrec.config.load import load_config
from genrec.data.dataset import TEST, TRAIN, VALID
from genrec.data.prepare.cold import cold_items
from genrec.errors import UserError
from genrec.evaluation.protocol_rows import run_protocol
from genrec.objectives.retrieval import draw_candidates
from genrec.pipeline.stages import stage_train
from genrec.runs.run import Run


def log(users: int = 40, items: int = 30) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "user_id": f"u{user}",
            "item_id": f"i{item}",
            "timestamp": position,
            "action": "click" if position % 2 else "view",
        }
        for user in range(users)
        for position, item in enumerate(rng.permutation(items)[: rng.integers(6, 12)])
    ]


def rows(data) -> list[tuple]:
    owner = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    names = data.item_table["item_id"].gather(np.asarray(data.items).astype(np.int64))
    columns = (
        data.user_ids.gather(owner),
        names,
        *(np.asarray(getattr(data, name)) for name in ("timestamps", "actions", "split")),
    )
    return list(
        zip(
            *(column.to_list() if isinstance(column, pl.Series) else column.tolist() for column in columns), strict=True
        )
    )


def test_only_their_training_events_are_gone(prepare_table):
    events = log()
    whole, remaining_events = (
        prepare_table(events),
        prepare_table(events, None, "split.cold_share=0.3", "training.refit=false"),
    )
    names = remaining_events.item_table["item_id"]
    cold = set(names.filter(pl.Series(cold_items(names, 0.3, 42))))
    assert 3 < len(cold) < 20
    assert rows(remaining_events) == [row for row in rows(whole) if row[1] not in cold or row[4] != TRAIN]
    counts = remaining_events.item_counts(TRAIN)
    for split in ("valid", "test"):
        targets = remaining_events.requests(split).targets
        assert (counts[targets] == 0).any() and (counts[targets] > 0).any()
        assert np.array_equal(remaining_events.requests(split).times, whole.requests(split).times)
    assert remaining_events.info["train_events"] == int((np.asarray(remaining_events.split) == TRAIN).sum())
    assert {VALID, TEST} <= set(np.asarray(remaining_events.split).tolist())


def test_who_would_be_left_with_nothing_is_said(prepare_table):
    events = [*log(), {"user_id": "lonely", "item_id": "i1", "timestamp": 0, "action": "view"}]
    with pytest.raises(UserError, match=r"split\.cold_share: 1 users"):
        prepare_table(events, None, "split.cold_share=1.0", "training.refit=false")
    with pytest.raises(UserError, match=r"training\.refit=false"):
        load_config(None, ["split.cold_share=0.1"])


def test_which_items_are_cold_depends_on_name_and_seed_alone():
    names = pl.Series([f"item {n}" for n in range(3000)])
    cold = cold_items(names, 0.2, 1)
    assert abs(cold.mean() - 0.2) < 0.03 and np.array_equal(cold_items(names.reverse(), 0.2, 1)[::-1], cold)
    assert not np.array_equal(cold_items(names, 0.2, 2), cold)


def test_negatives_are_drawn_from_known_items():
    known, targets = torch.tensor([1, 3, 5, 7, 9]), torch.tensor([3, 9])
    assert draw_candidates(5, targets, 5, among=known).ids.sort().values.tolist() == known.tolist()
    drawn = draw_candidates(5, targets, 2, torch.Generator().manual_seed(0), known)
    assert set(drawn.ids.tolist()) <= set(known.tolist()) and drawn.index_of(targets).tolist() == [0, 1]


def test_the_protocol_asks_for_them(tmp_path, tiny_overrides):
    more = (
        "name=cold",
        "data.options.search_share=0",
        "queries.synthetic=[category]",
        "split.cold_share=0.2",
        "training.refit=false",
        "evaluation.baselines=[]",
        "training.epochs=1",
        "training.decoder_epochs=1",
        "data.options.n_events=1500",
        "data.min_user_events=6",
    )
    run = Run.create(None, tiny_overrides(tmp_path, *more))
    stage_train(run)
    data, network = run.dataset, run.ranker().generator.network
    unseen = data.item_counts(TRAIN) == 0
    ids = network.item_encoder.ids.weight.detach().numpy()
    assert unseen.any() and (ids[unseen] == 0).all() and (ids[~unseen] != 0).any(1).all()
    assert data.impressions is None or not unseen[data.impressions["item"].to_numpy()].any()
    tables = run_protocol(run, "cold-items", "valid")
    assert [one.title for one in tables] == ["Cold items: recommendation", "Cold items: search (category)"]
    expected = int(unseen[data.requests("valid").targets].sum())
    assert {len(values["recall@10"]) for values in tables[0].values.values()} == {expected}
    assert {"genrec, retrieval alone", "genrec, generation alone", "text of the last event"} <= tables[0].values.keys()
