"""Preparing a log: splits that never leak, k-core, duplicates, order, fingerprints and synthetic queries, against brute
force.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import polars as pl
import pytest

from genrec.config.load import load_config
from genrec.data.dataset import TEST, TRAIN, VALID, Dataset
from genrec.data.prepare.pipeline import prepare
from genrec.data.queries import STOP_WORDS
from genrec.data.sequences import make_windows
from genrec.errors import UserError
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.training.batches import request_counts

WORD = re.compile(r"[^\W_]+")


def rows(n_users=12, per_user=6, n_items=10, seed=0, **extra) -> list[dict]:
    """A shuffled log with distinct times."""
    rng = np.random.default_rng(seed)
    total = n_users * per_user
    times = rng.permutation(total) * 100 + 1_000
    made = [
        {"user_id": f"u{e % n_users}", "item_id": f"i{rng.integers(n_items)}", "timestamp": int(times[e]), **extra}
        for e in range(total)
    ]
    return [made[position] for position in rng.permutation(total)]


ITEMS = [
    {"item_id": f"i{n}", "title": title, "category": ["Beauty", group, "For the Hair"], "brand": "Acme", "text": ""}
    for n, (title, group) in enumerate(
        [
            ("Red Lip Stick 42", "Make-up & Lips"),
            ("The Blue Shampoo", "Shampoos"),
            ("12 34", "Nails"),
            ("Soft soft Soft brush", "Tools"),
        ]
        * 3
    )
]


def log_of(data: Dataset) -> pl.DataFrame:
    """The prepared events with the log's own names, in their order."""
    owner = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    return pl.DataFrame(
        {
            "user_id": data.user_ids[owner],
            "item_id": data.item_table["item_id"][data.items.astype(np.int64)],
            "timestamp": np.asarray(data.timestamps),
            "split": np.asarray(data.split),
        }
    )


def test_every_event_arrives_in_order(prepare_table):
    events = rows()
    data = prepare_table(events)
    assert log_of(data).select("user_id", "item_id", "timestamp").sort("user_id", "timestamp").rows() == sorted(
        [(e["user_id"], e["item_id"], e["timestamp"]) for e in events], key=lambda row: (row[0], row[2])
    )
    for start, stop in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        assert (np.diff(data.timestamps[start:stop]) > 0).all()


def test_leave_last_out(prepare_table):
    events = rows() + [{"user_id": "short", "item_id": "i1", "timestamp": 5 + n} for n in range(2)]
    data = prepare_table(events)
    for user, own in log_of(data).group_by("user_id"):
        newest = sorted((e["timestamp"] for e in events if e["user_id"] == user[0]), reverse=True)
        by_split = {
            split: sorted(own.filter(pl.col("split") == split)["timestamp"], reverse=True)
            for split in (TRAIN, VALID, TEST)
        }
        if user[0] == "short":
            assert by_split == {TRAIN: newest, VALID: [], TEST: []}
        else:
            assert by_split == {TEST: newest[:1], VALID: newest[1:2], TRAIN: newest[2:]}
    assert len(data.heldout_events("test")) == len(data.heldout_events("valid")) == 12
    requests = data.requests("test")
    assert requests.offsets[-1] == len(requests.items) == 12 * 5


def test_global_time_keeps_the_future_out_of_training(prepare_table):
    data = prepare_table(
        rows(n_users=20), None, "split.kind=global-time", "split.valid_share=0.2", "split.test_share=0.1"
    )
    times, split = np.asarray(data.timestamps), np.asarray(data.split)
    assert (
        times[split == TRAIN].max() < times[split == VALID].min()
        and times[split == VALID].max() < times[split == TEST].min()
    )
    shares = np.bincount(split, minlength=3) / len(split)
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.02)
    for name, value in (("valid", VALID), ("test", TEST)):
        held = data.heldout_events(name)
        owner = np.searchsorted(data.offsets, held, side="right") - 1
        assert len(set(owner)) == len(held)
        for event, user in zip(held, owner, strict=True):  # the user's first event of the split
            own = np.arange(data.offsets[user], data.offsets[user + 1])
            assert event == own[split[own] == value][0]
        requests = data.requests(name)
        ends = np.repeat(requests.times, np.diff(requests.offsets))
        assert (requests.timestamps <= ends).all()


