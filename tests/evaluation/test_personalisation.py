"""What a history is worth in search, and lists that were shown."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec.data.dataset import Requests
from genrec.evaluation.personalisation import WAYS, ask, example, overlap, same_query_pairs, swapped
from genrec.evaluation.protocol_rows import run_protocol
from genrec.evaluation.search_protocols import completed, session_search
from genrec.ranking.impressions import FEATURES, NOTHING, SlateFeatures, SlateRanker, Slates


def requests_of(histories: list[list[int]], queries: list[int], targets: list[int]) -> Requests:
    lengths = [len(one) for one in histories]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.array(sum(histories, []), np.int64)
    zero = np.zeros(len(items), np.int64)
    return Requests(
        offsets,
        items,
        np.arange(len(items)),
        zero,
        zero - 1,
        np.full(len(histories), 100),
        np.array(queries),
        np.array(targets),
        ["red", "blue"],
    )


def by_history(requests: Requests) -> np.ndarray:
    """Answers with the last item of the history plus 10, then items 0 to 8; without a history only those."""
    ranked = np.tile(np.arange(10), (len(requests), 1))
    for row in range(len(requests)):
        past = requests.items[requests.offsets[row] : requests.offsets[row + 1]]
        if len(past):
            ranked[row] = [past[-1] + 10, *range(9)]
    return ranked


def test_own_history_against_none_and_somebody_elses():
    requests = requests_of([[1], [2, 3], [], [4], [5]], [0, 0, 0, 1, 1], [11, 13, 0, 14, 15])
    requested = ask(by_history, requests, 3)
    own, none, other = (requested.metrics[way]["recall@10"] for way in WAYS)
    assert own.tolist() == [1, 1, 1, 1] and not none.any() and not other.any(), "whoever has no history is not asked"
    assert any(note.startswith("personalised minus unpersonalised, recall@10: +1.0000") for note in requested.notes)
    assert any("2 pairs" in note and "share 90.0%" in note for note in requested.notes)
    shown = example(requests, requested, [f"item {n}" for n in range(30)])
    assert {one["sought"] for one in shown["people"]} <= {"item 11", "item 13", "item 14", "item 15"} and shown[
        "query"
    ] in ("red", "blue")
    assert all(one["rank of it"] == 1 and one["answers"][0] == one["sought"] for one in shown["people"])
    assert example(requests, ask(lambda one: np.tile(np.arange(10), (len(one), 1)), requests, 3), ["x"] * 30) is None


def test_nobody_keeps_their_own_history():
    requests = requests_of([[n] for n in range(9)], [0] * 9, list(range(9)))
    theirs = swapped(requests, 1)
    assert (theirs.items != requests.items).all() and sorted(theirs.items) == sorted(requests.items)
    assert np.array_equal(theirs.targets, requests.targets) and np.array_equal(
        theirs.request_queries, requests.request_queries
    )


def test_overlap_and_pairs():
    assert overlap(np.array([[1, 2, -1], [3, 4, 5]]), np.array([[2, 9, 1], [-1, -1, -1]])).tolist() == [1, 0]
    assert same_query_pairs(requests_of([[0]] * 4, [1, 0, 1, 1], [0] * 4)).tolist() == [[0, 2], [2, 3]]


def test_the_protocol_writes_table_figure_and_example(trained_run):
    (result,) = run_protocol(trained_run, "personalisation")
    assert {f"genrec, fused, {way}" for way in WAYS} < set(result.values)
    folder = trained_run.results("test", "personalisation")
    assert (folder / "personalisation_logged.png").stat().st_size > 5000
    written = json.loads((folder / "tables.json").read_text())["tables"][0]
    assert "example" in written and any("personalised minus unpersonalised" in note for note in written["notes"])


def lists(n: int, seed: int) -> tuple[np.ndarray, Slates, np.ndarray]:
    """Lists in which the second feature alone decides, and the item clicked."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(50)[:6] for _ in range(n)])
    items[::4, 5] = -1
    features = rng.normal(size=(n, 6, 3)).astype(np.float32)
    scores = np.where(items < 0, -np.inf, features[..., 1])
    return (
        features,
        Slates(items, np.tile(np.arange(6), (n, 1)), np.full((n, 6), np.nan)),
        items[np.arange(n), scores.argmax(1)],
    )


def test_the_ranker_of_lists_learns_and_blends():
    features, shown, targets = lists(600, 0)
    ranker = SlateRanker.fit(features, shown, targets)
    features, shown, targets = lists(200, 1)
    own = ranker.own_scores(features, shown)
    best = shown.items[np.arange(200), own.argmax(1)]
    assert (best == targets).mean() > 0.9 and np.isneginf(own[shown.items < 0]).all()
    torch.testing.assert_close(np.exp(own).sum(1), np.ones(200), check_dtype=False, atol=1e-4, rtol=0)
    knows = np.where(shown.items == targets[:, None], 0.0, -5.0).astype(np.float32)
    knows[shown.items % 2 == 0] = NOTHING
    ranker.fit_blend(own, knows, shown, targets)
    assert ranker.blend[1] > 0.1
    scores = ranker.scores(own, knows, shown)
    assert (
        np.isneginf(scores[shown.items < 0]).all()
        and (shown.items[np.arange(200), scores.argmax(1)] == targets).mean() >= (best == targets).mean()
    )


