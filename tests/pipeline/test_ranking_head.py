"""From a config to ranked answers with the ranking head, with and without a log that says what was shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.evaluation.protocol_rows import run_protocol
from genrec.inference.bundle import export
from genrec.inference.recommender import Recommender
from genrec.pipeline.stages import stage_train
from genrec.runs.run import Run

LEAN = [
    "training.refit=false",
    "evaluation.baselines=[popularity]",
    "training.epochs=1",
    "training.decoder_epochs=1",
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, tiny_overrides) -> Run:
    """No feedback is read: the target among random and mined items, steps by codes, a share of hard InfoNCE."""
    more = [
        "name=drawn",
        "model.ranking=true",
        "model.reasoning_steps=2",
        "training.progressive=codes",
        "training.infonce_easy=0.6",
    ]
    run = Run.create(None, tiny_overrides(tmp_path_factory.mktemp("runs"), *LEAN, *more))
    stage_train(run)
    return run


@pytest.fixture(scope="module")
def visible(tmp_path_factory, tiny_overrides) -> Run:
    """What was shown is learnt, by stage: in the ranking head and in the steps."""
    more = [
        "name=shown",
        "model.ranking=true",
        "model.stages=[click,cart]",
        "model.reasoning_steps=1",
        "training.progressive=actions",
        "split.kind=global-time",
        "training.infonce_easy=0.7",
    ]
    run = Run.create(None, tiny_overrides(tmp_path_factory.mktemp("runs"), *LEAN, *more))
    stage_train(run)
    return run


def test_every_part_is_learnt(drawn, visible):
    for run in (drawn, visible):
        curves = json.loads((run.folder / "model_backbone" / "curves.json").read_text())
        assert {"train/progress", "train/rank", "train/retrieve"} <= set(curves[-1])
        assert all(np.isfinite(value) for row in curves for value in row.values() if value is not None)
    assert {"val/click_auc", "val/cart_auc"} <= set(curves[-1])


def test_the_ranking_head_ranks_proposals_and_given_candidates(drawn, tmp_path):
    export(drawn.folder, tmp_path / "bundle", programs=False)
    model, bundle = Recommender.load(drawn.folder), Recommender.load(tmp_path / "bundle")
    user = str(drawn.dataset.user_ids[3])
    lists = {
        mode: [answer.item_id for answer in model.recommend(user, k=20, mode=mode)]
        for mode in ("rank", "fused", "retrieve")
    }
    assert len({tuple(one) for one in lists.values()}) == 3
    scores = [answer.score for answer in model.recommend(user, k=20, mode="rank")]
    assert scores == sorted(scores, reverse=True)
    candidates = [str(item) for item in drawn.dataset.item_table["item_id"][:6]]
    ranked = model.rank(candidates, user=user, mode="rank")
    assert sorted(answer.item_id for answer in ranked) == sorted(candidates)
    assert bundle.rank(candidates, user=user, mode="rank") == ranked and bundle.recommend(
        user, k=20
    ) == model.recommend(user, k=20)


def test_a_model_without_the_head_says_so(trained_run):
    with pytest.raises(UserError, match="'rank' is not one of fused, retrieve, generate"):
        Recommender.load(trained_run.folder).recommend(history=[], mode="rank")


def test_the_ranking_protocol(visible, genrec):
    code, out, err = genrec("evaluate", visible.folder, "--protocol", "ranking")
    assert code == 0, err
    actual = json.loads((visible.folder / "results_ranking" / "tables.json").read_text())["tables"][0]
    models = [row["model"] for row in actual["rows"]]
    assert (
        models[0] == "genrec, ranking head"
        and any("logistic" in name for name in models)
        and any("DIN" in name for name in models)
    )
    for row in actual["rows"]:
        assert set(row["metrics"]) == {"click_auc", "click_gauc", "cart_auc", "cart_gauc"}
        for name, value in row["metrics"].items():
            low, high = row["intervals"][name]
            assert 0 <= low <= value <= high <= 1 or not np.isfinite(value)
    assert len(actual["comparisons"]) == 4 * (len(models) - 1) and "GAUC" in out


def test_the_protocol_needs_a_head_with_stages(drawn, trained_run):
    for run in (drawn, trained_run):
        with pytest.raises(UserError, match="no ranking head with stages"):
            run_protocol(run, "ranking")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.progressive=codes"], "model.reasoning_steps above 0"),
        (["training.progressive=actions", "model.reasoning_steps=1"], "name the stages"),
        (["model.stages=[click]"], "nothing learns them"),
        (["model.ranking=true", "model.stages=[click,love]"], "no action 'love'; it has"),
    ],
)
def test_settings_that_do_not_fit_are_named(overrides, words, tmp_path, tiny_overrides, prepared_run):
    with pytest.raises(UserError, match=words):
        run = Run.create(None, tiny_overrides(tmp_path, *overrides))
        from genrec.training.fit import FitPlan, fit

        fit(run.config, prepared_run.dataset, prepared_run.ids, tmp_path / "model", FitPlan(generate=False))
