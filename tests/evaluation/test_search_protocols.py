"""What each protocol asks, of whom and among which items, on logs of a few rows."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from genrec.artifacts.folders import read_json
from genrec.data.dataset import TEST, VALID, Dataset
from genrec.errors import UserError
from genrec.evaluation.answerers import answered, best_popularity_weight, by_scores, candidate_mask, with_popularity
from genrec.evaluation.protocol_rows import run_protocol
from genrec.evaluation.qrels import qrels_metrics
from genrec.evaluation.search_protocols import (
    last_interacted,
    product_search,
    sampled,
    session_search,
    slate_order,
    without_history,
)
from genrec.evaluation.text_relevance import text_relevance
from genrec.retrieval.lexical import LexicalIndex


@pytest.fixture
def shop(prepare_table):
    """Two people; topics of the test part: u0 asks "red" (two purchases) and "blue", u1 asks "red"."""
    rows = [
        ("u0", "a", 1, "old", "train"),
        ("u0", "b", 2, None, "train"),
        ("u0", "c", 3, "mid", "valid"),
        ("u0", "d", 4, "red", "test"),
        ("u0", "e", 5, "red", "test"),
        ("u0", "a", 6, "blue", "test"),
        ("u1", "b", 1, "red", "train"),
        ("u1", "c", 7, "red", "test"),
    ]
    names = ("user_id", "item_id", "timestamp", "query", "split")
    return prepare_table([dict(zip(names, row, strict=True)) for row in rows], None, "split.kind=given")


def test_product_search_topics(shop):
    requested = product_search(shop)
    names = shop.item_table["item_id"].to_list()
    topics = {}
    for row in range(len(requested.requests)):
        one = requested.requests.take(np.array([row]))
        relevant = {
            names[item]
            for topic, item in zip(requested.qrels.topics, requested.qrels.items, strict=True)
            if topic == row
        }
        topics[one.query_texts[one.request_queries[0]], tuple(names[item] for item in one.items)] = relevant
    # the history holds the person's train and valid events and no purchase of the test part
    assert topics == {("red", ("a", "b", "c")): {"d", "e"}, ("blue", ("a", "b", "c")): {"a"}, ("red", ("b",)): {"c"}}
    assert "3 topics" in requested.notes[0] and "4 purchases" in requested.notes[0] and "50.0%" in requested.notes[0]


def test_product_search_needs_queries(prepare_table):
    data = prepare_table([{"user_id": "u", "item_id": f"i{n}", "timestamp": n} for n in range(4)])
    with pytest.raises(UserError, match="needs logged searches"):
        product_search(data)


def click_log(visible: list[tuple], chain=("impression", "clickout")):
    """One user: events 0..3, the last two are test; ``shown``: (timestamp, request, position, item, action)."""
    table = pl.DataFrame(
        visible, schema=["timestamp", "request_id", "position", "item", "action"], orient="row"
    ).with_columns(user=pl.lit(0))
    data = SimpleNamespace(
        offsets=np.array([0, 4]),
        items=np.array([0, 1, 2, 3]),
        timestamps=np.array([10, 20, 30, 40]),
        actions=np.array([1, 1, 1, 1]),
        queries=np.array([-1, -1, -1, -1]),
        split=np.array([0, 0, TEST, TEST]),
        surfaces=None,
        actions_chain=list(chain),
        impressions=table,
        impressions_all=table,
        n_items=20,
        n_users=1,
        query_texts=[],
        item_counts=lambda last: np.ones(20, int),
        event_users=np.zeros(4, np.int64),
    )
    for name in ("requests_before", "requests_at", "user_of"):
        setattr(data, name, partial(getattr(Dataset, name), data))
    return data


def test_session_search_lists_and_baselines():
    visible = [
        (30, "r", 0, 5, "impression"),
        (30, "r", 1, 2, "clickout"),
        (30, "r", 3, 1, "impression"),
        (30, "other", 0, 7, "impression"),
        (40, "s", 0, 9, "impression"),
        (10, "t", 0, 0, "clickout"),
    ]
    requested = session_search(click_log(visible))
    assert requested.candidates.tolist() == [[5, 2, 1]], "in the order shown; the click at 40 has no list of its own"
    assert (
        requested.requests.items.tolist() == [0, 1]
        and "1 of 2 click-outs" in requested.notes[0]
        and "75.0%" in requested.notes[0]
    )

    def score(ranked):
        return qrels_metrics(ranked, requested.qrels, (1,))["mrr"].tolist()

    assert score(slate_order(requested.candidates)) == [1 / 2]
    recent = last_interacted(requested.requests, requested.candidates)
    assert recent.tolist() == [[0, 0, 1]] and slate_order(requested.candidates, recent).tolist() == [[1, 5, 2]]
    assert score(slate_order(requested.candidates, recent)) == [1 / 3]
    assert slate_order(np.array([[4, -1, 6]]), np.array([[1.0, 9.0, 2.0]])).tolist() == [[6, 4, -1]]


def test_session_search_says_what_is_missing():
    log = click_log([(30, "r", 0, 5, "impression")], chain=("impression", "click"))
    with pytest.raises(UserError, match="no action 'clickout'"):
        session_search(log)
    log.impressions = None
    with pytest.raises(UserError, match="no impressions"):
        session_search(log)


def test_sampled_candidates(prepared_run):
    data = prepared_run.dataset
    histories = data.histories(TEST)
    for kind in (None, "logged"):
        requested = sampled(data, "test", kind, seed=3, negatives=20)
        assert requested.candidates.shape == (len(requested.requests), 21) and "SAMPLED" in requested.notes[0]
        events = data.heldout_events("test")
        if kind:
            events = data.heldout_queries.filter((pl.col("kind") == kind) & pl.col("event").is_in(events))[
                "event"
            ].to_numpy()
        users = np.searchsorted(data.offsets, events, side="right") - 1
        for row, user in enumerate(users[:40]):
            mine = requested.candidates[row]
            live = mine[mine >= 0].tolist()
            had = set(histories.items[histories.offsets[user] : histories.offsets[user + 1]].tolist())
            assert len(set(live)) == len(live) and set(live) & had == {requested.requests.targets[row]}
            assert len(live) == min(21, data.n_items - len(had) + 1)
        again, other = (sampled(data, "test", kind, seed, 20).candidates for seed in (3, 4))
        assert np.array_equal(again, requested.candidates) and not np.array_equal(other, requested.candidates)
        places = (requested.candidates == requested.requests.targets[:, None]).argmax(1)
        assert len(set(places.tolist())) > 5, "the target's place must say nothing"


def test_only_candidates_are_answered():
    requested = SimpleNamespace(take=lambda rows: rows)
    scores = np.arange(10.0)

    class Requests(list):
        def take(self, rows):
            return rows

    candidates = np.array([[2, 7, -1], [0, -1, -1]])
    ranked = answered(by_scores(lambda rows: np.tile(scores, (len(rows), 1))), Requests([0, 0]), 3, candidates, 10)
    assert ranked.tolist() == [[7, 2, -1], [0, -1, -1]] and requested
    assert candidate_mask(candidates, 10).sum(1).tolist() == [2, 1]


def test_a_cold_user_has_no_history(prepared_run):
    requests = prepared_run.dataset.requests("test", "logged")
    cold = without_history(requests)
    assert len(cold) == len(requests) and not cold.offsets.any() and len(cold.items) == len(cold.queries) == 0
    assert np.array_equal(cold.request_queries, requests.request_queries) and np.array_equal(
        cold.targets, requests.targets
    )
    assert len(cold.take(np.array([1, 0]))) == 2


def test_popularity_weight_is_chosen_on_validation(prepared_run):
    lexical = LexicalIndex.fit(["red lamp", "red lamp", "blue cup"])
    requests = SimpleNamespace(query_texts=["red"], request_queries=np.array([0]))
    assert by_scores(with_popularity(lexical, np.array([1, 9, 99]), 0.1))(requests, 3, None).tolist() == [[1, 0, 2]]
    assert by_scores(with_popularity(lexical, np.array([1, 9, 99]), 5.0))(requests, 3, None).tolist() == [[2, 1, 0]]
    data = prepared_run.dataset
    valid = data.requests("valid", "logged")
    useless, perfect = np.zeros(data.n_items), np.zeros(data.n_items)
    assert best_popularity_weight(LexicalIndex.fit(data.item_table), useless, valid) == 0
    target = np.bincount(valid.targets, minlength=data.n_items).argmax()
    one = valid.take(np.flatnonzero(valid.targets == target))
    perfect[target] = 1000
    assert best_popularity_weight(LexicalIndex.fit(["word"] * data.n_items), perfect, one) > 0
    assert best_popularity_weight(LexicalIndex.fit(data.item_table), useless, valid.take(np.zeros(0, np.int64))) == 0.1


def test_text_relevance_by_hand():
    items = pl.DataFrame({"item_id": ["a", "b", "c", "d"]})
    judgments = pl.DataFrame(
        {
            "query_id": ["1", "1", "1", "2", "2", "3"],
            "query": ["x", "x", "x", "y", "y", "z"],
            "item_id": ["a", "b", "gone", "c", "d", "a"],
            "label": list("ESESII"),
            "gain": [1.0, 0.1, 1.0, 0.1, 0.0, 0.0],
            "split": [None] * 6,
        }
    )
    scores = {"x": [1.0, 2.0, 9.0, 9.0], "y": [9.0, 9.0, 2.0, 1.0]}
    results, notes = text_relevance(items, judgments, {"one": lambda texts: np.array([scores[text] for text in texts])})
    expected = (0.1 + 1 / np.log2(3)) / (1 + 0.1 / np.log2(3))
    np.testing.assert_allclose(results["one"]["ndcg"], [expected, 1.0])
    assert "2 queries, 4 judgments" in notes[0] and "1 of items without a row, 1 queries" in notes[0]


def test_valid_topics_see_less(shop):
    requested = product_search(shop, "valid")
    assert len(requested.requests) == 1 and requested.requests.items.tolist() == [
        shop.item_index["a"],
        shop.item_index["b"],
    ]
    assert VALID == 1


def test_text_relevance_of_a_tokenized_run(genrec, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    judged = [("red lamp", 1, 100), ("red lamp", 2, 0), ("red lamp", 3, 10), ("blue cup", 2, 100), ("blue cup", 1, 0)]
    (folder / "judgments.tsv").write_text(
        "query\tasin\tgain\n" + "".join(f"{query}\tB{item}\t{gain}\n" for query, item, gain in judged)
    )
    titles = ("Red lamp", "Blue cup", "Lamp", "Green table", "White chair", "Red chair", "Blue table", "Lamp shade")
    (folder / "products.ndjson").write_text(
        "".join(f'{{"asin": "B{number}", "title": "{title}"}}\n' for number, title in enumerate(titles, 1))
    )
    settings = ["data.reader=esci", f"data.path={folder}", "data.keep_unseen_items=true"]
    settings += [f"output={tmp_path}", "name=judged", "text.dim=8", "semantic_ids.level_sizes=[2,2]"]
    (tmp_path / "config.yaml").write_text("name: judged\n")
    assert genrec("tokenize", tmp_path / "config.yaml", *settings)[0] == 0
    code, out, _ = genrec("evaluate", tmp_path / "judged", "--protocol", "text-relevance")
    assert code == 0 and "BM25" in out
    tables = read_json(tmp_path / "judged" / "results_text-relevance" / "tables.json")["tables"]
    assert [row["model"] for row in tables[0]["rows"]] == ["BM25", "dense text", "dense text + BM25"]
    assert tables[0]["rows"][0]["metrics"]["ndcg"] == 1 and len(tables[0]["comparisons"]) == 2
    assert any("2 queries, 5 judgments" in note for note in tables[0]["notes"])


def test_text_relevance_needs_judgments(trained_run):
    with pytest.raises(UserError, match="text-relevance: the log has no judgments"):
        run_protocol(trained_run, "text-relevance")