@pytest.fixture
def clicks(tmp_path):
    """Two people; person w's list holds an item ("z") that no event names."""
    from genrec.config.load import load_config
    from genrec.data.dataset import Dataset
    from genrec.data.prepare.pipeline import prepare

    columns = "user_id session_id timestamp step action_type reference platform city device current_filters"
    header = "\t".join([*columns.split(), "impressions", "prices"])

    def row(user, time, step, kind, item, shown="", prices=""):
        return f"{user}\ts{user}\t{time}\t{step}\t{kind}\t{item}\tX\tY\tZ\t\t{shown}\t{prices}"

    click, look = "clickout item", "interaction item image"
    base = 1541000000
    log = [
        row("u", base + 10, 1, look, 11),
        row("u", base + 20, 2, click, 11, "11|12|13", "50|40|60"),
        row("u", base + 30, 3, click, 12, "11|12|13", "50|40|60"),
        row("w", base + 40, 1, look, 13),
        row("w", base + 50, 2, click, 12, "99|13|12", "10|20|40"),
        row("w", base + 60, 3, click, 11, "11|12", "5|6"),
    ]
    (tmp_path / "trivago_x.tsv").write_text("\n".join([header, *log]) + "\n")
    overrides = [
        "data.reader=trivago",
        f"data.path={tmp_path}",
        "split.kind=global-time",
        "split.valid_share=0.1",
        "split.test_share=0.45",
    ]
    return Dataset(prepare(load_config(None, overrides), tmp_path / "dataset"))


def test_lists_hold_what_the_catalogue_does_not_know(clicks):
    requested = session_search(clicks)
    names = dict(enumerate(clicks.item_table["item_id"].to_list()))
    shown = [[names.get(item, "?") for item in row if item >= 0] for row in requested.slates.items.tolist()]
    assert ["?", "13", "12"] in shown and "100.0% of it is ranked" in requested.notes[0]
    row = shown.index(["?", "13", "12"])
    assert requested.slates.prices[row].tolist() == [10, 20, 40] and requested.slates.positions[row].tolist() == [
        0,
        1,
        2,
    ]
    ranked = completed(np.array([[requested.slates.items[row, 2], -1, -1]]), requested.slates.items[row : row + 1])
    assert ranked.tolist() == [
        [requested.slates.items[row, 2], requested.slates.items[row, 0], requested.slates.items[row, 1]]
    ]


def test_evidence_of_a_list_by_hand_and_without_the_future(clicks):
    requested = session_search(clicks)
    row = next(row for row in range(len(requested.requests)) if requested.slates.prices[row, 0] == 10)
    evidence = SlateFeatures(clicks)
    features = dict(zip(FEATURES, evidence.features(requested.requests, requested.slates)[row].T, strict=True))
    assert features["looked"][:3].tolist() == [0, 1, 0] and features["newest"][:3].tolist() == [0, 1, 0]
    np.testing.assert_allclose(
        features["popular"][:3], np.log1p([0, 0, 1]), rtol=1e-6
    )  # the click at this very second does not count
    np.testing.assert_allclose(features["shown"][:3], np.log1p([0, 2, 2]), rtol=1e-6)
    assert features["next_to_newest"][:3].tolist() == [0, 0, 1] and features["cheapest"][:3].tolist() == [1, 0, 0]
    np.testing.assert_allclose(features["seconds"][1], np.log1p(10), rtol=1e-6)
    later = SimpleNamespace(
        **{name: getattr(clicks, name) for name in ("actions_chain", "actions", "items", "impressions_all")}
    )
    times = np.array(clicks.timestamps)
    later.timestamps = np.where(times >= requested.requests.times[row], times + 1000, times)
    shifted = SlateFeatures(later).features(requested.requests, requested.slates)[row]
    plain = evidence.features(requested.requests, requested.slates)[row]
    names = [name for name in FEATURES if name not in ("shown", "click_rate")]  # impressions keep their times here
    columns = [FEATURES.index(name) for name in names]
    np.testing.assert_array_equal(shifted[:, columns], plain[:, columns])


def test_a_later_click_does_not_make_an_item_known(clicks):
    """Every clicked item is in the catalogue and most others are not: being there may not count."""
    from genrec.data.dataset import TRAIN
    from genrec.evaluation.search_protocols import familiar

    requested = session_search(clicks)
    known = familiar(clicks, requested.requests, requested.slates.items, TRAIN)
    counts = clicks.item_counts(TRAIN)
    for row in range(len(known)):
        past = set(
            requested.requests.items[requested.requests.offsets[row] : requested.requests.offsets[row + 1]].tolist()
        )
        for item, flag in zip(requested.slates.items[row].tolist(), known[row].tolist(), strict=True):
            assert flag == (item >= 0 and (item in past or (item < clicks.n_items and counts[item] > 0)))
    assert not known[requested.slates.items >= clicks.n_items].any()


def test_a_sample_of_the_requests_says_so(trained_run):
    (result,) = run_protocol(trained_run, "personalisation", "valid", requests=9)
    assert all(len(values["recall@10"]) <= 9 for values in result.values.values())
    assert any("9 of " in note and "drawn at random" in note for note in result.notes)
