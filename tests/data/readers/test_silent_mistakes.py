"""Each kind of log that used to go in wrongly without a word: it is read rightly, or the mistake is named with the
value."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl
import pytest

from genrec.config.load import load_config
from genrec.data.dataset import Dataset
from genrec.data.ids import id_text
from genrec.data.prepare.pipeline import prepare
from genrec.data.readers import read_log
from genrec.data.readers.table.items import category_lists, clean_text, prices
from genrec.data.schema import RawLog, join_parts
from genrec.data.times import recognise
from genrec.errors import UserError

T = 1_714_566_600  # 2024-05-01 12:30:00 UTC


def read(folder: Path, text: str | bytes, name: str = "log.csv", **options: object) -> RawLog:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return join_parts(read_log("table", folder / name, options))


def prepared(folder: Path, *overrides: str) -> Dataset:
    config = load_config(None, ["data.reader=table", f"data.path={folder / 'log'}", *overrides])
    return Dataset(prepare(config, folder / "run" / "dataset"))


def events(rows: list[tuple], header: str = "user_id,item_id,timestamp") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


# Rows that vanish


def test_stray_quotes_in_a_tsv_swallow_no_row(tmp_path: Path) -> None:
    rows = [f"u{n}\ti{n}\t{T + n}\t" + ('"wide' if n == 3 else 'deep"' if n == 7 else "plain") for n in range(12)]
    log = read(tmp_path, "user_id\titem_id\ttimestamp\tquery\n" + "\n".join(rows), "log.tsv")
    assert log.events.height == 12 and log.quarantine.is_empty()
    assert log.events["query"][3] == '"wide' and log.events["query"][7] == 'deep"'


def test_stray_quotes_in_a_csv_cost_their_own_lines_only(tmp_path: Path) -> None:
    log = read(tmp_path, f'user_id,item_id,timestamp\nu1,"i1,{T}\nu2,i2,{T}\nu3,i3",{T}\nu4,i4,{T}\n')
    assert log.events["item_id"].to_list() == ["i2", 'i3"', "i4"] and log.quarantine["line"].to_list() == [2]
    assert log.rows_read == 4


def test_a_field_above_the_limit_of_the_csv_module_is_read(tmp_path: Path) -> None:
    log = read(tmp_path, f'user_id,item_id,timestamp,query\nu,i,{T},"{"long, " * 30_000}""x"""\n')
    assert len(log.events["query"][0]) > 131_072


# Joins that match nothing


def test_a_catalogue_without_any_item_of_the_events_is_an_error_that_names_both_sides(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "events.csv").write_text(events([(u, 7 + i, T + i) for u in "abc" for i in range(4)]))
    (tmp_path / "log" / "items.csv").write_text("item_id,title\n0007,Lamp\n0008,Cup\n0009,Pan\n0010,Pot\n")
    with pytest.raises(
        UserError, match=r"'7', '8', '9'.*'0007', '0008', '0009'; leading zeros differ.*strip_leading_zeros"
    ):
        prepared(tmp_path, "data.options.events=events.csv", "data.options.items=items.csv")
    dataset = prepared(
        tmp_path,
        "data.options.events=events.csv",
        "data.options.items=items.csv",
        "data.options.strip_leading_zeros=true",
    )
    assert sorted(dataset.item_table["title"]) == ["Cup", "Lamp", "Pan", "Pot"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pl.Series("id", [1.0, 2.5, None, float("nan"), float("inf")]), ["1", "2.5", None, None, None]),
        (pl.Series("id", ["1.0", " 7 ", "v1.0", "-3.00", "1.50"]), ["1", "7", "v1.0", "-3", "1.50"]),
        (pl.Series("id", ["1.00", "2.00"]).cast(pl.Decimal(10, 2)), ["1", "2"]),
        (pl.Series("id", [b"ab", b"\xff"]), ["ab", None]),
        (pl.Series("id", [3, None]), ["3", None]),
    ],
)
def test_ids_are_the_text_a_person_would_write(column: pl.Series, expected: list[str | None]) -> None:
    assert id_text(column, "log").to_list() == expected


@pytest.mark.parametrize("column", [pl.Series("id", [2.0**53 + 2]), pl.Series("id", ["1.23457E+12"])])
def test_ids_whose_digits_are_lost_are_refused(column: pl.Series) -> None:
    with pytest.raises(UserError, match="last digits are lost"):
        id_text(column, "log")


