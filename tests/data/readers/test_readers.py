"""Readers: original layouts, every row accounted for, and messages that name the mistake."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
import zstandard

from genrec.data.readers import BY_FILE, READERS
from genrec.data.readers import read_log as read_parts
from genrec.data.readers.toolkit import LINE, RAW, read_lines
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.readers.toolkit.delimited import split_fields
from genrec.data.readers.toolkit.lines import line_batches
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA, RawLog, join_parts
from genrec.errors import UserError

REVIEWS = [
    b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 30, "overall": 5.0, "reviewText": "nice"}',
    b'{"reviewerID": "A1", "asin": "B2", "unixReviewTime": 10}',
    b'{"reviewerID": "A2", "asin": "B1", "unixReviewTime": 20}',
]
META = [
    b"{'asin': 'B1', 'title': 'It\\'s a \"lamp\"', 'brand': 'Vela', 'price': 3.5, 'categories': [['Home', 'Lamp'], "
    b"['Sale']]}",
    b'{"asin": "B2", "title": "Cup", "description": "For tea.", "categories": [["Home"]]}',
]


def read_log(*arguments) -> RawLog:
    """A whole log at once."""
    return join_parts(read_parts(*arguments))


def accounted(log: RawLog) -> bool:
    users = 0 if log.users is None else log.users.height
    return log.rows_read == log.events.height + log.items.height + users + log.quarantine.height + sum(
        log.filtered.values()
    )


def reasons(log: RawLog) -> dict[tuple[str, int], str]:
    return {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}


def amazon(folder: Path, reviews: list[bytes], meta: list[bytes]) -> RawLog:
    (folder / "reviews_X_5.json.gz").write_bytes(gzip.compress(b"\n".join(reviews) + b"\n"))
    (folder / "meta_X.json").write_bytes(b"\n".join(meta) + b"\n")
    return read_log("amazon-2014", str(folder), {})


def test_amazon_reads_both_files_in_file_order(tmp_path):
    log = amazon(tmp_path, REVIEWS, META)
    assert log.events.select("user_id", "item_id", "timestamp").rows() == [
        ("A1", "B1", 30),
        ("A1", "B2", 10),
        ("A2", "B1", 20),
    ]
    assert log.events["action"].unique().to_list() == ["purchase"] and log.events["surface"].unique().to_list() == [
        "feed"
    ]
    assert log.events["rating"].to_list() == [5.0, None, None]
    assert log.items.select(*ITEM_SCHEMA).rows() == [
        ("B1", 'It\'s a "lamp"', None, "Vela", ["Home", "Lamp"], 3.5),
        ("B2", "Cup", "For tea.", None, ["Home"], None),
    ]
    assert log.quarantine.is_empty() and log.rows_read == 5
    assert dict(list(log.events.schema.items())[: len(EVENT_SCHEMA)]) == EVENT_SCHEMA


def test_amazon_quarantines_each_kind_of_bad_line(tmp_path):
    bad = [
        b'{"reviewerID": "A3", "asin": "B1", "unixRev',
        b'{"asin": "B1", "unixReviewTime": 1}',
        b'{"reviewerID": "A3", "unixReviewTime": 1}',
        b'{"reviewerID": "A3", "asin": "B1", "unixReviewTime": "soon"}',
        b'{"reviewerID": "A\xff", "asin": "B1", "unixReviewTime": 1}',
        b"[1, 2]",
    ]
    log = amazon(
        tmp_path, [REVIEWS[0], *bad, b"", REVIEWS[1]], [*META, META[0], b"__import__('os')", b"{'title': 'no id'}"]
    )
    assert log.events["item_id"].to_list() == ["B1", "B2"]
    actual = reasons(log)
    for line, words in (
        (2, "broken JSON"),
        (3, "no reviewerID"),
        (4, "no asin"),
        (5, "unixReviewTime"),
        (6, "utf-8"),
        (7, "not a JSON"),
    ):
        assert words in actual["reviews_X_5.json.gz", line]
    assert (
        "repeated" in actual["meta_X.json", 3]
        and "literal" in actual["meta_X.json", 4]
        and "no asin" in actual["meta_X.json", 5]
    )
    assert log.quarantine.schema == QUARANTINE_SCHEMA and accounted(log)


def test_cut_off_gzip_is_a_user_error(tmp_path):
    (tmp_path / "reviews_X.json.gz").write_bytes(gzip.compress(b"\n".join(REVIEWS) * 50)[:-20])
    with pytest.raises(UserError, match="reviews_X.json.gz"):
        read_log("amazon-2014", str(tmp_path), {})


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_movielens_layouts_agree(tmp_path, suffix):
    atomic, modern, classic = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for folder in (atomic, modern, classic):
        folder.mkdir()
    write(
        atomic / f"m.inter{suffix}",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n2\t7\t3\t50\n1\t7\t5\t40\n1\t8\t1\t60\n",
    )
    write(
        atomic / f"m.item{suffix}",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n7\tÉté, L'\t1995\tDrama War\n"
        "8\tNo Year\t\t\n",
    )
    write(atomic / f"m.user{suffix}", "user_id:token\tage:token\tgender:token\n1\t24\tM\n2\t53\tF\n")
    write(
        modern / f"ratings.csv{suffix}", "userId,movieId,rating,timestamp\r\n2,7,3.0,50\r\n1,7,5.0,40\r\n1,8,1.0,60\r\n"
    )
    write(
        modern / f"movies.csv{suffix}",
        'movieId,title,genres\r\n7,"Été, L\' (1995)",Drama|War\r\n8,No Year,(no genres listed)\r\n',
    )
    write(classic / f"u.data{suffix}", "2\t7\t3\t50\n1\t7\t5\t40\n1\t8\t1\t60\n")
    flags = ["0"] * 19
    flags[8] = flags[17] = "1"
    item = f"7|Été, L' (1995)|01-Jan-1995||http://x|{'|'.join(flags)}\n8|No Year||||{'|'.join('0' * 19)}\n"
    write(classic / f"u.item{suffix}", item, "latin-1")
    write(classic / f"u.user{suffix}", "1|24|M|writer|1\n2|53|F|other|2\n")
    logs = [read_log("movielens", str(folder), {}) for folder in (atomic, modern, classic)]
    for log in logs:
        assert log.events.select("user_id", "item_id", "rating", "timestamp").rows() == [
            ("2", "7", 3.0, 50),
            ("1", "7", 5.0, 40),
            ("1", "8", 1.0, 60),
        ]
        assert log.items.select("item_id", "title", "category", "release_year").rows() == [
            ("7", "Été, L'", ["Drama", "War"], 1995),
            ("8", "No Year", None, None),
        ]
        assert log.quarantine.is_empty() and accounted(log)
    assert logs[1].users is None
    for log in (logs[0], logs[2]):
        assert log.users.select("user_id", "age", "gender").rows() == [("1", 24, "M"), ("2", 53, "F")]


def test_movielens_min_rating_and_quarantine(tmp_path):
    write(
        tmp_path / "ratings.csv",
        "userId,movieId,rating,timestamp\n1,7,5,10\n1,8,3,11\n,8,3,1\n1,,3,1\n1,8,x,1\n1,8,3,nan\n1,8,3\n1,9,4,12\n",
    )
    log = read_log("movielens", str(tmp_path), {})
    assert log.events.height == 3 and accounted(log)
    assert set(reasons(log)) == {("ratings.csv", line) for line in (4, 5, 6, 7, 8)}
    assert read_log("movielens", str(tmp_path), {"min_rating": 4}).events["item_id"].to_list() == ["7", "9"]
    with pytest.raises(UserError, match="min_rating"):
        read_log("movielens", str(tmp_path), {"min_ratings": 4})
    with pytest.raises(UserError, match="number"):
        read_log("movielens", str(tmp_path), {"min_rating": "high"})


CSV = (
    "\ufeffuid,sku,ts,q\n" + 'u1,i1,100,"red, ""big"" lamp"\n' + 'u1,i2,101,\nu2,i1,102,"two\nlines"\nu2,i3,103,plain\n'
)
COLUMNS = {"user_id": "uid", "item_id": "sku", "timestamp": "ts", "query": "q"}


def test_table_csv_quotes_and_line_breaks(tmp_path):
    write(tmp_path / "log.csv.gz", CSV)
    log = read_log("table", str(tmp_path / "log.csv.gz"), {"columns": COLUMNS})
    assert log.events.select("user_id", "item_id", "timestamp", "query").rows() == [
        ("u1", "i1", 100, 'red, "big" lamp'),
        ("u1", "i2", 101, None),
        ("u2", "i1", 102, "two\nlines"),
        ("u2", "i3", 103, "plain"),
    ]
    assert accounted(log) and log.rows_read == 4


def test_table_csv_broken_rows_cost_only_themselves(tmp_path):
    rows = [
        "uid,sku,ts,q",
        "u1,i1,100,a",
        'u1,i2,101,"open',
        "u1,i3,102,b",
        "u1,i4,103,c,surplus",
        "u1,i5",
        "u1,i6,later,d",
        ",i7,104,e",
    ]
    content = (
        "\n".join([*rows, 'u1,i8,105,5" nails', 'u1,i9,106,"fine"']).encode() + b"\nu1,i\xe9,107,f\nu1,i10,108,g\n"
    )
    (tmp_path / "log.csv").write_bytes(content)
    log = read_log("table", str(tmp_path / "log.csv"), {"columns": COLUMNS})
    assert log.events["item_id"].to_list() == ["i1", "i3", "i8", "i9", "i10"]
    assert log.events["query"].to_list() == ["a", "b", '5" nails', "fine", "g"]
    assert sorted(line for _, line in reasons(log)) == [3, 5, 6, 7, 8, 11]
    assert accounted(log)


def test_table_missing_column_names_file_column_and_nearest(tmp_path):
    write(tmp_path / "log.csv", "user,item_id,time_stamp\nu,i,1\n")
    with pytest.raises(UserError) as caught:
        read_log("table", str(tmp_path / "log.csv"), {"columns": {"user_id": "user"}})
    message = str(caught.value)
    assert (
        "log.csv" in message
        and "'timestamp'" in message
        and "user, item_id, time_stamp" in message
        and "nearest: 'time_stamp'" in message
    )
    with pytest.raises(UserError, match="did you mean 'timestamp'"):
        read_log("table", str(tmp_path / "log.csv"), {"columns": {"timestamps": "time_stamp"}})
    with pytest.raises(UserError, match="did you mean 'timestamp_unit'"):
        read_log("table", str(tmp_path / "log.csv"), {"timestamp_units": "ms"})


@pytest.mark.parametrize(
    ("unit", "value"),
    [("s", "1714566600"), ("ms", "1714566600123"), ("us", "1714566600123456"), ("ns", "1714566600123456789")],
)
def test_table_units(tmp_path, unit, value):
    write(tmp_path / "log.tsv", f"user_id\titem_id\ttimestamp\nu\ti\t{value}\n")
    log = read_log("table", str(tmp_path / "log.tsv"), {"timestamp_unit": unit})
    assert log.events["timestamp"].to_list() == [1714566600]
    assert read_log("table", str(tmp_path / "log.tsv"), {}).events.equals(log.events)  # recognised
    with pytest.raises(UserError, match="timestamp_unit"):
        read_log("table", str(tmp_path / "log.tsv"), {"timestamp_unit": "ns" if unit == "s" else "s"})


def test_table_iso_times(tmp_path):
    times = [
        "2024-05-01T12:30:00Z", "2024-05-01 12:30:00", "2024-05-01T14:30:00+02:00", "2024-05-01T14:30:00.250+0200",
        "2024-05-01 12:30",
        "2024-05-01", "yesterday",
    ]  # fmt: skip
    write(
        tmp_path / "log.jsonl",
        "".join(json.dumps({"user_id": 1, "item_id": "i", "timestamp": time}) + "\n" for time in times),
    )
    log = read_log("table", str(tmp_path / "log.jsonl"), {"timestamp_unit": "iso"})
    assert log.events["timestamp"].to_list() == [1714566600] * 5 + [1714521600]
    assert list(reasons(log)) == [("log.jsonl", 7)] and log.events["user_id"][0] == "1"


def test_table_folder_with_items_users_and_parquet(tmp_path):
    events = pl.DataFrame(
        {"user_id": ["u1", None], "item_id": [1, 2], "timestamp": pl.Series([1714566600, 5]).cast(pl.Datetime("ms"))}
    )
    events.write_parquet(tmp_path / "b.parquet")
    write(tmp_path / "a.csv", "user_id,item_id,timestamp\nu2,1,7\n")
    write(tmp_path / "things.csv", "sku,title,category,price\n1,Lamp,Home|Lamp,3.5\n2,Cup,,free\n1,Again,,\n")
    write(tmp_path / "people.jsonl", '{"user_id": "u1", "age": 3}\n')
    options = {"items": "things.csv", "users": "people.jsonl", "item_columns": {"item_id": "sku"}}
    log = read_log("table", str(tmp_path), options)
    assert log.events.select("user_id", "item_id", "timestamp").rows() == [("u2", "1", 7), ("u1", "1", 1714566)]
    assert log.items.select("item_id", "title", "category", "price").rows() == [
        ("1", "Lamp", ["Home", "Lamp"], 3.5),
        ("2", "Cup", None, None),
    ]
    assert log.users.rows() == [("u1", 3)]
    assert set(reasons(log)) == {("b.parquet", 2), ("things.csv", 4)} and accounted(log)
    pattern = read_log("table", str(tmp_path / "[ab].*"), {})
    assert pattern.events.height == 2


def test_table_json_lines_with_a_broken_line_and_changing_types(tmp_path):
    write(
        tmp_path / "log.ndjson",
        '{"user_id": 1, "item_id": "i", "timestamp": 5}\n{oops\n{"user_id": "b", "item_id": "i", "timestamp": NaN}\n',
    )
    log = read_log("table", str(tmp_path / "log.ndjson"), {})
    assert log.events.select("user_id", "timestamp").rows() == [("1", 5)] and accounted(log)
    assert sorted(line for _, line in reasons(log)) == [2, 3]


def test_table_zstd(tmp_path):
    lazy = pl.LazyFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [5]})
    try:
        lazy.sink_csv(tmp_path / "log.csv.zst", compression="zstd")
    except TypeError:
        pytest.skip("this polars cannot write zstd text")
    assert read_log("table", str(tmp_path / "log.csv.zst"), {}).events["timestamp"].to_list() == [5]


def test_one_stray_quote_keeps_the_other_lines(tmp_path):
    lines = pl.DataFrame({LINE: [1, 2, 3, 4], RAW: ['a,"b', "c,d", 'e,"f"', 'g,h"']})
    table, bad = split_fields(lines, ["x", "y"], ",", "f", quoted=True)
    assert table.select("x", "y").rows() == [("c", "d"), ("e", "f"), ("g", 'h"')]
    assert bad["line"].to_list() == [1]


def test_read_lines_counts_blank_lines_and_strips_marks(tmp_path):
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfa\r\n\r\nb")
    lines, bad = read_lines(tmp_path / "t")
    assert lines.rows() == [(1, "a"), (3, "b")] and bad.is_empty()


def test_read_log_messages(tmp_path):
    assert {"amazon-2014", "movielens", "table", "simulator"} <= {*READERS, *BY_FILE}
    with pytest.raises(UserError, match="did you mean 'movielens'"):
        read_log("movielense", str(tmp_path), {})
    with pytest.raises(UserError, match="nowhere"):
        read_log("table", str(tmp_path / "nowhere"), {})
    with pytest.raises(UserError, match="needs a path"):
        read_log("table", None, {})
    for reader in ("amazon-2014", "movielens", "table"):
        with pytest.raises(UserError, match=tmp_path.name):
            read_log(reader, str(tmp_path), {})
    with pytest.raises(UserError, match="did you mean 'n_users'"):
        read_log("simulator", None, {"n_user": 3})


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.csv.zst"])
def test_line_batches_are_the_whole_file_whatever_their_size(tmp_path, name):
    text = b'a,b\r\n1,"two\nlines"\n\n2,plain\n3,"x\ny\nz"\n4,end'
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".")[-1], bytes)
    (tmp_path / name).write_bytes(pack(text))
    whole, _ = read_lines(tmp_path / name)
    for size in (8, 12, 20, 1000):
        parts = [lines for lines, _ in line_batches(tmp_path / name, quoted=True, batch_bytes=size)]
        assert pl.concat(parts).equals(whole)
        assert all(sum(part["__raw__"].str.count_matches('"')) % 2 == 0 for part in parts if size > 8)


@pytest.mark.parametrize(("reader", "name", "header"), [
    ("table", "events.csv", "user_id,item_id,timestamp"),
    ("movielens", "ratings.csv", "userId,movieId,rating,timestamp"),
])  # fmt: skip
def test_undecodable_lines_before_the_header_are_counted(tmp_path, monkeypatch, reader, name, header):
    row = "u,i,1" if reader == "table" else "u,i,5,1"
    (tmp_path / name).write_bytes(b"\xff\xfe bad bytes\n" * 3 + f"{header}\n{row}\n".encode())
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 20)
    log = read_log(reader, tmp_path, {})
    assert (log.events.height, log.quarantine["line"].to_list(), log.rows_read) == (1, [1, 2, 3], 4)


@pytest.mark.parametrize(
    "more",
    [[], [{"user_id": "u", "item_id": "i", "timestamp": 7}, {"user_id": "[deleted]", "item_id": 3, "timestamp": 8}]],
)
@pytest.mark.parametrize("bad", [{"user_id": ["a"]}, {"item_id": {"x": 1}}, {"timestamp": [1]}])
def test_lists_in_the_columns_of_json_events(tmp_path, more, bad):
    rows = [*more, {"user_id": "v", "item_id": "j", "timestamp": 9, **bad}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_log("table", tmp_path, {})
    assert log.quarantine["line"].to_list() == [len(rows)] and log.events["user_id"].to_list() == [
        row["user_id"] for row in more
    ]


def test_lists_in_the_columns_of_json_items(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    rows = [
        {"item_id": ["i"]},
        {"item_id": "i", "category": ["a", "b|c"], "price": [1]},
        {"item_id": "j", "category": "d|e", "title": ["t"]},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_log("table", tmp_path, {"events": "log.csv", "items": "items.jsonl"})
    assert log.items["category"].to_list() == [["a", "b|c"], ["d", "e"]] and log.quarantine["line"].to_list() == [1]


def test_parts_with_a_list_here_and_a_text_there():
    parts = [RawLog(users=pl.DataFrame({"user_id": ["a"], "tags": [tags]})) for tags in (["x"], "y", 3, {"k": 1})]
    assert join_parts(parts).users["tags"].to_list() == ['["x"]', "y", "3", '{"k":1}']
