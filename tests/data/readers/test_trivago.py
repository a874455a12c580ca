"""trivago: click-outs with what was shown, queries that only reach later actions of their session, and every row
accounted for."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from genrec.data.readers import read_log
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.readers.trivago import CHAIN
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

COLUMNS = (
    "user_id session_id timestamp step action_type reference platform city device current_filters impressions prices"
)
T = 1541599500


def row(
    session: str,
    time: object,
    step: object,
    kind: str,
    reference: str,
    filters: str = "",
    visible: str = "",
    prices: str = "",
) -> list[str]:
    return [
        "u" + session[:1],
        session,
        str(time),
        str(step),
        kind,
        reference,
        "FR",
        "Paris, France",
        "mobile",
        filters,
        visible,
        prices,
    ]


GOOD = [
    row("a", T, 1, "interaction item image", "7"),
    row("a", T + 1, 2, "search for destination", "Delhi, India"),
    row("a", T + 1, 3, "interaction item info", "8"),
    row("a", T + 2, 4, "filter selection", "Hotel", "Hotel|5 Star"),
    row("a", T + 3, 5, "change of sort order", "price only"),
    row("a", T + 4, 6, "clickout item", "8", "Hotel|5 Star", "7|8|9", "70|80|"),
    row("a", T + 5, 7, "search for poi", "India Gate"),
    row("a", T + 6, 8, "search for item", "9"),
    row("b", T, 1, "interaction item rating", "7"),
    row("b", T + 9, 2, "filter selection", "Motel", "Motel"),
    row("b", T + 9, 3, "interaction item deals", "7"),
    row("b", T + 9, 4, "filter selection", "Motel"),
    row("b", T + 9, 5, "search for destination", "unknown"),
    row("b", T + 9, 6, "clickout item", "7", "", "7"),
    row("b", T + 10, 7, "clickout item", "", "", "7|8", "1|2"),
]


def write(file: Path, rows: list[list[str]], separator: str = "\t") -> Path:
    def field(text: str) -> str:
        return f'"{text}"' if separator == "," and "," in text else text

    file.write_text("\n".join(separator.join(map(field, cells)) for cells in [COLUMNS.split(), *rows]) + "\n")
    return file


def read(path: Path, **options: object) -> RawLog:
    return join_parts(read_log("trivago", path, options))


def accounted(log: RawLog) -> bool:
    return log.rows_read == log.events.height + log.items.height + log.quarantine.height + sum(log.filtered.values())


@pytest.mark.parametrize(("name", "separator"), [("trivago_val.tsv", "\t"), ("train.csv", ",")])
def test_actions_queries_and_impressions(tmp_path, name, separator):
    write(tmp_path / name, GOOD, separator)
    (tmp_path / "item_metadata.csv").write_text("item_id,properties\n7,Car Park|WiFi\n8,\n7,again\n")
    log = read(tmp_path)
    assert log.chain == CHAIN and accounted(log)
    assert log.events.select("item_id", "action", "query").rows() == [
        ("7", "interaction", None),  # before any search
        ("8", "interaction", "Delhi, India"),
        ("8", "clickout", "Delhi, India | Hotel, 5 Star"),
        ("9", "interaction", "India Gate, Paris, France"),  # a new search without filters
        ("7", "interaction", None),  # another session
        ("7", "interaction", "Motel"),
        ("7", "clickout", None),  # filters taken off, destination unknown
    ]
    assert log.events["action_type"][3] == "search for item" and log.events["request_id"][2] == f"a/6/{T + 4}"
    assert log.impressions.select("request_id", "item_id", "position", "action", "clickout", "price").rows() == [
        (f"a/6/{T + 4}", "7", 0, "impression", False, 70.0),
        (f"a/6/{T + 4}", "8", 1, "clickout", True, 80.0),
        (f"a/6/{T + 4}", "9", 2, "impression", False, None),
        (f"b/6/{T + 9}", "7", 0, "clickout", True, None),
    ]
    assert (
        set(log.impressions["surface"]) == {"search"} and log.impressions["query"][0] == "Delhi, India | Hotel, 5 Star"
    )
    assert log.filtered == {
        "search for destination (no event)": 2, "search for poi (no event)": 1, "filter selection (no event)": 3,
        "change of sort order (no event)": 1, "clickout item without a reference": 1,
    }  # fmt: skip
    assert log.items.select("item_id", "text").rows() == [("7", "Car Park, WiFi"), ("8", None)] and log.quarantine[
        "line"
    ].to_list() == [4]


def test_options(tmp_path):
    path = write(tmp_path / "train.tsv", GOOD)
    clicks = read(path, min_action="clickout", filters=False)
    assert clicks.events["query"].to_list() == ["Delhi, India", None]
    assert clicks.filtered["interaction below option min_action"] == 5 and accounted(clicks)
    with pytest.raises(UserError, match="min_action"):
        read(path, min_action="impression")
    with pytest.raises(UserError, match="did you mean 'filters'"):
        read(path, filter=False)


def test_a_query_never_reaches_an_earlier_time_or_another_session(tmp_path):
    # The file runs backwards in time, as one session of the published log does; two sessions have the same id.
    rows = [
        row("a", T + 9, 2, "interaction item info", "2"), row("a", T + 5, 1, "search for destination", "Rome"),
        row("a", T + 5, 0, "interaction item info", "1"), row("c", T + 10, 3, "interaction item info", "3"),
        row("a", T + 11, 4, "interaction item info", "4"),
    ]  # fmt: skip
    log = read(write(tmp_path / "train.tsv", rows))
    assert dict(log.events.select("item_id", "query").iter_rows()) == {"2": "Rome", "1": None, "3": None, "4": None}
    assert log.events["item_id"].to_list() == ["2", "1", "3", "4"]  # rows keep their place


def test_bad_rows_are_set_aside_one_by_one(tmp_path):
    bad = [
        row("a", "soon", 1, "clickout item", "7"), row("a", T * 1000, 1, "clickout item", "7"),
        row("a", T, "x", "clickout item", "7"),
        row("a", T, 1, "wave", "7"), row("a", T, 1, "interaction item info", "unknown"),
        row("a", T, 1, "interaction item info", ""),
        row("a", T, 1, "clickout item", "7", "", "7|8", "1"), row("a", T, 1, "clickout item", "7", "", "7||8", "1|2|3"),
        row("a", T, 1, "clickout item", "7")[:5], ["", *row("a", T, 1, "clickout item", "7")[1:]],
    ]  # fmt: skip
    log = read(write(tmp_path / "train.tsv", [*bad, *GOOD]))
    words = [
        "timestamp",
        "timestamp",
        "step",
        "action_type",
        "no item",
        "no item",
        "differ",
        "empty position",
        "5 fields",
        "no user_id",
    ]
    assert log.quarantine["line"].to_list() == list(range(2, 12))
    assert all(word in reason for word, reason in zip(words, log.quarantine["reason"], strict=True))
    assert log.events.height == 7 and accounted(log)


def test_small_batches_never_cut_a_session(tmp_path, monkeypatch):
    path = write(tmp_path / "train.tsv", GOOD * 3 + [row("z", T, 1, "wave", "7")])
    whole = read(path)
    sizes = (60, 200, 700)
    for size in sizes:
        monkeypatch.setattr(text_lines, "BATCH_BYTES", size)
        pieces = list(read_log("trivago", path, {}))
        small = join_parts(pieces)
        for name in ("events", "impressions", "quarantine"):
            assert getattr(whole, name).equals(getattr(small, name)), name
        assert whole.filtered == small.filtered and accounted(small)
        for piece in pieces:
            tables = piece.events.height + piece.quarantine.height + sum(piece.filtered.values())
            assert piece.rows_read == tables  # each part by itself, although a session waits for its end
    assert len(pieces) > 2
    assert whole.events.filter(pl.col("query").is_not_null()).height == 3 * 4