def test_misspelt_columns_of_every_table_are_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku,name\ni,Lamp\n")
    with pytest.raises(UserError, match=r"item_columns.titel.*did you mean 'title'"):
        read(tmp_path, events([("u", "i", T)]), items="items.csv", item_columns={"item_id": "sku", "titel": "name"})
    with pytest.raises(UserError, match=r"items.csv: no column 'nam' for title; nearest: 'name'"):
        read(tmp_path, events([("u", "i", T)]), items="items.csv", item_columns={"item_id": "sku", "title": "nam"})
    with pytest.raises(UserError, match=r"no column 'querry' for query; .*the file has"):
        read(tmp_path, events([("u", "i", T)]), columns={"query": "querry"})


def test_prepare_states_what_the_log_holds_in_80_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "events.csv").write_text(events([(u, i, T + i) for u in "abc" for i in range(4)]))
    (tmp_path / "log" / "items.csv").write_text("item_id,title,price\n0,Lamp,3\n1,Cup,\n")
    with caplog.at_level(logging.INFO):
        prepared(tmp_path, "data.options.events=events.csv", "data.options.items=items.csv")
    said = [record.getMessage().removeprefix("prepare: ") for record in caplog.records]
    assert "items with title 50%, category 0%, price 25%, text 0%" in said
    assert "span: 2024-05-01 12:30:00 to 2024-05-01 12:30:03" in said and "  a  0  2024-05-01 12:30:00  event" in said
    start = said.index("first events:")
    assert all(len(line) <= 80 for line in said[start:])


# Times


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([T, T + 60], "s"), ([T * 1000, T * 1000 + 60_000], "ms"), ([T * 10**6, (T + 60) * 10**6], "us"),
        ([T * 10**9, (T + 60) * 10**9], "ns"),
        ([45413.520833333336, 45413.521527777775], "excel"),
        (["2024-05-01 12:30:00+00", "2024-05-01 12:31:00+00"], "iso"),
        (["2024-05-01T14:30:00.000+02:00", "2024-05-01T12:31:00Z"], "iso"),
        (["20240501123000", "20240501123100"], "text"),
        (["05/01/2024 12:30:00 PM", "05/01/2024 12:31:00 PM"], "text"),
        (["Wed, 01 May 2024 12:30:00 GMT", "Wed, 01 May 2024 12:31:00 GMT"], "text"),
        (["01.05.2024 12:30", "01.05.2024 12:31"], "text"),
        (["2024-05-01 08:30:00 -0400", "2024-05-01 08:31:00 -0400"], "iso"),
    ],
)  # fmt: skip
def test_times_are_recognised(values: list, unit: str) -> None:
    column = pl.Series("timestamp", values)
    notation = recognise(column, "log")
    assert notation.kind == unit and notation.seconds(column).to_list() == [T, T + 60]


def test_times_that_fit_nothing_or_two_notations_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'01/05/2024' may be 2024-05-01 or 2024-01-05; set timestamp_format to '%d/%m/%Y' or"
    ):
        read(tmp_path, events([("u", "i", "01/05/2024")]))
    with pytest.raises(UserError, match="the times cannot be recognised, such as 'yesterday'"):
        read(tmp_path, events([("u", "i", "yesterday")]))
    with pytest.raises(UserError, match=r"read as 'ms' the times lie around 1970-01-20, such as 1714566600"):
        read(tmp_path, events([("u", "i", T)]), timestamp_unit="ms")
    with pytest.raises(UserError, match=r"timestamp_format '%d.%m.%Y' does not read '2024-05-01'"):
        read(tmp_path, events([("u", "i", "2024-05-01")]), timestamp_format="%d.%m.%Y")


def test_month_and_day_alone_keep_their_order(tmp_path: Path) -> None:
    log = read(tmp_path, events([("u", "i", 511), ("u", "j", 1111)]), timestamp_format="%m%d")
    assert log.events["timestamp"].to_list() == [958_003_200, 973_900_800]


