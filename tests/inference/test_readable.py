"""Requests, histories and item tables are read as logs are: ids, times and prices in any common notation."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from genrec.data.ids import NULL_WORDS, id_text, plain_id
from genrec.errors import UserError
from genrec.inference.predict import predictions, request_table

MOMENT = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())


@pytest.fixture
def history(model) -> list[str]:
    return [model.snapshot.item_ids[index] for index in (3, 9, 27)]


@pytest.mark.parametrize(
    "value",
    [
        SECONDS, SECONDS * 1000, SECONDS * 10**6, float(SECONDS), MOMENT, MOMENT.replace(tzinfo=None), str(SECONDS),
        "2024-05-01T12:30:00Z", "2024-05-01 14:30:00+02",
    ],
)  # fmt: skip
def test_times_of_a_request_table_are_seconds(value) -> None:
    table = pl.DataFrame({"request_id": [1.0, 2.0], "user_id": [" 7 ", "8"], "timestamp": [value, None]})
    plain, _ = request_table(table, "requests")
    assert plain["timestamp"].to_list() == [SECONDS, None] and plain["timestamp"].dtype == pl.Int64
    assert plain["request_id"].to_list() == ["1", "2"] and plain["user_id"].to_list() == ["7", "8"]


def test_a_date_is_no_number_of_days_and_a_word_is_named() -> None:
    table = pl.DataFrame({"request_id": ["a"], "user_id": ["7"], "timestamp": [MOMENT.date()]})
    assert request_table(table, "requests")[0]["timestamp"].to_list() == [SECONDS // 86_400 * 86_400]
    with pytest.raises(UserError, match="'soon'"):
        request_table(table.with_columns(timestamp=pl.lit("soon")), "requests")


@pytest.mark.parametrize("notation", ["datetime", "milliseconds"])
def test_histories_of_a_table_are_read_alike(model, history, notation) -> None:
    def answers(times: list, items: list) -> list:
        rows = [[{"item_id": item, "timestamp": time} for item, time in zip(items, times, strict=True)]]
        table = pl.DataFrame({"request_id": ["r"], "timestamp": [SECONDS + 9], "history": rows})
        plain, given = request_table(table, "requests")
        return predictions(model, plain, given, 5, "fused", True).rows()

    seconds = [SECONDS - 10 * n for n in range(len(history))][::-1]
    same = [datetime.fromtimestamp(time, UTC) for time in seconds] if notation == "datetime" else [
        time * 1000 for time in seconds
    ]  # fmt: skip
    assert answers(same, [f" {item} " for item in history]) == answers(seconds, list(history))


def test_milliseconds_are_refused_where_seconds_are_stated(model, history) -> None:
    with pytest.raises(UserError, match="milliseconds"):
        model.recommend(history=[{"item_id": history[0], "timestamp": SECONDS * 1000}])
    with pytest.raises(UserError, match="milliseconds"):
        model.recommend(history=history, timestamp=SECONDS * 1000)


def test_added_items_are_cleaned_as_those_of_a_log(model) -> None:
    table = pl.DataFrame(
        {
            "item_id": [901.0, 902.0],
            "title": ["<b>Blue</b> &amp; red lamp", "NULL"],
            "category": ["Home > Lamps", "Home > Cups"],
            "price": ["$1,899", "4.50"],
        }
    )
    model.add_items(table)
    first, second = model.item("901"), model.item("902")
    assert (first["title"], first["category"], first["price"]) == ("Blue & red lamp", ["Home", "Lamps"], 1899.0)
    assert (second["title"], second["price"]) == (None, 4.5)
    model.update_items(pl.DataFrame({"item_id": [901], "price": ["5,25 EUR"]}))
    assert model.item("901")["price"] == 5.25


def test_one_id_is_written_as_a_column_of_them() -> None:
    values = ["7", " 7 ", "7.0", "007", "a b", "1.50", "-3.0", "x.0", "2e5", "v1.0+x"]
    assert [plain_id(value) for value in values] == id_text(pl.Series("id", values), "log").to_list()
    for word in ("", "  ", *NULL_WORDS):
        with pytest.raises(UserError, match="stands for no id"):
            plain_id(word)
