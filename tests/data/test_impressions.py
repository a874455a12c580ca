"""Slates requests and feedback rates against plain loops; what a row may know of itself and of the future: nothing."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.data.dataset import SPLITS, TRAIN
from genrec.data.impressions import feedback_chain, load_impressions, split_slates
from genrec.data.rates import KEYS, FeedbackRates, n_features
from genrec.errors import UserError
from genrec.evaluation.search_protocols import session_search
from genrec.preference.feedback import collect
from genrec.preference.levels import Levels

STAGES = ["click", "cart"]


@pytest.fixture(scope="module")
def visible(prepared_run):
    return load_impressions(prepared_run.dataset, STAGES)


def test_every_row_that_was_shown_is_there_once(prepared_run, visible):
    table = prepared_run.dataset.impressions
    assert (
        visible.offsets[-1] == len(table) and len(visible) == table.select("user", "timestamp", "request_id").n_unique()
    )
    deep = table["action"].replace_strict({"impression": 0, "click": 1, "cart": 2, "purchase": 3}).to_numpy()
    assert (
        np.array_equal(visible.reached, np.stack([deep >= 1, deep >= 2], 1))
        and 0 < visible.reached[:, 1].mean() < visible.reached[:, 0].mean()
    )
    texts = [
        prepared_run.dataset.query_texts[query] if query >= 0 else None for query in visible.queries[visible.owner]
    ]
    assert [
        text for text, expected in zip(texts, table["query"], strict=True) if text is not None and text != expected
    ] == [] and any(texts)


def test_a_request_sees_what_its_user_did_strictly_before(prepared_run, visible):
    data = prepared_run.dataset
    for place in np.random.default_rng(0).choice(len(visible), 60, replace=False):
        user = visible.users[place]
        stamps = np.asarray(data.timestamps[data.offsets[user] : data.offsets[user + 1]])
        assert visible.before[place] - data.offsets[user] == (stamps < visible.times[place]).sum()
    requested = np.array([5, 700, 3])
    requests = visible.requests_of(requested)
    for row, place in enumerate(requested):
        mine = slice(requests.offsets[row], requests.offsets[row + 1])
        past = slice(data.offsets[visible.users[place]], visible.before[place])
        assert (
            np.array_equal(requests.items[mine], data.items[past])
            and (requests.timestamps[mine] < visible.times[place]).all()
        )


def slate_log(with_requests: bool) -> tuple[list[dict], list[dict]]:
    """Events and impressions of 40 users: slates of four items with up to two clicks, some bought a day later."""
    rng = np.random.default_rng(3)
    events, impressions = [], []
    for user in range(40):
        days = np.sort(rng.choice(60, rng.integers(2, 10), replace=False))
        for turn, day in enumerate(days):
            time = int(day) * 86_400 + user * 60
            split = "test" if turn == len(days) - 1 else "valid" if turn == len(days) - 2 else "train"
            items, clicks = rng.choice(15, 4, replace=False), rng.choice([0, 0, 1, 2])
            for position, item in enumerate(items):
                own = {"user_id": f"u{user}", "item_id": f"i{item}", "split": split}
                clicked = bool(position < clicks)
                bought = bool(clicked and rng.random() < 0.5)
                events += [own | {"timestamp": time, "action": "click"}] * clicked
                # The log says that what follows from a held-out day is held out; so must the slate be.
                later = {"timestamp": time + 100_000, "action": "buy", "split": "test" if turn else split}
                events += [own | later] * bought
                action = "buy" if bought else "click" if clicked else "impression"
                request = {"request_id": f"r{user}-{turn}" if with_requests else None}
                visible = {"timestamp": time, "position": position, "action": action}
                impressions.append({"user_id": f"u{user}", "item_id": f"i{item}"} | visible | request)
    return events, impressions


@pytest.mark.parametrize("with_requests", [True, False])
@pytest.mark.parametrize("kind", ["leave-last-out", "global-time", "session", "given"])
def test_every_consumer_gives_an_impression_the_same_split(kind, with_requests, prepare_table):
    """Ranking head, preference stage and session search agree; no training row is at or after a held-out event."""
    events, impressions = slate_log(with_requests)
    data = prepare_table(events, None, f"split.kind={kind}")
    assert data.actions_chain == ["click", "buy"]
    table = pl.DataFrame(impressions, schema_overrides={"request_id": pl.String})
    ids = {"user": data.user_index, "item": data.item_index}
    codes = [pl.col(f"{name}_id").replace_strict(known, default=-1).alias(name) for name, known in ids.items()]
    table = table.with_columns(*codes).filter((pl.col("user") >= 0) & (pl.col("item") >= 0))
    data.__dict__["impressions"] = table.sort("user", "timestamp", "request_id", maintain_order=True)
    head, levels = load_impressions(data, ["click"]), Levels.build(feedback_chain(data), {})
    feedback = collect(data, levels)
    splits: dict[str, dict] = {}
    for name, log in (("head", head), ("preference", feedback)):
        keys = zip(log.users[log.owner].tolist(), log.items.tolist(), log.times[log.owner].tolist(), strict=True)
        splits[name] = dict(zip(keys, log.split[log.owner].tolist(), strict=True))
    splits["session search"] = {}
    names = data.user_ids.to_list()
    for split, number in SPLITS.items() if with_requests else ():  # session search needs request ids
        requested = session_search(data, split, "click")
        rows, columns = np.nonzero(requested.slates.items >= 0)
        times = requested.requests.times[rows]
        users = [names.index(f"u{user}") for user in times % 86_400 // 60]
        keys = zip(users, requested.slates.items[rows, columns].tolist(), times.tolist(), strict=True)
        splits["session search"] |= dict.fromkeys(keys, number)
    assert len(splits["head"]) == len(splits["preference"]) == len(data.impressions)
    assert splits["head"] == splits["preference"]
    assert (len(splits["session search"]) > 50) == with_requests
    assert all(splits["head"][key] == split for key, split in splits["session search"].items())
    assert set(splits["head"].values()) == set(SPLITS.values())
    events = pl.DataFrame({"user": data.event_users, "item": data.items, "time": data.timestamps, "split": data.split})
    held_out = events.filter(pl.col("split") > TRAIN)
    train = [key for key, split in splits["head"].items() if split == TRAIN]
    rows = pl.DataFrame(train, schema=["user", "item", "shown"], orient="row")
    first = held_out.group_by("user").agg(pl.col("time").min())
    assert rows.join(first, on="user").filter(pl.col("shown") >= pl.col("time")).is_empty()


def test_an_impression_whose_outcome_is_held_out_is_held_out(prepared_run, visible):
    """The click may be training data: the slate is not, when the purchase after it is a validation event."""
    data = prepared_run.dataset
    held = np.flatnonzero((np.asarray(data.split) > TRAIN) & (np.asarray(data.actions) == 3))
    slates = split_slates(data).filter(pl.col("action") == "purchase")
    led = pl.DataFrame({"user": data.user_of(held), "item": data.items[held], "event": data.timestamps[held]})
    within = slates.join(led.with_columns(pl.col("user").cast(slates["user"].dtype)), on=["user", "item"])
    within = within.filter((pl.col("event") > pl.col("timestamp")) & (pl.col("event") < pl.col("timestamp") + 180))
    assert within.height > 5 and (within["split"] > TRAIN).all()


def test_taking_requests_keeps_their_rows(visible):
    some = np.array([9, 2, 40])
    few = visible.take(some)
    place, owner, column = visible.rows(some)
    assert np.array_equal(few.items, visible.items[place]) and np.array_equal(few.owner, owner)
    assert np.array_equal(few.features(np.arange(len(place))), visible.features(place))
    assert np.array_equal(column[few.offsets[:-1]], [0, 0, 0])


@pytest.fixture(scope="module")
def counted():
    rng = np.random.default_rng(4)
    n = 300
    table = pl.DataFrame(
        {
            "user": rng.integers(0, 8, n),
            "item": rng.integers(0, 10, n),
            "timestamp": rng.integers(100, 160, n),
            "surface": rng.choice(["a", "b"], n),
        }
    )
    reached = rng.random((n, 2)) < [0.5, 0.2]
    brands, categories = np.array([0, 0, 1, 1, -1, 2, 2, 2, 0, 1]), np.array([0, 1, 0, 1, 2, 2, -1, 0, 1, 0])
    return table, reached, brands, categories, FeedbackRates(table, brands, categories, reached, until=150)


def test_rates_count_what_was_strictly_earlier(counted):
    table, reached, brands, categories, rates = counted
    users, items, times = (table[name].to_numpy() for name in ("user", "item", "timestamp"))
    surfaces = rates.surface_codes(table)
    actual = rates.features(users, items, surfaces, times).reshape(len(users), len(KEYS), 3)
    assert actual.shape[1] * 3 == n_features(2)
    known = times < 150
    mean = reached[known].mean(0)

    def logit(rate):
        return np.log(rate / (1 - rate))

    for row in range(0, 300, 7):
        same = {
            "item": items == items[row],
            "user": users == users[row],
            "surface": surfaces == surfaces[row],
            "brand": (brands[items] == brands[items[row]]) & (brands[items[row]] >= 0),
            "category": (categories[items] == categories[items[row]]) & (categories[items[row]] >= 0),
        }
        same["user_category"], same["item_surface"] = same["user"] & same["category"], same["item"] & same["surface"]
        for place, name in enumerate(KEYS):
            before = same[name] & known & (times < times[row])
            rate = (reached[before].sum(0) + 10 * mean) / (before.sum() + 10)
            np.testing.assert_allclose(actual[row, place, :2], logit(rate) - logit(mean), atol=1e-5)
            assert actual[row, place, 2] == pytest.approx(np.log1p(before.sum()) / 4, abs=1e-6)


def test_no_row_knows_its_own_outcome_or_a_later_one(counted):
    table, reached, brands, categories, rates = counted
    users, items, times = (table[name].to_numpy() for name in ("user", "item", "timestamp"))
    surfaces = rates.surface_codes(table)
    row = int(np.flatnonzero(times == 130)[0])
    changed = reached.copy()
    changed[times >= 130] = ~changed[times >= 130]
    other = FeedbackRates.__new__(FeedbackRates)
    other.__dict__.update(
        FeedbackRates(table, brands, categories, changed, until=150).__dict__, mean=rates.mean
    )  # the prior is the log's
    early = times <= 130

    def ask(one, rows):
        return one.features(users[rows], items[rows], surfaces[rows], times[rows])

    np.testing.assert_array_equal(ask(other, early), ask(rates, early))
    assert early[row] and not np.array_equal(ask(other, ~early), ask(rates, ~early))
    # what lies behind the cut is never counted, however late the request
    late = FeedbackRates(table, brands, categories, np.where(times[:, None] >= 150, ~reached, reached), until=150)
    np.testing.assert_array_equal(
        late.features(users, items, surfaces, times + 1000), rates.features(users, items, surfaces, times + 1000)
    )


def test_nobody_known_and_nothing_known_count_nothing(counted):
    rates = counted[-1]
    actual = rates.features(np.array([-1]), np.array([4]), np.array([-1]), np.array([10**9])).reshape(len(KEYS), 3)
    for name in ("user", "surface", "brand", "user_category", "item_surface"):
        assert np.abs(actual[KEYS.index(name)]).max() < 1e-6
    assert (actual[KEYS.index("item")] != 0).any()


def test_rows_without_known_feedback_are_left_out(prepared_run):
    data = prepared_run.dataset
    table = data.impressions.with_columns(
        click=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.col("action") != "impression")
    )
    half = load_impressions(_With(data, table), STAGES)
    assert half.offsets[-1] == -(-len(table) // 2)


class _With:
    """A dataset with another table of impressions."""

    def __init__(self, data, table):
        self._data, self.impressions = data, table

    def __getattr__(self, name):
        return getattr(self._data, name)


def test_a_log_without_impressions_and_an_unknown_stage(prepared_run):
    assert load_impressions(_With(prepared_run.dataset, None), STAGES) is None
    with pytest.raises(UserError, match="no action 'long_view'; it has impression, click"):
        load_impressions(prepared_run.dataset, ["click", "long_view"])
