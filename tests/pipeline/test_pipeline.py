"""The whole road on one tiny run: what the table says, what others can recompute, and what the library answers."""

from __future__ import annotations

import copy
import json

import numpy as np
import polars as pl
import pytest

from genrec.cli.doctor import check
from genrec.data.dataset import VALID
from genrec.errors import UserError
from genrec.evaluation.baseline_rows import Baselines
from genrec.evaluation.protocol import evaluate
from genrec.inference.predict import predict_file, write_requests
from genrec.inference.recommender import Answer, Recommender
from genrec.pipeline.stages import stage_evaluate, stage_train
from genrec.ranking.ranker import Ranker
from genrec.runs.run import Run

OURS = {"fused": "genrec, fused", "retrieve": "genrec, retrieval alone", "generate": "genrec, generation alone"}
STACKS = "LightGBM stack, no network", "LightGBM stack, with our retrieval"
RECOMMENDATION = {
    *OURS.values(),
    *(
        "popularity",
        "ItemKNN",
        "EASE^R",
        "implicit ALS",
        "co-occurrence + transitions",
        "SASRec, cross-entropy",
        *STACKS,
    ),
}
SEARCH = {*OURS.values(), "BM25", "dense text", STACKS[0]}


@pytest.fixture(scope="module")
def metrics(trained_run):
    return json.loads((trained_run.folder / "results" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def model(trained_run):
    return Recommender.load(trained_run.folder, "train")


def row(metrics: dict, model: str, kind: str | None, fitted: str) -> dict:
    actual = [r for r in metrics["rows"] if (r["model"], r["query_kind"], r["fitted_on"]) == (model, kind, fitted)]
    assert len(actual) == 1
    return actual[0]


def test_the_table_has_every_row(metrics):
    for fitted in ("train", "train+valid"):
        for kind, expected in ((None, RECOMMENDATION), ("logged", SEARCH)):
            assert {
                r["model"] for r in metrics["rows"] if r["query_kind"] == kind and r["fitted_on"] == fitted
            } == expected
    assert len(metrics["rows"]) == 2 * (len(RECOMMENDATION) + len(SEARCH))
    for one in metrics["rows"]:
        for k in (5, 10, 20):
            assert 0 <= one["metrics"][f"ndcg@{k}"] <= one["metrics"][f"recall@{k}"] <= 1
        assert one["metrics"]["recall@5"] <= one["metrics"]["recall@10"] <= one["metrics"]["recall@20"]
        assert ("raw_recall@10" in one["metrics"]) == (one["query_kind"] is None)
        low, high = one["intervals"]["recall@10"]
        assert low <= one["metrics"]["recall@10"] <= high
    assert metrics["meta"]["split_fingerprint"] and metrics["meta"]["tie_rule"]


def test_the_report_is_on_disk(trained_run):
    folder = trained_run.folder / "results"
    text = (folder / "table.md").read_text()
    assert all(name in text for name in RECOMMENDATION | SEARCH) and "SYNTHETIC" not in text
    assert {"results_recommendation.png", "results_search_logged.png"} <= {path.name for path in folder.iterdir()}


def test_every_folder_is_whole(trained_run):
    names = {finding.name for finding in check(trained_run.folder) if "whole" in finding.text}
    # Other tests share the run and may have left tables of protocols.
    assert {name for name in names if not name.startswith("results_")} == {
        "dataset",
        "semantic_ids",
        "model",
        "model_refit",
        "model_backbone",
        "model_backbone_refit",
        "sasrec",
        "sasrec_refit",
        "candidate_features",
        "baselines",
        "reranker",
        "results",
    }


@pytest.mark.parametrize("fitted", ["train", "train+valid"])
@pytest.mark.parametrize("mode", list(OURS))
@pytest.mark.parametrize("kind", [None, "logged"])
def test_others_can_recompute_our_numbers(trained_run, metrics, tmp_path, mode, kind, fitted):
    write_requests(trained_run.folder, tmp_path, "test", kind)
    written = predict_file(
        trained_run.folder, tmp_path / "requests.parquet", tmp_path / "answers.parquet", 20, mode, fitted, True
    )
    answers, truth = pl.read_parquet(tmp_path / "answers.parquet"), pl.read_parquet(tmp_path / "truth.parquet")
    assert len(answers) == written and answers.columns == ["request_id", "rank", "item_id", "score"]
    assert (
        answers.group_by("request_id")
        .agg(pl.col("rank").sort() == pl.int_range(1, pl.len() + 1))
        .explode("rank")["rank"]
        .all()
    )
    assert answers.select(pl.struct("request_id", "item_id").is_unique().all()).item()
    assert answers.select((pl.col("score").diff().over("request_id") <= 1e-6).all()).item()
    ranks = truth.join(answers, on=["request_id", "item_id"], how="left")["rank"]
    expected = row(metrics, OURS[mode], kind, fitted)["metrics"]
    for k in (5, 10, 20):
        assert (ranks <= k).sum() / len(truth) == pytest.approx(expected[f"recall@{k}"], abs=1e-6)
        gain = pl.select(pl.when(ranks <= k).then(1 / (ranks + 1).log(2)).otherwise(0)).to_series().sum() / len(truth)
        assert gain == pytest.approx(expected[f"ndcg@{k}"], abs=1e-6)
    requests = pl.read_parquet(tmp_path / "requests.parquet")
    assert (requests["query"].null_count() == 0) == (kind is not None) and len(requests) == len(truth)
    seen = requests.select(
        "request_id", pl.col("history").list.eval(pl.element().struct.field("item_id")).alias("item_id")
    ).explode("item_id")
    assert answers.join(seen, on=["request_id", "item_id"]).is_empty(), "an item of the history was recommended"


def test_keeping_what_was_seen(trained_run, metrics, tmp_path):
    write_requests(trained_run.folder, tmp_path, "test", None)
    predict_file(
        trained_run.folder, tmp_path / "requests.parquet", tmp_path / "answers.parquet", 10, "retrieve", "train", False
    )
    answers, truth = pl.read_parquet(tmp_path / "answers.parquet"), pl.read_parquet(tmp_path / "truth.parquet")
    hits = len(truth.join(answers, on=["request_id", "item_id"]))
    assert hits / len(truth) == pytest.approx(
        row(metrics, OURS["retrieve"], None, "train")["metrics"]["raw_recall@10"], abs=1e-6
    )


@pytest.mark.parametrize("mode", list(OURS))
@pytest.mark.parametrize("kind", [None, "logged"])
def test_a_user_id_means_the_users_history(model, trained_run, tmp_path, mode, kind):
    write_requests(trained_run.folder, tmp_path, "test", kind)
    explicit = pl.read_parquet(tmp_path / "requests.parquet")
    data = trained_run.dataset
    events = data.heldout_events("test")
    if kind:
        events = data.heldout_queries.filter(pl.col("event").is_in(events) & (pl.col("kind") == kind))[
            "event"
        ].to_numpy()
    users = data.user_ids[np.searchsorted(data.offsets, events, side="right") - 1]
    by_user = explicit.drop("history").with_columns(users.alias("user_id"))
    answers = []
    for number, table in enumerate((explicit, by_user)):
        table.write_parquet(tmp_path / f"{number}.parquet")
        predict_file(
            trained_run.folder, tmp_path / f"{number}.parquet", tmp_path / f"a{number}.parquet", 10, mode, "train", True
        )
        answers.append(pl.read_parquet(tmp_path / f"a{number}.parquet"))
    assert answers[0].drop("score").equals(answers[1].drop("score"))
    np.testing.assert_allclose(answers[0]["score"], answers[1]["score"], atol=1e-5)


def test_requests_in_any_order_and_company_get_the_same_answers(trained_run, tmp_path):
    write_requests(trained_run.folder, tmp_path, "test", "logged")
    table = pl.read_parquet(tmp_path / "requests.parquet")
    answers = []
    for number, part in enumerate((table, table[::-1], table[3:4])):
        part.write_parquet(tmp_path / f"{number}.parquet")
        predict_file(
            trained_run.folder,
            tmp_path / f"{number}.parquet",
            tmp_path / f"a{number}.parquet",
            5,
            "fused",
            "train",
            True,
        )
        answers.append(pl.read_parquet(tmp_path / f"a{number}.parquet").sort("request_id", "rank").drop("score"))
    assert answers[0].equals(answers[1])
    assert answers[0].filter(pl.col("request_id") == table["request_id"][3]).equals(answers[2])


def test_recommend(model, trained_run):
    user = trained_run.dataset.user_ids[3]
    known = set(trained_run.dataset.item_table["item_id"])
    for mode in OURS:
        answers = model.recommend(user, k=7, mode=mode)
        assert len(answers) == 7 and all(
            isinstance(answer, Answer) and answer.item_id in known and answer.title for answer in answers
        )
        assert len({answer.item_id for answer in answers}) == 7
        assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)
        assert answers == model.recommend(user, k=7, mode=mode)
    assert model.recommend(user) != model.recommend(trained_run.dataset.user_ids[4])


def test_what_was_had_is_left_out_unless_asked_for(model, trained_run):
    data = trained_run.dataset
    histories = data.histories(VALID)
    for user in (0, 7, 20):
        had = set(
            data.item_table["item_id"][
                histories.items[histories.offsets[user] : histories.offsets[user + 1]].astype(np.int64)
            ]
        )
        for mode in OURS:
            everything = {answer.item_id for answer in model.recommend(data.user_ids[user], k=10_000, mode=mode)}
            assert not had & everything and (mode == "fused" or len(everything) == data.n_items - len(had))
            again = {
                answer.item_id
                for answer in model.recommend(data.user_ids[user], k=10_000, mode=mode, exclude_seen=False)
            }
            assert had <= again


def test_an_explicit_history_in_every_form(model, trained_run):
    data = trained_run.dataset
    items = data.item_table["item_id"].to_list()
    plain = model.recommend(history=items[:3])
    assert plain == model.recommend(history=[{"item_id": item} for item in items[:3]])
    assert plain == model.recommend(history=[*items[:2], "never heard of", items[2]])
    assert plain != model.recommend(history=items[3:6])
    newest_last = [{"item_id": item, "timestamp": 1_000_000 * position} for position, item in enumerate(items[:3])]
    assert model.recommend(history=newest_last) == model.recommend(history=newest_last[::-1])
    acted = [event | {"action": data.actions_chain[-1]} for event in newest_last]
    assert model.recommend(history=acted) != model.recommend(history=newest_last)


def test_queries_of_the_history_matter(model, trained_run):
    items = trained_run.dataset.item_table["item_id"].to_list()
    quiet = [{"item_id": item, "timestamp": position} for position, item in enumerate(items[:3])]
    text = trained_run.dataset.query_texts[0]
    searched, invented = ([*quiet[:2], quiet[2] | {"query": query}] for query in (text, f"{text} zzzz"))
    scores = [
        [answer.score for answer in model.recommend(history=history, mode="retrieve")]
        for history in (quiet, searched, invented)
    ]
    assert scores[0] != scores[1] and scores[1] != scores[2]


def test_search(model, trained_run):
    text = trained_run.dataset.query_texts[5]
    for mode in OURS:
        answers = model.search(text, k=5, mode=mode)
        assert len(answers) == 5 and answers == model.search(f"  {text} ", k=5, mode=mode)
        assert answers != model.search(trained_run.dataset.query_texts[9], k=5, mode=mode)
    assert model.search(text, user=trained_run.dataset.user_ids[0]) != model.search(
        text, user=trained_run.dataset.user_ids[1]
    )
    assert model.search("words nobody knows 茶")


def test_nobody_without_history_gets_the_popular_items(model, trained_run):
    counts = trained_run.dataset.item_counts(0)
    places = [trained_run.dataset.item_index[answer.item_id] for answer in model.recommend(k=10)]
    assert sorted(counts[places], reverse=True) == counts[places].tolist() == sorted(counts, reverse=True)[:10]
    assert model.recommend(k=10) == model.recommend(history=[]) == model.recommend(history=["never heard of"])


def test_a_large_k_changes_no_later_answer(trained_run):
    model = Recommender.load(trained_run.folder, "train")
    user = trained_run.dataset.user_ids[5]
    settings = copy.deepcopy(model.run.config)
    for mode in OURS:
        before = model.recommend(user, k=5, mode=mode)
        model.recommend(user, k=10_000, mode=mode)
        assert model.recommend(user, k=5, mode=mode) == before
    assert model.run.config == settings, "an answer changed the run's config"


def test_mistakes_are_named(model):
    for call, words in (
        (lambda: model.recommend("nobody"), "nobody"),
        (lambda: model.recommend(k=0), "k must be"),
        (lambda: model.search(" "), "empty"),
        (lambda: model.recommend(mode="guess"), "guess"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_the_refit_is_the_default(trained_run, model):
    assert Recommender.load(trained_run.folder).fitted_on == "train+valid" and model.fitted_on == "train"
    with pytest.raises(UserError, match="--fitted-on"):
        Recommender.load(trained_run.folder, "test")


def stamps(run: Run) -> dict:
    return {
        str(path.relative_to(run.folder)): path.stat().st_mtime_ns
        for path in sorted(run.folder.rglob("*"))
        if path.is_file() and path.name != "config.json" and "results" not in str(path)
    }


def test_a_second_training_does_nothing(trained_run):
    before = stamps(trained_run)
    again = Run.open(trained_run.folder)
    stage_train(again)
    assert stamps(again) == before and len(before) > 15
    assert again.config == trained_run.config


def test_validation_has_its_own_table(trained_run, metrics):
    result = stage_evaluate(trained_run, "valid")
    assert {one.fitted_on for one in result.rows} == {"train"}
    own = json.loads((trained_run.folder / "results_valid" / "metrics.json").read_text())
    assert own["meta"]["split"] == "valid" and metrics["meta"]["split"] == "test"
    with pytest.raises(UserError, match="--split"):
        stage_evaluate(trained_run, "train")


def test_a_stopped_evaluation_goes_on_where_it_was(copied_run, trained_run, monkeypatch):
    """The rows that were finished are read; the table is that of an evaluation that was not stopped."""
    run, made = copied_run(), []
    rank, stacked = Ranker.rank_each, Baselines._stack

    def counted(ranker, requests, *rest):
        made.append(len(requests))
        return rank(ranker, requests, *rest)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Ranker, "rank_each", counted)
    monkeypatch.setattr(Baselines, "_stack", stopped)
    with pytest.raises(KeyboardInterrupt):
        stage_evaluate(run, "valid")
    before = len(made)
    assert before and list(run.folder.glob(".results_valid.parts/*"))
    monkeypatch.setattr(Baselines, "_stack", stacked)
    resumed = stage_evaluate(run, "valid")
    assert len(made) == before  # our rows were finished
    whole = evaluate(run, "valid")
    assert [(row.model, row.metrics) for row in resumed.rows] == [(row.model, row.metrics) for row in whole.rows]
    assert not list(run.folder.glob(".results_valid.parts"))
