"""Aggregation of orders: by hand, and where a mean over metrics would decide otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.evaluation.compare import rank, write_per_request
from genrec.evaluation.social_choice import Electorate, standings


def constant(name: str, votes: list[list[float]]) -> Electorate:
    """Every request says the same: ``votes`` (models, metrics)."""
    return Electorate(name, np.repeat(np.array(votes, float)[:, :, None], 5, axis=2))


def test_a_model_that_wins_most_orders_is_first_though_its_mean_is_lower():
    # b's mean (.37) is above a's (.14) because of one data set of large numbers; a wins two orders of three.
    actual = standings(
        ["a", "b", "c"],
        [
            constant("one", [[0.11], [0.10], [0.0]]),
            constant("two", [[0.11], [0.1], [0.0]]),
            constant("x", [[0.2], [0.9], [0.1]]),
        ],
    )
    assert [one.model for one in actual] == ["a", "b", "c"]
    assert [one.borda for one in actual] == pytest.approx([5 / 6, 4 / 6, 0])
    assert [(one.wins, one.losses) for one in actual] == [(2, 0), (1, 1), (0, 2)]
    assert actual[0].first == 1.0


def test_ties_count_half_and_noise_shows_in_the_draws():
    tie = standings(["a", "b"], [constant("one", [[0.5, 0.2], [0.5, 0.2]])])
    assert [one.borda for one in tie] == [0.5, 0.5] and (tie[0].wins, tie[0].losses) == (0, 0)
    rng = np.random.default_rng(0)
    close = standings(["a", "b"], [Electorate("one", rng.random((2, 1, 50)))])
    assert 0 < close[0].first < 1 and close[0].first + close[1].first == pytest.approx(1)


def test_the_command_ranks_runs_of_different_data(tmp_path, genrec, results_alone):
    for name, n, ours in (("shop", 4, 0.3), ("films", 7, 0.6)):
        folder = tmp_path / name
        (folder / "results").mkdir(parents=True)
        rows = {("genrec, fused", "train", None): ours, ("ItemKNN", "train", None): 0.4}
        values = {key: {"recall@10": np.full(n, one), "ndcg@10": np.full(n, one / 2)} for key, one in rows.items()}
        write_per_request(folder / "results", values, {None: name})
    code, out, err = genrec("compare", tmp_path / "shop", tmp_path / "films", "--rank")
    assert code == 0 and "| ItemKNN | 0.500 | 0, 0 |" in out and "| genrec, fused | 0.500 |" in out, err
    code, _, err = genrec("compare", tmp_path / "shop", tmp_path / "films", "--rank", "--seeds")
    assert code == 2 and "--rank and --seeds" in err


def test_one_model_is_no_ranking(tmp_path, results_alone):
    (tmp_path / "results").mkdir()
    values = {("ItemKNN", "train", None): {"recall@10": np.ones(3), "ndcg@10": np.ones(3)}}
    write_per_request(tmp_path / "results", values, {None: "one"})
    with pytest.raises(UserError, match="fewer than two models"):
        rank([tmp_path])
