"""The situation of requests: vocabularies of training users alone, unknown values, stated ones, and clear refusals."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from genrec.config.load import load_config
from genrec.data import situation as module
from genrec.data.dataset import TEST, TRAIN, Dataset
from genrec.data.prepare.pipeline import prepare
from genrec.data.situation import Field, Situation, SituationReader, as_words, resolved
from genrec.errors import UserError

USERS, EVENTS = 40, 6
DAY = 86_400


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    """Forty users with attributes; one of them, ``late``, has test events alone; the app is named in a few events."""
    folder = tmp_path_factory.mktemp("log")
    events = [
        {
            "user_id": f"u{user}",
            "item_id": f"i{(user + event) % 12}",
            "timestamp": (event + (50 if user == USERS - 1 else 0)) * DAY + user * 2000,
            "surface": None if event == 0 else ("app" if (user + event) % 3 else "web"),
        }
        for user in range(USERS)
        for event in range(EVENTS)
    ]
    users = [
        {
            "user_id": f"u{user}",
            "age": 20 + user,
            "town": "rare" if user in (3, USERS - 1) else ("A", "B")[user % 2],
            "zip": f"{user:05d}",
            "level": float(user % 3) if user != 5 else None,
            "tags": ["a"],
        }
        for user in range(USERS)
    ]
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    pl.DataFrame(users).write_parquet(folder / "users.parquet")
    options = ["data.reader=table", f"data.path={folder}", "data.options.events=events.parquet"]
    config = load_config(None, [*options, "data.options.users=users.parquet", "split.kind=global-time"])
    made = Dataset(prepare(config, folder / "dataset"))
    assert made.known_lengths(TRAIN)[made.user_index[f"u{USERS - 1}"]] == 0
    return made


def test_values_are_counted_among_training_users(data, monkeypatch):
    monkeypatch.setattr(module, "MIN_COUNT", 1)
    assert Situation.fit(["town"], data, TEST).fields[0].values == ("A", "B", "rare")
    late = data.users.filter(pl.col("user_id") == f"u{USERS - 1}")["zip"][0]
    assert late in Situation.fit(["zip"], data, TEST).fields[0].values
    assert late not in Situation.fit(["zip"], data, TRAIN).fields[0].values


def test_rare_values_are_unknown_and_the_number_of_values_is_bounded(data, monkeypatch):
    (town,) = Situation.fit(["town"], data, TRAIN).fields
    assert town.values == ("A", "B") and town.codes(pl.Series(["B", "rare", None, "new"])).tolist() == [2, 0, 0, 0]
    monkeypatch.setattr(module, "MAX_VALUES", 1)
    (town,) = Situation.fit(["town"], data, TRAIN).fields
    assert town.size == 2


def test_a_number_with_many_values_gets_bins_of_equally_many_users(data):
    (age,) = Situation.fit(["age"], data, TRAIN).fields
    rows = age.codes(data.users["age"])
    assert age.size == 1 + module.BINS and (np.diff(rows[np.argsort(data.users["age"].to_numpy())]) >= 0).all()
    assert np.bincount(rows, minlength=age.size)[1:].max() <= 4
    assert age.codes(pl.Series([None, float("nan"), -5.0, 1e9])).tolist() == [0, 0, 1, module.BINS]
    (level,) = Situation.fit(["level"], data, TRAIN).fields  # few values: each its own row
    assert sorted(level.values) == ["0", "1", "2"]


def test_equal_values_of_other_types_are_equal():
    assert as_words(pl.Series([1.0, 2.5, None, float("nan")])).to_list() == ["1", "2.5", None, None]
    assert as_words(pl.Series([1, 2])).to_list() == ["1", "2"] and as_words(pl.Series([" x ", ""]))[0] == "x"
    field = Field("level", ("1", "true"))
    assert [field.codes(pl.Series([value]))[0] for value in (1, 1.0, "1", True)] == [1, 1, 1, 2]


def test_the_rule_takes_what_most_users_share(data, monkeypatch):
    assert resolved(["auto"], data, False) == ["age", "town", "level", "surface"]
    assert resolved(["auto"], data, True)[-2:] == ["hour", "weekday"]
    assert resolved(["zip"], data, False) == ["zip"]
    monkeypatch.setattr(module, "MAX_FIELDS", 2)
    assert resolved(["auto"], data, False) == ["age", "town"]
    with pytest.raises(UserError, match="at most 2 fields"):
        resolved(["age", "town", "level"], data, False)


@pytest.mark.parametrize("name", ["tags", "nothing", "user_id"])
def test_an_unknown_attribute_is_named(data, name):
    with pytest.raises(UserError, match=f"no attribute '{name}'; there are age, town, zip, level, surface"):
        Situation.fit([name], data, TRAIN)


def test_rows_of_requests(data):
    situation = Situation.fit(["surface", "town", "hour", "weekday"], data, TRAIN)
    assert Situation.from_state(situation.state()) == situation
    requests = data.requests("test")
    rows = SituationReader(situation, data).codes(requests.users, requests.surfaces, requests.times)
    surface, town, hour, weekday = situation.fields
    for request, row in zip(range(len(requests)), rows.tolist(), strict=True):
        name = data.users["town"][int(requests.users[request])]
        assert row[1] == (town.values.index(name) + 1 if name in town.values else 0)
        assert surface.values[row[0] - 1] == data.surface_names[requests.surfaces[request]]
        when = datetime.fromtimestamp(int(requests.times[request]), UTC)
        assert hour.values[row[2] - 1] == str(when.hour) and weekday.values[row[3] - 1] == str(when.weekday())


def test_nobody_and_no_surface_are_unknown_and_stated_rows_replace_the_rest(data):
    situation = Situation.fit(["surface", "town"], data, TRAIN)
    reader, times = SituationReader(situation, data), np.zeros(2, np.int64)
    assert not reader.codes(None, None, times).any() and not reader.codes(np.array([-1, -1]), None, times).any()
    users = np.array([0, 1])
    stated = np.stack([situation.stated({"town": "B"}, None), situation.stated({"town": None}, "web")])
    rows = reader.codes(users, None, times, stated)
    assert rows.tolist() == [[0, 2], [situation.fields[0].values.index("web") + 1, 0]]
    table = pl.DataFrame({"town": ["B", None], "other": [1, 2]})
    assert situation.stated_columns(table).tolist() == [[-1, 2], [-1, 0]]
    assert situation.stated_columns(table.select("other")) is None


@pytest.mark.parametrize(
    ("attributes", "surface", "message"),
    [
        ({"twon": "A"}, None, "reads no 'twon'; it reads town, age"),
        ({"town": ["A"]}, None, "'town' must be text or a number"),
        ({"age": "old"}, None, "'age' must be a number, not 'old'"),
        ({"hour": 3}, None, "reads no 'hour'"),
        (None, "web", "surface: the model does not read it"),
    ],
)
def test_what_is_not_read_is_refused(data, attributes, surface, message):
    with pytest.raises(UserError, match=message):
        Situation.fit(["town", "age", "hour"], data, TRAIN).stated(attributes, surface)


def test_surfaces_stay_with_their_events(data, tmp_path):
    names = np.array([*data.surface_names, None], object)[np.asarray(data.surfaces)]
    users = data.event_users
    order = np.arange(len(users)) - np.asarray(data.offsets)[users]
    expected = [
        None if event == 0 else ("app" if (int(data.user_ids[user][1:]) + event) % 3 else "web")
        for user, event in zip(users.tolist(), order.tolist(), strict=True)
    ]
    assert names.tolist() == expected


@pytest.mark.parametrize("surfaces", [["feed"], ["feed", "shop"]])
def test_one_surface_alone_tells_nothing(prepare_table, surfaces):
    events = [
        {"user_id": f"u{u}", "item_id": f"i{e}", "timestamp": e, "surface": surfaces[(u + e) % len(surfaces)]}
        for u in range(4)
        for e in range(5)
    ]
    made = prepare_table(events, None, "split.cold_share=0.2", "training.refit=false")
    assert (made.surfaces is None) == (len(surfaces) == 1)
    if made.surfaces is None:
        with pytest.raises(UserError, match="fewer than two surfaces"):
            Situation.fit(["surface"], made, TRAIN)
    if made.surfaces is not None:  # cold items lost their training events, and the surfaces went with them
        assert len(made.surfaces) == len(made.items) < 20
        items, users = made.item_table["item_id"][made.items.astype(np.int64)].to_list(), made.event_users.tolist()
        expected = [surfaces[(int(made.user_ids[u][1:]) + int(i[1:])) % 2] for u, i in zip(users, items, strict=True)]
        assert [made.surface_names[code] for code in made.surfaces.tolist()] == expected