def test_global_time_puts_equal_times_on_one_side(prepare_table):
    events = [{"user_id": f"u{n}", "item_id": f"i{n % 3}", "timestamp": n // 10} for n in range(100)]
    data = prepare_table(events, None, "split.kind=global-time")
    times, split = np.asarray(data.timestamps), np.asarray(data.split)
    assert all(len(set(split[times == time])) == 1 for time in set(times)) and set(split) == {TRAIN, VALID, TEST}


@pytest.mark.parametrize("kind", ["leave-last-out", "global-time"])
def test_known_histories_never_hold_a_later_split(prepare_table, kind):
    data = prepare_table(rows(n_users=20), None, f"split.kind={kind}")
    log = log_of(data)
    for last in (TRAIN, VALID, TEST):
        known = data.histories(last)
        for user in range(data.n_users):
            own = (
                log[int(data.offsets[user]) : int(data.offsets[user + 1])]
                .filter(pl.col("split") <= last)["item_id"]
                .to_list()
            )
            items = known.items[known.offsets[user] : known.offsets[user + 1]]
            assert data.item_table["item_id"][items.astype(np.int64)].to_list() == own
        assert data.item_counts(last).sum() == (np.asarray(data.split) <= last).sum()


def test_equal_times_keep_the_order_of_the_log(prepare_table):
    events = [{"user_id": "u", "item_id": f"i{n}", "timestamp": 7} for n in (4, 2, 9, 1)] + [
        {"user_id": "u", "item_id": "i0", "timestamp": 3}
    ]
    data = prepare_table(events)
    assert log_of(data)["item_id"].to_list() == ["i0", "i4", "i2", "i9", "i1"]
    assert data.info["test_targets_tied_in_time"] == 1 and "position in the log" in data.info["tie_rule"]
    assert prepare_table(rows()).info["test_targets_tied_in_time"] == 0


@pytest.mark.parametrize(("users", "items"), [(1, 1), (3, 1), (1, 4), (3, 3), (5, 4)])
def test_k_core_equals_brute_force(users, items, prepare_table):
    rng = np.random.default_rng(2)
    events = [
        (f"u{int(u)}", f"i{int(i)}", n)
        for n, (u, i) in enumerate(zip(rng.zipf(1.6, 300) % 40, rng.zipf(1.6, 300) % 40, strict=True))
    ]
    table = [dict(zip(("user_id", "item_id", "timestamp"), event, strict=True)) for event in events]
    data = prepare_table(table, None, f"data.min_user_events={users}", f"data.min_item_events={items}")
    remaining_events = list(events)
    while True:  # one user or item at a time
        by_user, by_item = Counter(e[0] for e in remaining_events), Counter(e[1] for e in remaining_events)
        weak = next((("u", u) for u, n in by_user.items() if n < users), None) or next(
            (("i", i) for i, n in by_item.items() if n < items), None
        )
        if weak is None:
            break
        remaining_events = [e for e in remaining_events if e[0 if weak[0] == "u" else 1] != weak[1]]
    assert sorted(log_of(data).select("user_id", "item_id", "timestamp").rows()) == sorted(remaining_events)
    counts = data.info["rows"]
    assert (
        counts["duplicates"] == 0
        and counts["below_minimum"] == 300 - len(remaining_events)
        and (users == items == 1 or 0 < len(remaining_events) < 300)
    )


def test_only_exact_duplicates_are_dropped(prepare_table):
    event = {"user_id": "u", "item_id": "a", "timestamp": 5, "action": "click", "query": None}
    events = [
        event,
        dict(event),
        event | {"timestamp": 6},
        event | {"item_id": "b"},
        event | {"action": "buy"},
        event | {"query": "x"},
    ]
    data = prepare_table(events)
    assert data.info["events"] == 5 and data.info["rows"]["duplicates"] == 1 and data.actions_chain == ["click", "buy"]


def test_nothing_left_is_said(prepare_table):
    with pytest.raises(UserError, match="no event is left"):
        prepare_table(rows(), None, "data.min_user_events=1000")


def test_items_no_event_names(prepare_table):
    events = [event for event in rows() if event["item_id"] != "i3"]
    kept = prepare_table(events, ITEMS, "data.keep_unseen_items=true")
    dropped = prepare_table(events, ITEMS)
    assert set(kept.item_table["item_id"]) - set(dropped.item_table["item_id"]) == {"i3", "i10", "i11"}
    assert log_of(kept).equals(log_of(dropped)) and kept.item_counts(TEST)[-3:].tolist() == [0, 0, 0]
    titles = dict(zip(kept.item_table["item_id"], kept.item_table["title"], strict=True))
    assert titles == {item["item_id"]: item["title"] for item in ITEMS}


# --- fingerprints and being up to date
# ---------------------------------------------------------------------------------


def test_the_fingerprint_of_a_split(prepare_table):
    base = rows()
    prints = {"base": prepare_table(base).info["split_fingerprint"]}
    assert prepare_table([dict(event) for event in base]).info["split_fingerprint"] == prints["base"]
    prints["item"] = prepare_table([base[0] | {"item_id": "i77"}, *base[1:]]).info["split_fingerprint"]
    prints["user"] = prepare_table([event | {"user_id": event["user_id"].replace("u1", "v1")} for event in base]).info[
        "split_fingerprint"
    ]
    late = max(range(len(base)), key=lambda n: base[n]["timestamp"] * (base[n]["user_id"] == "u1"))
    prints["order"] = prepare_table(
        [event | {"timestamp": 0} if n == late else event for n, event in enumerate(base)]
    ).info["split_fingerprint"]
    prints["split"] = prepare_table(base, None, "split.kind=global-time").info["split_fingerprint"]
    prints["less"] = prepare_table(base[:-1]).info["split_fingerprint"]
    assert len(set(prints.values())) == len(prints), prints


def test_prepare_is_skipped_until_something_changes(tmp_path):
    path = tmp_path / "events.parquet"
    pl.DataFrame(rows()).write_parquet(path)
    overrides = ["data.reader=table", f"data.path={path}"]
    target = tmp_path / "dataset"

    def made(*more) -> tuple[str, int]:
        prepare(load_config(None, [*overrides, *more]), target)
        return Dataset(target).manifest["key"], (target / "items.npy").stat().st_mtime_ns

    first = made()
    assert made("model.dim=64", "training.epochs=2", "name=other") == first  # of no concern to the data
    second = made("queries.synthetic=[title]")
    assert second[0] != first[0] and second[1] != first[1]
    assert (
        len(
            {
                made("split.kind=global-time")[0],
                made("seed=1")[0],
                made("data.min_user_events=2")[0],
                first[0],
                second[0],
            }
        )
        == 5
    )
    before = made()
    pl.DataFrame(rows(seed=5)).write_parquet(path)
    assert made()[0] != before[0]


# --- quarantine
# --------------------------------------------------------------------------------------------------------


def test_too_many_bad_rows_stop_the_job(prepare_table):
    events = [event | {"timestamp": str(event["timestamp"])} for event in rows()]
    bad = [{"user_id": "u1", "item_id": "i1", "timestamp": "yesterday"}] * 6
    with pytest.raises(UserError, match=r"line \d+.*6 of 78 rows are bad.*max_quarantine_share=0\.05"):
        prepare_table(events + bad)
    data = prepare_table(events + bad, None, "data.max_quarantine_share=0.1")
    assert data.info["events"] == 72 and data.info["rows"]["quarantined"] == 6
    assert len(pl.read_parquet(data.folder / "quarantine.parquet")) == 6
    assert prepare_table(events + bad[:3]).info["rows"]["quarantined"] == 3


# --- queries
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def requested(prepare_table):
    return prepare_table(rows(per_user=20), ITEMS, "queries.synthetic=[category,title]", "queries.share=0.5")


def test_synthetic_queries_are_the_words_of_their_item(requested):
    table = {item["item_id"]: item for item in ITEMS}
    kinds = Counter()
    for event in np.flatnonzero(requested.queries >= 0):
        item = table[requested.item_table["item_id"][int(requested.items[event])]]
        words = requested.query_texts[requested.queries[event]].split()
        category = [
            w for w in dict.fromkeys(WORD.findall(" ".join(item["category"][1:]).lower())) if w not in STOP_WORDS
        ]
        title = [
            w for w in dict.fromkeys(WORD.findall(item["title"].lower())) if w not in STOP_WORDS and not w.isdigit()
        ]
        if words == category:
            kinds["category"] += 1
        else:
            assert words and set(words) <= set(title) and len(words) <= 3 and [w for w in title if w in words] == words
            kinds["title"] += 1
        assert "beauty" not in words and "the" not in words  # the top level says nothing; stop words say nothing
    assert min(kinds["category"], kinds["title"]) > 20
    assert 0.3 < (requested.queries >= 0).mean() < 0.6 and requested.info["synthetic_queries"] is True


def test_heldout_queries_cover_every_held_event_by_kind(requested):
    assert requested.query_kinds == ["category", "title"]
    held = np.flatnonzero(requested.split != TRAIN)
    table = requested.heldout_queries
    assert set(table["event"]) == set(held)
    assert len(table.filter(pl.col("kind") == "category")) == len(held)
    for event, kind, query in table.rows():
        item = {item["item_id"]: item for item in ITEMS}[requested.item_table["item_id"][int(requested.items[event])]]
        source = " ".join(item["category"]) if kind == "category" else item["title"]
        assert set(requested.query_texts[query].split()) <= set(WORD.findall(source.lower()))
    requests = requested.requests("test", "title")
    assert (requests.request_queries >= 0).all() and len(requests) == len(
        table.filter((pl.col("kind") == "title") & pl.col("event").is_in(requested.heldout_events("test")))
    )


def test_synthetic_queries_do_not_depend_on_anything_else(requested, prepare_table):
    again = prepare_table(rows(per_user=20), ITEMS, "queries.synthetic=[category,title]", "queries.share=0.5")
    assert np.array_equal(again.queries, requested.queries) and again.query_texts == requested.query_texts
    # The same (user, item) asks the same, whatever the order of the log.
    turned = prepare_table(rows(per_user=20)[::-1], ITEMS, "queries.synthetic=[category,title]", "queries.share=0.5")

    def by_event(data):
        log = log_of(data)
        texts = [data.query_texts[query] if query >= 0 else None for query in data.queries]
        return {(user, item): text for user, item, text in zip(log["user_id"], log["item_id"], texts, strict=True)}

    assert by_event(turned) == by_event(requested)


def test_logged_queries_win_over_synthetic_ones(prepare_table):
    events = rows()
    events = [
        event | {"query": "  what i typed " if n % 7 == 0 else ("" if n % 2 else None)}
        for n, event in enumerate(events)
    ]
    data = prepare_table(events, ITEMS, "queries.synthetic=[category,title]")
    assert (
        set(data.query_kinds) <= {"logged"}
        and data.query_texts == ["what i typed"]
        and data.info["synthetic_queries"] is False
    )
    assert data.info["search_events"] == len([n for n in range(len(events)) if n % 7 == 0])


def test_no_queries_at_all(prepare_table):
    data = prepare_table(rows())
    assert data.query_kinds == [] and data.query_texts == [] and (data.queries == -1).all()


def test_an_unknown_split_name(requested):
    with pytest.raises(UserError, match="train"):
        requested.requests("train")


def test_events_below_the_target_action_are_seen_and_never_asked_for(tmp_path, tiny_overrides):
    more = ("split.kind=global-time", "data.options.n_events=1500")
    plain = load_config(None, tiny_overrides(tmp_path, *more))
    config = load_config(None, tiny_overrides(tmp_path, *more, "data.target_action=cart"))
    every, data = (Dataset(prepare(one, tmp_path / name)) for one, name in ((plain, "every"), (config, "cart")))
    level = data.actions_chain.index("cart")
    assert data.target_level == level > 0 and every.target_level == 0 and len(data.items) == len(every.items)
    for name in ("valid", "test"):
        held = data.heldout_events(name)
        assert len(held) and (data.actions[held] >= level).all() and len(held) == data.info["leakage"][name]["requests"]
        requested = data.requests(name)
        assert (requested.actions < level).any(), "the history still holds clicks"
        for event in held:  # the first of its user and split that may be a target
            user = np.searchsorted(data.offsets, event, side="right") - 1
            own = np.arange(data.offsets[user], data.offsets[user + 1])
            assert event == own[(data.split[own] == data.split[event]) & (data.actions[own] >= level)][0]
    queries = len(data.query_texts)
    features = QueryFeatures(np.zeros((queries, 4), np.float32), np.zeros(0, np.int64), np.zeros(queries + 1, np.int64))
    collator = Collator(config.model, features, target_level=level)
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    for searches in (False, True):
        batch = collator.windows(data, windows, np.arange(len(windows)), False, searches)
        requested = (batch.targets >= 0).sum(1).numpy()
        assert requested.sum() and (requested == request_counts(data, windows, False, searches)).all()
    with pytest.raises(
        UserError, match="target_action: 'crat' is not in the log's feedback chain; did you mean 'cart'"
    ):
        prepare(load_config(None, tiny_overrides(tmp_path, *more, "data.target_action=crat")), tmp_path / "wrong")
