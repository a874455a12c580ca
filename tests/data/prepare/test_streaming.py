"""Preparation in pieces equals a slow reference in memory, whatever the sizes of the pieces; splits, windows, rules and
counts.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest

from genrec.config.load import load_config
from genrec.data.dataset import TEST, TRAIN, VALID, Dataset
from genrec.data.prepare.pipeline import prepare
from genrec.data.prepare.splits import quantile_higher
from genrec.errors import UserError

ARRAYS = ("offsets", "items", "timestamps", "actions", "queries", "split")


def random_log(seed: int, count: int = 150) -> list[dict]:
    """A log in no order, with ties, duplicates, repeats, searches, sessions and an independent split column."""
    rng = np.random.default_rng(seed)
    log = [
        {
            "user_id": f"u{rng.zipf(1.4) % 17}",
            "item_id": f"i{rng.zipf(1.5) % 13}",
            "timestamp": int(rng.integers(60)) * 60,
            "action": ["click", "buy", None][rng.integers(3)],
            "query": ["red lamp", " cup ", "", None][rng.integers(4)],
            "request_id": [f"r{rng.integers(30)}", None][rng.integers(2)],
            "split": ["train", "test"][int(rng.random() < 0.2)],
        }
        for _ in range(count)
    ]
    return [*log, *(dict(log[row]) for row in rng.integers(0, count, 40))]


def reference(log: list[dict], config) -> dict:
    """The same rules one event at a time, in memory."""
    data, removed = config.data, Counter()
    rows = [
        {**row, "position": position, "action": row["action"] or "event", "query": (row["query"] or "").strip() or None}
        for position, row in enumerate(log)
    ]

    def keep(name, test):
        nonlocal rows
        kept = [row for row in rows if test(row)]
        removed[name] += len(rows) - len(kept)
        rows = kept

    if data.actions:
        keep("other_actions", lambda row: row["action"] in data.actions)
    keep("outside_window", lambda row: int(data.start_time or 0) <= row["timestamp"] < int(data.end_time or 1e12))
    rows.sort(
        key=lambda row: (
            row["user_id"],
            row["split"] == "test" if config.split.kind == "given" else 0,
            row["timestamp"],
            row["position"],
        )
    )
    if data.duplicates != "keep":
        seen: set = set()
        columns = [
            "user_id",
            "item_id",
            "timestamp",
            "action",
            "query",
            *(["split"] if config.split.kind == "given" else []),
        ]
        keep("duplicates", lambda row: (key := tuple(row[name] for name in columns)) not in seen and not seen.add(key))
    if data.duplicates == "drop-consecutive":
        before = {row["position"]: rows[number - 1] if number else None for number, row in enumerate(rows)}
        keep(
            "consecutive_repeats",
            lambda row: (
                not (
                    (last := before[row["position"]])
                    and (last["user_id"], last["item_id"]) == (row["user_id"], row["item_id"])
                )
            ),
        )
    while True:
        users, items = Counter(row["user_id"] for row in rows), Counter(row["item_id"] for row in rows)
        size = len(rows)
        strong = {
            row["position"]
            for row in rows
            if users[row["user_id"]] >= data.min_user_events and items[row["item_id"]] >= data.min_item_events
        }
        keep("below_minimum", lambda row, strong=strong: row["position"] in strong)
        if len(rows) == size:
            break
    by_position = sorted(rows, key=lambda row: row["position"])
    users = list(dict.fromkeys(row["user_id"] for row in by_position))
    rows = [row for user in users for row in rows if row["user_id"] == user]
    actions = list(dict.fromkeys(row["action"] or "event" for row in log))
    actions = [action for action in actions if not data.actions or action in data.actions]
    return {
        "rows": rows,
        "users": users,
        "items": list(dict.fromkeys(row["item_id"] for row in by_position)),
        "actions": actions,
        "queries": list(dict.fromkeys(row["query"] for row in rows if row["query"])),
        "removed": removed,
        "split": reference_split(rows, users, config),
    }


def reference_split(rows: list[dict], users: list[str], config) -> list[int]:
    kind = config.split.kind
    if kind == "global-time":
        cuts = np.quantile([row["timestamp"] for row in rows], [0.8, 0.9], method="higher")
        return [int((row["timestamp"] >= cuts).sum()) for row in rows]
    split = []
    for user in users:
        own = [row for row in rows if row["user_id"] == user]
        if kind == "given":
            train = [row["timestamp"] for row in own if row["split"] == "train"]
            last = train.count(train[-1]) if train and train[0] < train[-1] else 0
            split += [TRAIN] * (len(train) - last) + [VALID] * last + [TEST] * (len(own) - len(train))
            continue
        groups: list[list] = []
        for row in own:
            last = groups[-1][-1] if groups else None
            gap = config.split.session_gap * 60
            joined = kind == "session" and last and row["timestamp"] - last["timestamp"] <= gap
            groups = [*groups[:-1], [*groups[-1], row]] if joined else [*groups, [row]]
        names = [TRAIN] * len(groups) if len(groups) < 3 else [TRAIN] * (len(groups) - 2) + [VALID, TEST]
        split += [name for name, group in zip(names, groups, strict=True) for _ in group]
    return split


def check_equal(data: Dataset, expected: dict) -> None:
    """Every array and table of the dataset against the reference."""
    rows = expected["rows"]
    assert data.user_ids.to_list() == expected["users"] and data.item_table["item_id"].to_list() == expected["items"]
    assert data.query_texts == expected["queries"] and data.actions_chain == expected["actions"]
    counts = Counter(row["user_id"] for row in rows)
    assert np.diff(data.offsets).tolist() == [counts[user] for user in expected["users"]]
    assert data.items.tolist() == [expected["items"].index(row["item_id"]) for row in rows]
    assert data.timestamps.tolist() == [row["timestamp"] for row in rows]
    assert data.actions.tolist() == [expected["actions"].index(row["action"]) for row in rows]
    assert data.queries.tolist() == [expected["queries"].index(row["query"]) if row["query"] else -1 for row in rows]
    assert data.split.tolist() == expected["split"]
    info = data.info["rows"]
    assert {rule: info[rule] for rule in expected["removed"]} == dict(expected["removed"])
    assert info["events"] == info["kept"] + sum(expected["removed"].values()) and info["kept"] == len(rows)


@pytest.fixture
def small_pieces(monkeypatch):
    """Partitions, chunks and batches so small that everything happens many times."""
    for name, size in (
        ("prepare.ordering.PARTITION_EVENTS", 19),
        ("prepare.splits.CHUNK_EVENTS", 23),
        ("prepare.splits.QUANTILE_BINS", 3),
        ("readers.toolkit.parquet.BATCH_ROWS", 31),
        ("prepare.impressions.PARTITION_ROWS", 17),
    ):
        monkeypatch.setattr(f"genrec.data.{name}", size)


RULES = [
    [],
    ["data.min_user_events=4", "data.min_item_events=6"],
    ["data.duplicates=keep"],
    ["data.duplicates=drop-consecutive", "data.min_item_events=5"],
    ["data.actions=[buy,event]"],
    ["data.start_time=600", "data.end_time=2400"],
    ["split.kind=global-time"],
    ["split.kind=session", "split.session_gap=3"],
    ["split.kind=given", "data.min_user_events=2"],
]


@pytest.mark.parametrize("overrides", RULES, ids=lambda rules: ",".join(rules) or "plain")
def test_pieces_equal_the_reference(prepare_table, small_pieces, overrides):
    log = random_log(1)
    expected = reference(log, load_config(None, overrides))
    assert expected["rows"] and expected["removed"].total() > 0 or "data.duplicates=keep" in overrides
    check_equal(prepare_table(log, None, *overrides), expected)


def test_one_big_piece_is_the_same_dataset(prepare_table, monkeypatch):
    overrides = [
        "data.min_user_events=3",
        "data.min_item_events=5",
        "queries.synthetic=[category,title]",
        "split.kind=session",
    ]
    log = [{**row, "query": None} for row in random_log(3)]
    items = [
        {"item_id": f"i{n}", "title": f"Lamp number {'abcdefghijklm'[n]}x", "category": ["Top", f"kind {n % 3}"]}
        for n in range(13)
    ]
    whole = prepare_table(log, items, *overrides)
    for name, size in (
        ("prepare.ordering.PARTITION_EVENTS", 10),
        ("prepare.splits.CHUNK_EVENTS", 10),
        ("readers.toolkit.parquet.BATCH_ROWS", 7),
    ):
        monkeypatch.setattr(f"genrec.data.{name}", size)
    parts = prepare_table(log, items, *overrides)
    assert all(np.array_equal(getattr(whole, name), getattr(parts, name)) for name in ARRAYS)
    assert (
        whole.query_texts == parts.query_texts
        and whole.heldout_queries.equals(parts.heldout_queries)
        and len(whole.query_texts) > 5
    )
    assert (
        whole.info["split_fingerprint"] == parts.info["split_fingerprint"]
        and whole.info["leakage"] == parts.info["leakage"]
    )


@pytest.mark.parametrize("bins", [2, 5, 1 << 16])
def test_quantiles_in_passes(monkeypatch, bins):
    monkeypatch.setattr("genrec.data.prepare.splits.QUANTILE_BINS", bins)
    rng = np.random.default_rng(0)
    for values in (rng.integers(-50, 50, 101), rng.integers(0, 10**12, 40), np.array([7]), np.repeat([3, 9], 10)):
        shares = [0.0, 0.35, 0.8, 0.9, 1.0]
        actual = quantile_higher(lambda values=values: iter(np.array_split(values, 3)), shares)
        assert actual == np.quantile(values, shares, method="higher").tolist()


def test_k_core_is_a_fixpoint(prepare_table, small_pieces):
    data = prepare_table(random_log(5, 400), None, "data.min_user_events=5", "data.min_item_events=7")
    assert (
        np.diff(data.offsets).min() >= 5
        and np.bincount(data.items).min() >= 7
        and data.info["rows"]["below_minimum"] > 0
    )


def test_a_given_split_must_be_there_and_complete(prepare_table):
    log = random_log(0)
    with pytest.raises(UserError, match="split.kind: 'given' needs a log with a column 'split'"):
        prepare_table(
            [{key: value for key, value in row.items() if key != "split"} for row in log], None, "split.kind=given"
        )
    with pytest.raises(UserError, match=r"split\.kind: 'given', but 1 events have no split"):
        prepare_table([*log, log[0] | {"timestamp": 5, "split": "later"}], None, "split.kind=given")
    known = prepare_table([*log, log[0] | {"timestamp": 5, "split": "valid"}], None, "split.kind=given")
    assert known.info["valid_events"] == 1  # the log's own validation part is not added to


def test_chosen_actions_must_exist(prepare_table):
    with pytest.raises(UserError, match="data.actions: the log has no action 'clicks'; did you mean 'click'"):
        prepare_table(random_log(0), None, "data.actions=[clicks]")


def test_an_iso_window(prepare_table):
    log = [
        {"user_id": "u", "item_id": f"i{day}", "timestamp": 1_714_521_600 + day * 86_400} for day in range(5)
    ]  # from 2024-05-01
    data = prepare_table(log, None, "data.start_time=2024-05-02", "data.end_time='2024-05-03T12:00:00+02:00'")
    assert data.item_table["item_id"].to_list() == ["i1", "i2"] and data.info["rows"]["outside_window"] == 3


# --- leakage
# -----------------------------------------------------------------------------------------------------------


def test_leakage_of_a_handmade_log(prepare_table):
    times = {
        "a": [("x", 10), ("y", 20), ("x", 30), ("x", 40)],  # test target x was in training
        # the whole training of the others is later; w is cold, z is cold
        "b": [("y", 1), ("x", 2), ("z", 3), ("w", 5)],
        "c": [("x", 50), ("y", 50), ("y", 60), ("y", 50)],  # ties: x, y (first), y (last) at 50, then 60
    }
    log = [
        {"user_id": user, "item_id": item, "timestamp": time, "action": f"{n}"}
        for user, own in times.items()
        for n, (item, time) in enumerate(own)
    ]
    data = prepare_table(log)
    test, valid = data.info["leakage"]["test"], data.info["leakage"]["valid"]
    # train: a x10 y20, b y1 x2, c x50 y50; valid: a x30, b z3, c y50; test: a x40, b w5, c y60
    assert test == {
        "requests": 3,
        "users_cold": 0,
        "items": 3,
        "items_cold": 1,
        "targets_of_cold_items": 1,
        "pairs_seen": 2,
        "exact_events_seen": 0,
        "targets_before_training_ends": 2,
        "train_events_later": round((2 + 4 + 0) / 6 / 3, 6),
    }
    assert (valid["items_cold"], valid["pairs_seen"], valid["exact_events_seen"]) == (
        1,
        2,
        1,
    )  # c's y at 50 twice: kept, the actions differ
    assert valid["train_events_later"] == round((2 + 4 + 0) / 6 / 3, 6)
    written = pl.read_json(data.folder / "leakage.json")
    assert written["test"][0] == test and set(written["meaning"][0]) == set(test)


def test_global_time_reports_cold_and_warm_and_no_future(prepare_table):
    log = [{"user_id": f"u{n % 8}", "item_id": f"i{n % 10}", "timestamp": n} for n in range(80)]
    log += [
        {"user_id": user, "item_id": item, "timestamp": 100}
        for user, item in (("new", "i1"), ("new2", "fresh"), ("u1", "fresh"))
    ]
    test = prepare_table(log, None, "split.kind=global-time", "split.test_share=0.03").info["leakage"]["test"]
    assert test == {
        "requests": 3,
        "users_cold": 2,
        "items": 2,
        "items_cold": 1,
        "targets_of_cold_items": 2,
        "pairs_seen": 0,
        "exact_events_seen": 0,
        "targets_before_training_ends": 0,
        "train_events_later": 0.0,
    }


# --- impressions and accounting
# ----------------------------------------------------------------------------------------


def test_impressions_are_kept_with_dense_ids(tmp_path, small_pieces, monkeypatch):
    monkeypatch.setattr("genrec.data.simulator.simulate.CHUNK_SESSIONS", 40)
    options = {"n_users": 40, "n_items": 60, "n_events": 400, "n_categories": 4, "n_brands": 3}
    config = load_config(
        None,
        ["data.reader=simulator", *(f"data.options.{k}={v}" for k, v in options.items()), "data.min_item_events=3"],
    )
    monkeypatch.setattr("genrec.data.simulator.simulate.PILOT_SESSIONS", 80)
    data = Dataset(prepare(config, tmp_path / "dataset"))
    visible, counts = data.impressions, data.info["impressions"]
    assert counts["kept"] == visible.height > 500 and counts["of_unknown_users_or_items"] > 0
    assert counts["kept"] + counts["of_unknown_users_or_items"] == data.info["rows"]["impressions"]
    assert visible.select("user", "timestamp", "request_id").equals(
        visible.select("user", "timestamp", "request_id").sort("user", "timestamp", "request_id")
    )
    assert data.actions_chain == ["impression", "click", "cart", "purchase"] and data.judgments is None
    # Every click in the events is an impression of that user, item and depth; ids are the dataset's own.
    clicks = np.flatnonzero(data.actions == 1)
    owner = np.searchsorted(data.offsets, clicks, side="right") - 1
    clicked = Counter(zip(owner.tolist(), data.items[clicks].tolist(), strict=True))
    deep = visible.filter(pl.col("action") != "impression")
    assert Counter(zip(deep["user"], deep["item"], strict=True)) == clicked
    rows = data.info["rows"]
    assert rows["read"] == rows["events"] + rows["items"] + rows["users"] + rows["quarantined"]


@pytest.mark.parametrize("reader", ["amazon-2014", "movielens", "table"])
def test_every_row_is_accounted_for(tmp_path, reader):
    folder, options = tmp_path / "log", []
    folder.mkdir()
    if reader == "amazon-2014":
        lines = [f'{{"reviewerID": "A{n % 7}", "asin": "B{n % 5}", "unixReviewTime": {n // 2}}}' for n in range(60)]
        (folder / "reviews_X.json").write_text("\n".join([*lines, lines[0], "{broken"]) + "\n")
        (folder / "meta_X.json").write_text("{'asin': 'B1'}\n{'asin': 'B1'}\n{'asin': 'B9'}\n")
    elif reader == "movielens":
        lines = [f"{n % 7},{n % 5},{n % 5 + 1},{n // 2}" for n in range(60)]
        (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines, lines[0], ",1,1,1"]))
        (folder / "movies.csv").write_text("movieId,title,genres\n1,A (1990),Drama\n1,B,Drama\n")
        options = ["data.options.min_rating=2"]
    else:
        (folder / "a.csv").write_text(
            "user_id,item_id,timestamp\n"
            + "".join(f"u{n % 7},i{n % 5},{n // 2}\n" for n in range(60))
            + "u1,i1,0\nu1,,5\n"
        )
        (folder / "b.jsonl").write_text('{"user_id": 5, "item_id": "i1", "timestamp": 3}\n[]\n')
    config = load_config(
        None,
        [
            f"data.reader={reader}",
            f"data.path={folder}",
            "data.min_item_events=8",
            "data.end_time=25",
            *options,
            "data.max_quarantine_share=0.2",
        ],
    )
    rows = Dataset(prepare(config, tmp_path / "dataset")).info["rows"]
    assert rows["read"] == rows["events"] + rows["items"] + rows["users"] + rows["quarantined"] + sum(
        rows["filtered"].values()
    )
    rules = (
        "other_actions",
        "outside_window",
        "duplicates",
        "consecutive_repeats",
        "below_minimum",
    )
    assert rows["events"] == rows["kept"] + sum(rows[rule] for rule in rules)
    assert rows["quarantined"] >= 1 and rows["outside_window"] > 0 and (rows["filtered"] or reader != "movielens")


def test_the_given_split_holds_out_all_of_the_last_training_time(prepare_table):
    """One purchase told once for each of its queries must not be training and validation at the same time."""
    rows = [("a", "x", 1), ("a", "y", 5), ("a", "y", 5), ("a", "z", 6), ("b", "x", 2), ("b", "y", 2), ("c", "y", 9)]
    log = [
        {
            "user_id": user,
            "item_id": item,
            "timestamp": time,
            "query": f"q{n}",
            "split": "test" if item == "z" else "train",
        }
        for n, (user, item, time) in enumerate(rows)
    ]
    data = prepare_table(log, None, "split.kind=given")
    assert data.split.tolist() == [TRAIN, VALID, VALID, TEST, TRAIN, TRAIN, TRAIN]
    assert data.requests("valid").items.tolist() == [0] and data.info["leakage"]["valid"]["pairs_seen"] == 0


def test_parts_without_queries_stand_beside_parts_with_them(tmp_path):
    for name, query in (("a", None), ("b", "red lamp"), ("c", None)):
        pl.DataFrame(
            {"user_id": ["u"], "item_id": [name], "timestamp": [1], "query": [query]},
            schema_overrides={"query": pl.String},
        ).write_csv(tmp_path / f"{name}.csv")
    data = Dataset(prepare(load_config(None, ["data.reader=table", f"data.path={tmp_path}"]), tmp_path / "made"))
    assert data.queries.tolist() == [-1, 0, -1] and data.query_texts == ["red lamp"]


def test_item_columns_of_mixed_types_are_kept_as_text(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,i1,1\nu,i2,2\nu,i3,3\n")
    items = tmp_path / "items"
    items.mkdir()
    for n, tags in enumerate((["a", "b"], "plain", {"x": 1}), 1):
        pl.DataFrame({"item_id": [f"i{n}"], "tags": [tags]}).write_parquet(items / f"{n}.parquet")
    options = [f"data.path={tmp_path}", "data.options.events=events.csv", "data.options.items=items"]
    data = Dataset(prepare(load_config(None, ["data.reader=table", *options]), tmp_path / "made"))
    assert data.item_table["tags"].to_list() == ['["a","b"]', "plain", '{"x":1}']


def test_a_log_without_events_is_a_catalogue_or_refused(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "judgments.tsv").write_text("query\tasin\tgain\nlamp\tB1\t100\nlamp\tB2\t0\n")
    (folder / "products.ndjson").write_text('{"asin": "B1", "title": "Lamp"}\n{"asin": "B2", "title": "Cup"}\n')
    base = ["data.reader=esci", f"data.path={folder}"]
    with pytest.raises(UserError, match="no events, only 2 items and 2 judgments; set data.keep_unseen_items=true"):
        prepare(load_config(None, base), tmp_path / "refused")
    for kind in ("leave-last-out", "global-time", "session"):
        config = load_config(
            None, [*base, "data.keep_unseen_items=true", f"split.kind={kind}", "queries.synthetic=[category,title]"]
        )
        data = Dataset(prepare(config, tmp_path / kind))
        assert (data.n_users, data.n_items, len(data.items), data.judgments.height) == (0, 2, 0, 2)
        assert len(data.requests("test")) == 0


@pytest.mark.parametrize("reader", ["amazon-2018", "amazon-2023", "table"])
def test_a_changed_file_beside_the_path_is_noticed(tmp_path, reader):
    names = {
        "amazon-2018": ("X_5.json", "meta_X.json"),
        "amazon-2023": ("X.jsonl", "meta_X.jsonl"),
        "table": ("X.jsonl", "meta.jsonl"),
    }
    log, meta = (tmp_path / name for name in names[reader])
    event = {
        "reviewerID": "A",
        "user_id": "A",
        "asin": "B",
        "parent_asin": "B",
        "item_id": "B",
        "overall": 5.0,
        "rating": 5.0,
    }
    event |= {"unixReviewTime": 1400000000, "timestamp": 1588687728923}
    log.write_text(json.dumps(event) + "\n")
    options = ["data.options.items=meta.jsonl", "data.options.timestamp_unit=ms"] if reader == "table" else []
    config = load_config(None, [f"data.reader={reader}", f"data.path={log}", *options])
    for title in ("Lamp", "A longer title"):
        meta.write_text(json.dumps({"asin": "B", "parent_asin": "B", "item_id": "B", "title": title}) + "\n")
        assert Dataset(prepare(config, tmp_path / "made")).item_table["title"].to_list() == [title]
