"""Every protocol on one tiny trained run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.evaluation.answerers import by_model
from genrec.evaluation.protocol_rows import run_protocol
from genrec.evaluation.search_protocols import sampled


def test_product_search_rows(trained_run):
    (result,) = run_protocol(trained_run, "product-search")
    assert {"genrec, fused", "BM25", "dense text", "popularity"} < set(result.values)
    for metrics in result.values.values():
        assert list(metrics) == ["mrr", "map", "ndcg@10"] and all(
            ((value >= 0) & (value <= 1)).all() for value in metrics.values()
        )
        assert (metrics["map"] <= metrics["mrr"] + 1e-12).all()
    written = json.loads((trained_run.folder / "results_product-search" / "tables.json").read_text())
    assert [row["model"] for row in written["tables"][0]["rows"]] == list(result.values) and written[
        "fitted_on"
    ] == "train"


def test_sampled_rows_are_labelled_and_easier(trained_run):
    results = run_protocol(trained_run, "sampled", seeds=2)
    assert [one.title for one in results] == [
        "SAMPLED, 1 + 99 random: recommendation",
        "SAMPLED, 1 + 99 random: search (logged)",
    ]
    for one in results:
        assert any("not comparable with full ranking" in note for note in one.notes)
        for metrics in one.values.values():
            assert metrics["recall@1"].mean() <= metrics["recall@5"].mean() <= metrics["recall@10"].mean()
    assert set(np.unique(results[0].values["popularity"]["recall@1"])) <= {0, 0.5, 1}, "the mean of two draws"


def test_the_model_ranks_all_candidates_and_nothing_else(trained_run):
    requested = sampled(trained_run.dataset, "test", "logged", negatives=30)
    ranker = trained_run.ranker("train")
    part = requested.requests.take(np.arange(6))
    mask = np.zeros((6, trained_run.dataset.n_items), bool)
    for row in range(6):
        mine = requested.candidates[row]
        mask[row, mine[mine >= 0]] = True
    before = ranker.settings.beam, ranker.settings.dense
    for mode in ranker.modes:
        ranked = by_model(ranker, mode)(part, 31, mask)
        for row in range(6):
            assert sorted(ranked[row][ranked[row] >= 0].tolist()) == np.flatnonzero(mask[row]).tolist()
    assert (ranker.settings.beam, ranker.settings.dense) == before


def test_cold_users(trained_run):
    (result,) = run_protocol(trained_run, "cold-user")
    assert any(note.startswith("personalised minus unpersonalised, genrec, fused, ndcg@10") for note in result.notes)
    alone, known = (
        result.values["genrec, retrieval alone"]["mrr"],
        result.values["genrec, retrieval alone, with history"]["mrr"],
    )
    assert not np.array_equal(alone, known)


def test_wrong_names(trained_run):
    with pytest.raises(UserError, match="did you mean 'sampled'"):
        run_protocol(trained_run, "sample")
    with pytest.raises(UserError, match="no impressions|no action"):
        run_protocol(trained_run, "session-search")