def test_positions_are_named_and_kept_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = read(tmp_path, events([("u", "i", 2), ("u", "j", 1)]))
    assert log.events["timestamp"].to_list() == [2, 1] and "positions in order" in caplog.text
    rows = read(tmp_path, "user_id,item_id\nu,i\nu,j\n", timestamp_unit="order")
    assert rows.events["timestamp"].to_list() == [2, 3]


def test_no_time_and_another_unit_among_times_of_our_days_are_put_aside(tmp_path: Path) -> None:
    times = [T, T + 1, 0, (T + 3) * 1000, T + 4, T + 5]
    log = read(tmp_path, events([(f"u{n}", "i", time) for n, time in enumerate(times)]))
    assert log.events["user_id"].to_list() == ["u0", "u1", "u4", "u5"]
    assert log.quarantine["line"].to_list() == [4, 5] and "unlike the others: 0" in log.quarantine["reason"][0]


def test_one_time_for_all_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, events([("u", n, T) for n in range(5)]))
    assert "are all 2024-05-01 12:30:00" in caplog.text


# Missing values that become somebody


@pytest.mark.parametrize("word", ["NULL", "NA", r"\N", "(not set)", "nan", "None"])
def test_words_for_none_are_no_user(tmp_path: Path, word: str) -> None:
    log = read(tmp_path, events([(word, "i", T), ("u", "i", T), ("u", word, T)]))
    assert log.events.rows()[0][:2] == ("u", "i") and log.events.height == 1
    assert log.filtered == {f"user_id stands for none ({word})": 1, f"item_id stands for none ({word})": 1}
    assert read(tmp_path, events([("NA", "i", T)]), null_values=[]).events["user_id"].to_list() == ["NA"]


# Feedback


def test_the_chain_is_an_option_and_unknown_actions_are_counted(tmp_path: Path) -> None:
    rows = [
        ("u", f"i{n}", T + n, action, "r1")
        for n, action in enumerate(["impression", "click", "purchase", "hover", "impression"])
    ]
    log = read(
        tmp_path, events(rows, "user_id,item_id,timestamp,action,request_id"), chain=["impression", "click", "purchase"]
    )
    assert log.events["action"].to_list() == ["click", "purchase"] and log.chain == ("impression", "click", "purchase")
    assert log.impressions is not None and log.impressions["item_id"].to_list() == ["i0", "i1", "i2", "i4"]
    assert log.filtered["action hover is not in the chain"] == 1
    with pytest.raises(
        UserError, match=r"no action of chain .*'buy'.* the file has: impression, purchase, hover, click|the file has"
    ):
        read(tmp_path, events(rows, "user_id,item_id,timestamp,action,request_id"), chain=["view", "buy"])


def test_impressions_without_a_chain_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = [(u, i, T + i, "impression" if i % 2 else "click") for u in "abc" for i in range(6)]
    (tmp_path / "log" / "events.csv").write_text(events(rows, "user_id,item_id,timestamp,action"))
    with pytest.raises(UserError, match=r"data.options.chain=\[impression,click\]"):
        prepared(tmp_path)
    assert len(prepared(tmp_path, "data.options.chain=[impression,click]").items) == 9


def test_returns_are_no_purchases(tmp_path: Path) -> None:
    log = read(
        tmp_path,
        events([("u", "i", T, 2), ("u", "i", T + 9, -2), ("u", "j", T, 0)], "user_id,item_id,timestamp,quantity"),
    )
    assert log.events.height == 1 and log.filtered == {"returned or cancelled (quantity not above 0)": 2}


# Bytes, markup, prices, categories


def test_bytes_that_are_not_utf8_in_parquet_are_quarantined(tmp_path: Path) -> None:
    table = pl.DataFrame({"user_id": [b"a", b"\xff\xfe"], "item_id": ["i", "i"], "timestamp": [T, T]})
    table.write_parquet(tmp_path / "log.parquet")
    log = join_parts(read_log("table", tmp_path / "log.parquet", {}))
    assert log.events["user_id"].to_list() == ["a"] and log.quarantine["line"].to_list() == [2]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_encodings_are_found(tmp_path: Path, encoding: str) -> None:
    text = "Kunde;Artikel;Datum\n" + "".join(f"Müller;Größe {n};0{n}.05.2024\n" for n in range(1, 8))
    log = read(
        tmp_path, text.encode(encoding), columns={"user_id": "Kunde", "item_id": "Artikel", "timestamp": "Datum"}
    )
    assert log.events["user_id"].unique().to_list() == ["Müller"] and log.events["item_id"][6] == "Größe 7"
    assert log.quarantine.is_empty()


