"""The taste: what it learns, histories of any length, catalogues that grew, and the generated lists it orders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from genrec.artifacts.folders import read_json
from genrec.data.dataset import TRAIN
from genrec.evaluation.metrics import auc
from genrec.generation.options import SearchOptions
from genrec.inference.recommender import Recommender
from genrec.model.taste import Taste
from genrec.preference import stage as stage_module
from genrec.preference.acceptance import GateDecision
from genrec.preference.beam_reward import BeamAgreement
from genrec.preference.stage import MODEL, Stage, stage_prefer
from genrec.preference.taste_fit import fit_taste

FAST = ("preference.max_requests=400",)


def test_it_tells_clicks_of_a_slate_apart_and_follows_its_seed(trained_run):
    stage = Stage(trained_run, "key")
    text, feedback = stage.policy.text, stage.feedback
    train = feedback.take(np.flatnonzero((feedback.split == TRAIN) & (feedback.queries < 0)))
    train = train.take(np.flatnonzero(train.history_lengths > 0))
    items, stages = train.padded()
    odds, live = stage.taste(text, train.requests, torch.from_numpy(items)).numpy(), items >= 0
    assert auc(odds[live], stages[live] >= stage.levels.click) > 0.65  # a hundred people: it knows its own slates
    one, two, other = (fit_taste(text, train, stage.levels.click, seed) for seed in (1, 1, 2))
    assert torch.equal(one.person.weight, two.person.weight) and not torch.equal(one.person.weight, other.person.weight)


def test_a_history_is_summed_alike_in_half_precision(trained_run):
    requests = trained_run.dataset.requests("valid").take(np.arange(12))
    cut = requests.offsets.copy()
    cut[1:4] = cut[4]  # the first has all events of four, the next three none
    requests = dataclasses.replace(requests, offsets=cut)
    text = torch.randn(trained_run.dataset.n_items, 6).half()
    for half, whole in zip(Taste._history(text, requests), Taste._history(text.float(), requests), strict=True):
        torch.testing.assert_close(half, whole, rtol=1e-4, atol=1e-4)
    assert not Taste._history(text.float(), requests)[0][1:4].any()


def test_histories_and_items_by_hand(trained_run):
    torch.manual_seed(0)
    data = trained_run.dataset
    text = torch.nn.functional.normalize(torch.randn(data.n_items + 2, 12), dim=-1)
    taste = Taste(data.n_items, 12)
    torch.nn.init.normal_(taste.own)
    users = np.array([3, 7, 9])
    stops = np.asarray(data.offsets)[users] + np.array([4, 0, 1])  # of one nothing is known
    none = np.full(3, -1)
    requests = data.requests_at(users, stops, np.full(3, 2**40), none, none, [])
    ids = torch.tensor([[5, -1, data.n_items + 1], [5, 6, 7], [0, 1, 2]])
    actual = taste(text, requests, ids)
    for row in range(3):
        history = text[torch.from_numpy(requests.items[requests.offsets[row] : requests.offsets[row + 1]].astype(int))]
        profile = history.sum(0) / (len(history) + 3.0)
        for column, item in enumerate(ids[row].tolist()):
            if item < 0:
                continue
            expected = 10 * (taste.item(text[item]) @ taste.person(profile)) + taste.level(text[item])[0]
            if len(history):
                expected = expected + taste.last(text[item]) @ taste.last(history[-1])
            if item < data.n_items:
                expected = expected + taste.own[item]
            torch.testing.assert_close(actual[row, column], expected, rtol=1e-4, atol=1e-5)
    assert (taste(text, requests, ids, torch.arange(3)) == actual).all()  # the slot has no weight yet


def test_a_log_without_propensities_is_refused_what_only_exposure_would_excuse(copied_run, monkeypatch):
    """Beyond any doubt too strong a factor: the log's own recall falls, and nothing is left behind."""
    monkeypatch.setattr(BeamAgreement, "fault", None)
    run = copied_run(*FAST, "preference.phases=[taste]", "preference.strengths=[30]")
    vars(run.dataset)["impressions"] = run.dataset.impressions.drop("propensity")
    before = run.ranker().rank(requests := run.dataset.requests("valid"), SearchOptions(10, ("generate",)))["generate"]
    decision = stage_prefer(run)
    assert not decision.kept and any(reason.startswith("recall fell") for reason in decision.reasons), decision
    assert not any("exposure" in row.name for row in decision.rows)
    assert not (run.folder / MODEL).exists() and run.fitted == ["train", "train+valid"]
    np.testing.assert_array_equal(
        run.ranker().rank(requests, SearchOptions(10, ("generate",)))["generate"].ids, before.ids
    )


def test_a_wrong_taste_is_refused_by_recall_where_no_impression_can_judge_it(copied_run, monkeypatch):
    right = Taste.log_chance
    monkeypatch.setattr(Taste, "log_chance", lambda self, *inputs: -right(self, *inputs))
    run = copied_run(*FAST, "preference.phases=[taste]", "preference.strengths=[30]")
    run.dataset.__dict__["impressions"] = None
    decision = stage_prefer(run)
    assert {row.name for row in decision.rows}.isdisjoint({"auc", "gauc", "reward_ndcg"})
    assert not decision.kept and any(reason.startswith("recall fell") for reason in decision.reasons), decision
    assert not (run.folder / MODEL).exists()
    assert "beam" not in read_json(run.folder / "preference" / "report.json")["frontier"][0]


@pytest.mark.parametrize("kept", [True, False])
def test_answers_of_the_preferred_fit_are_in_its_order(copied_run, monkeypatch, kept):
    monkeypatch.setattr(BeamAgreement, "fault", None)  # a hundred people teach no taste worth having
    monkeypatch.setattr(stage_module, "decide", lambda *_: GateDecision(kept, ["so it is"], []))
    run = copied_run(*FAST, "preference.phases=[taste]", "preference.strengths=[4]")
    assert stage_prefer(run).kept == kept
    report = read_json(run.folder / "preference" / "report.json")
    assert report["frontier"][0]["strength"] == 4 and not report["curves"]
    assert (run.folder / MODEL).exists() == kept
    if not kept:
        return
    requests, options = run.dataset.requests("valid").take(np.arange(40)), SearchOptions(10, ("generate", "fused"))
    plain, preferred = run.ranker("train"), run.ranker("preferred")
    taste = preferred.generator.network.taste
    assert taste is not None and float(taste.strength) == 4 and plain.generator.network.taste is None
    before, after = plain.rank(requests, options), preferred.rank(requests, options)
    np.testing.assert_array_equal(before["fused"].ids, after["fused"].ids)
    assert (before["generate"].ids != after["generate"].ids).any() and not after["generate"].n_proven.any()
    wide = plain.rank(requests, SearchOptions(run.config.decoding.beam, ("generate",)))["generate"]
    ids, scores = torch.from_numpy(wide.ids), torch.from_numpy(wide.scores)
    text = run.ids.catalogue.text
    with_factor = scores + 4 * torch.nn.functional.logsigmoid(taste(text, requests, ids))
    expected = ids.gather(1, with_factor.sort(dim=1, descending=True, stable=True)[1])[:, :10]
    np.testing.assert_array_equal(after["generate"].ids, expected.numpy())
    model = Recommender(run, "preferred")
    model.add_items([{"item_id": "new", "title": "a new thing"}])
    assert len(model.recommend(user="u000001", k=5, mode="generate")) == 5
