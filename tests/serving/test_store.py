"""Event stores: nothing acknowledged is lost, nothing is kept twice, and both kinds behave alike."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading

import fakeredis
import pytest

from genrec.errors import UserError
from genrec.serving.redis_store import RedisStore
from genrec.serving.sqlite_store import SqliteStore
from genrec.serving.store import StoredEvent, StoredImpression
from genrec.serving.stores import open_store


@pytest.fixture(params=["sqlite", "redis"])
def store(request, tmp_path):
    made = (
        SqliteStore(tmp_path / "e.sqlite", limit=5)
        if request.param == "sqlite"
        else RedisStore(fakeredis.FakeRedis(server=fakeredis.FakeServer()), limit=5)
    )
    yield made
    made.close()


def event(user: str, item: str, time: int, **more) -> StoredEvent:
    return StoredEvent(user, item, time, **more)


def test_the_newest_events_oldest_first(store):
    store.append([event("u", f"i{n}", n % 4) for n in range(8)])
    store.append([event("v", "x", 1, action="click", query="wool")])
    actual = store.events_of(["u", "v", "nobody"])
    rows = {user: actual.filter(actual["user_id"] == user).rows() for user in ("u", "v", "nobody")}
    # times 0 1 2 3 0 1 2 3, ties as they came: i0 i4 i1 i5 i2 i6 i3 i7
    assert [row[1] for row in rows["u"]] == ["i5", "i2", "i6", "i3", "i7"]
    assert rows["v"] == [("v", "x", 1, "click", "wool")] and rows["nobody"] == []


def test_an_event_id_counts_once(store):
    same = event("u", "a", 1, event_id="one")
    store.append([same, same])
    store.append([same, event("u", "b", 2, event_id="two"), event("u", "b", 2)])
    assert store.events_of(["u"])["item_id"].to_list() == ["a", "b", "b"]


def test_an_event_id_is_the_users_own_and_a_conflict_is_told(store):
    one = event("u", "a", 1, event_id="x")
    assert store.append([one, event("u", "b", 1, event_id="x"), event("v", "b", 1, event_id="x")]) == [
        "kept", "conflict", "kept",
    ]  # fmt: skip
    assert store.append([event("u", "a", 9, event_id="x")]) == ["repeated"], "the time of arrival may differ"


def test_all_items_of_a_user(store):
    store.append([event("u", f"i{n % 7}", n) for n in range(20)])
    assert sorted(store.items_of(["u", "v"])["u"]) == [f"i{n}" for n in range(7)] and store.items_of(["v"]) == {"v": []}


def test_a_store_from_before_propensities_gets_the_column(tmp_path):
    path = tmp_path / "old.sqlite"
    SqliteStore(path).close()
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE impressions DROP COLUMN propensity")
        columns = "request_id, user_id, item_id, timestamp, position"
        old.execute(f"INSERT INTO impressions ({columns}) VALUES ('r', 'u', 'a', 1, 1)")
    for _ in range(2):
        store = SqliteStore(path)
        store.append_impressions([StoredImpression("r", "u", "b", 1, 2, 0.25)])
        assert [one.propensity for one in store.all_impressions()][:2] == [None, 0.25]
        store.close()


def test_erasing(store):
    visible = [StoredImpression("r", user, "a", 1, 1) for user in ("u/1", "v")]
    store.append([event("u/1", "a", 1, event_id="x"), event("v", "a", 1)])
    store.append_impressions(visible)
    assert store.erased(["u/1", "v"]) == set()
    assert store.forget("u/1") == 1 and store.erased(["u/1", "v"]) == {"u/1"}
    assert [one.user_id for one in store.all_events()] == ["v"] and list(store.all_impressions()) == visible[1:]
    assert store.append([event("u/1", "b", 2, event_id="x")]) == ["kept"], "a forgotten event id can come again"


def test_item_versions(store):
    first = store.change_items({"a": {"item_id": "a"}, "b": None})
    assert store.version() == first == 2 and store.changed_items(first) == {}
    assert store.change_items({"a": None}) == 3 and store.changed_items(first) == {"a": None}


def test_a_store_of_format_1_is_carried_over(tmp_path):
    old = sqlite3.connect(tmp_path / "old")
    old.executescript(
        "CREATE TABLE events (place INTEGER PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL,"
        " timestamp INTEGER NOT NULL, action TEXT, query TEXT, event_id TEXT UNIQUE);"
        "CREATE INDEX events_of_user ON events (user_id, timestamp, place);"
        "CREATE TABLE items (item_id TEXT PRIMARY KEY, columns TEXT); INSERT INTO items VALUES ('b', NULL);"
        "INSERT INTO events VALUES (1, 'u', 'a', 5, 'click', NULL, 'x'); PRAGMA user_version = 1;"
    )
    old.close()
    store = SqliteStore(tmp_path / "old")
    assert store.events_of(["u"]).rows() == [("u", "a", 5, "click", None)] and store.changed_items() == {"b": None}
    assert store.append([event("u", "a", 5, action="click", event_id="x")]) == ["repeated"]


def test_forgetting(store):
    store.append([event("u", "a", 1), event("u", "b", 2), event("v", "c", 3)])
    assert store.forget("u") == 2 and store.forget("u") == 0
    assert store.events_of(["u", "v"])["item_id"].to_list() == ["c"]


def test_changed_items(store):
    store.change_items({"a": {"item_id": "a", "title": "A"}, "b": None})
    store.change_items({"a": None, "c": {"item_id": "c", "title": None}})
    assert store.changed_items() == {"a": None, "b": None, "c": {"item_id": "c", "title": None}}


def test_hostile_strings(store):
    names = ["'; DROP TABLE events; --", "\x00", "😀" * 50, "a\nb", '{"x":1}']
    store.append([event(name, name, 1, query=name) for name in names])
    actual = store.events_of(names)
    assert sorted(actual["user_id"].to_list()) == sorted(names) and sorted(actual["query"].to_list()) == sorted(names)


def test_many_threads(tmp_path):
    store = SqliteStore(tmp_path / "e.sqlite", limit=1000)
    threads = [
        threading.Thread(target=lambda n=n: [store.append([event("u", f"{n}-{m}", m)]) for m in range(20)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(store.events_of(["u"])["item_id"])) == 80


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    """A process that writes as fast as it can is killed with SIGKILL; every event it said was kept is there."""
    code = (
        "from genrec.serving.sqlite_store import SqliteStore; from genrec.serving.store import StoredEvent\n"
        f"store = SqliteStore({str(tmp_path / 'e.sqlite')!r})\n"
        "for n in range(10**6):\n    store.append([StoredEvent('u', str(n), n)])\n    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    seen = [int(process.stdout.readline()) for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    seen += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    kept = {int(item) for item in SqliteStore(tmp_path / "e.sqlite", limit=10**6).events_of(["u"])["item_id"]}
    assert set(seen) <= kept and len(kept) <= len(seen) + 1


def test_settings_that_make_it_durable(tmp_path):
    store = SqliteStore(tmp_path / "e.sqlite")
    connection = store._connection()
    assert (
        connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        and connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    )


def test_wrong_stores(tmp_path):
    (tmp_path / "text").write_text("no database at all" * 100)
    with pytest.raises(UserError, match="not an event store"):
        open_store(str(tmp_path / "text"))
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 9")
    newer.close()
    with pytest.raises(UserError, match="format 9"):
        open_store(str(tmp_path / "newer"))
    with pytest.raises(UserError, match="no Redis server answers"):
        open_store("redis://127.0.0.1:1/0")


def test_old_events_are_trimmed_and_the_rest_stays(store):
    store.append([event("u", "a", 1, event_id="one"), event("u", "b", 5), event("u", "a", 9), event("v", "c", 2)])
    store.append_impressions([StoredImpression("r", "u", "a", time, 1) for time in (1, 9)])
    store.change_items({"x": {"item_id": "x"}})
    store.forget("w")
    assert store.trim(5) == (2, 1)
    assert [one.item_id for one in store.all_events()] == ["b", "a"] and len(list(store.all_impressions())) == 1
    assert sorted(store.items_of(["u"])["u"]) == ["a", "b"] and store.items_of(["v"])["v"] == []
    assert store.changed_items() == {"x": {"item_id": "x"}} and store.erased(["w"]) == {"w"}
    assert store.append([event("u", "a", 7, event_id="one")]) == ["kept"], "its id went with the old event"


def test_a_backup_of_a_running_store_opens_like_it(store, tmp_path):
    store.append([event("u", f"i{n}", n) for n in range(2000)])
    store.change_items({"x": {"item_id": "x"}})
    if store.name == "redis":
        with pytest.raises(UserError, match="BGSAVE"):
            store.backup(tmp_path / "copy")
        return
    going, writer = threading.Event(), SqliteStore(store.path)

    def write():
        for number in range(10_000):
            if going.is_set():
                break
            writer.append([event("v", f"i{number}", number)])

    thread = threading.Thread(target=write)
    thread.start()
    store.backup(tmp_path / "copy.sqlite")
    going.set()
    thread.join()
    writer.close()
    copy = SqliteStore(tmp_path / "copy.sqlite")
    assert sum(one.user_id == "u" for one in copy.all_events()) == 2000 and copy.changed_items() == {
        "x": {"item_id": "x"}
    }
    assert (tmp_path / "copy.sqlite").stat().st_mode & 0o777 == 0o600
    copy.close()


def test_a_reader_misses_no_change_of_two_writers(store):
    """A version that a reader saw means that every change up to it is there."""
    other = SqliteStore(store.path) if store.name == "sqlite" else RedisStore(store.client)

    def write(one, name):
        for number in range(40):
            one.change_items({f"{name}{number}": {"item_id": "x"}, f"{name}'{number}": None})

    threads = [threading.Thread(target=write, args=pair) for pair in ((store, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    seen, reached, done = set(), 0, False
    while not done:
        done = not any(thread.is_alive() for thread in threads)
        version = store.version()
        seen |= set(store.changed_items(reached))
        reached = version
    assert len(seen) == 160 and store.version() == 160
    other.close()