def test_markup_prices_and_categories() -> None:
    assert clean_text(pl.Series("title", ["<b>Big</b> lamp", "A &amp; B", "3 < 5", r"\N"])).to_list() == [
        "Big lamp",
        "A & B",
        "3 < 5",
        None,
    ]
    assert prices(pl.Series("price", ["$1,899", "1.299,05", "12,50 €", "free", "10 - 20", "7"])).to_list() == [
        1899,
        1299.05,
        12.5,
        None,
        10,
        7,
    ]
    assert prices(pl.Series("price", ["1.299", "12,50"])).to_list() == [1299, 12.5]
    paths = pl.DataFrame({"category": ["Home > Lamps", "Home > Lamps > Desk", None]})
    assert category_lists(paths, None, "items")[1].to_list() == ["Home", "Lamps", "Desk"]


def test_lists_that_a_frame_wrote_into_a_csv(tmp_path: Path) -> None:
    log = read(tmp_path, f"user_id,item_id,timestamp\nu1,\"['i1', 'i2']\",{T}\nu2,\"['i3']\",{T}\n")
    assert log.events.select("user_id", "item_id").rows() == [("u1", "i1"), ("u1", "i2"), ("u2", "i3")]
    table = pl.DataFrame({"category": ["['Home', 'Lamps']", None]})
    assert category_lists(table, None, "items").to_list() == [["Home", "Lamps"], None]


def test_entities_in_titles_are_no_separators(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "events.csv").write_text(events([(u, 7 + i, T + i) for u in "abc" for i in range(4)]))
    rows = "".join(f"{7 + i},<b>Lamp</b> &amp; Sons &#39;{i}&#39;\n" for i in range(4))
    (tmp_path / "log" / "items.csv").write_text("item_id,title\n" + rows)
    data = prepared(tmp_path, "data.options={events: events.csv, items: items.csv}")
    assert data.item_table["title"].to_list() == [f"Lamp & Sons '{i}'" for i in range(4)]


def test_unread_prices_and_a_separator_that_never_splits_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "items.csv").write_text("item_id,price,category\ni,ask us,Home / Lamps\nj,3,Home / Pans\n")
    read(tmp_path, events([("u", "i", T)]), items="items.csv", category_separator="|")
    assert (
        "1 of 2 prices are no number, such as 'ask us'" in caplog.text
        and "never splits a category such as 'Home / Lamps'" in caplog.text
    )


# Files


def test_any_ending_nested_folders_and_one_file_for_events_and_items(tmp_path: Path) -> None:
    assert read(tmp_path, events([("u", "i", T)]), "export.unknown").events.height == 1
    nested = tmp_path / "day=2024-05-01" / "part"
    nested.mkdir(parents=True)
    (nested / "part-0000").write_text(events([("u", "i", T), ("v", "i", T)]))
    assert join_parts(read_log("table", tmp_path / "day=2024-05-01", {})).events.height == 2
    log = read(
        tmp_path,
        events([("u", "i", T, "Lamp")], "user_id,item_id,timestamp,title"),
        "both.csv",
        events="both.csv",
        items="both.csv",
    )
    assert log.events.height == 1 and log.items["title"].to_list() == ["Lamp"]


def test_a_headerless_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the first line looks like data \(7,9,1714566600\).*set names"):
        read(tmp_path, f"7,9,{T}\n8,9,{T}\n")


def test_a_refused_log_leaves_its_quarantine_and_counts_reasons(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = [("u", "i", T), ("", "i", T), ("u", "", T), ("u", "i", "soon"), ("u", "i", "late")] + [
        ("u", "i", T + n) for n in range(9)
    ]
    (tmp_path / "log" / "events.csv").write_text(events(rows))
    with pytest.raises(
        UserError,
        match=r"4 of 14 rows are bad \(2 the time is not a number \(seconds\); 1 no item_id; 1 no "
        r"user_id\).*quarantine.csv",
    ):
        prepared(tmp_path)
    assert pl.read_csv(tmp_path / "run" / "dataset.quarantine.csv")["line"].to_list() == [3, 4, 5, 6]
