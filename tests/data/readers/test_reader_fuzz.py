"""Every reader over broken files: no exception but ``UserError``, and rows in = rows kept + left out by rule +
quarantined.

Each case is a small valid log in its original layout. Hypothesis damages one to five places of it: bytes, lines,
fields, JSON values, whole files cut off, packed files damaged after packing. Two checks follow, and the second does
not trust the reader:

1. the reader's own account: what it says it read is what it kept, left out or set aside;
2. ``rows_read`` is the number of lines of the files it read, counted here (at most that for quoted CSV, where a record
   may span lines).

A few examples a case run in the suite, always the same ones. ``GENREC_FUZZ_EXAMPLES=5000 pytest
tests/data/test_reader_fuzz.py`` runs as many per case, other ones each time.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrec.data.readers import BY_FILE, PATHLESS_READERS, READERS, read_log
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

EXAMPLES = int(os.environ.get("GENREC_FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 12,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=bool(EXAMPLES),
)


def height(table: pl.DataFrame | None) -> int:
    return 0 if table is None else table.height


def one_table_each(log: RawLog) -> int:
    """Rows kept, where a row of a file is one row of one table."""
    return log.events.height + log.items.height + height(log.users) + height(log.judgments)


def impression_rows(log: RawLog) -> int:
    """KuaiRand and KuaiSAR: a log row is an impression, the events repeat some; a row of the history is a user's."""
    if log.impressions is None:
        return log.items.height + height(log.users)
    history = log.impressions.filter(pl.col("surface") == "history")
    return (
        log.impressions.height - history.height + history["user_id"].n_unique() + log.items.height + height(log.users)
    )


def kuaisearch_rows(log: RawLog) -> int:
    """A search is its row at position 0 (rank: each row); the products of the judgments are no rows of their own."""
    searches = 0 if log.impressions is None else log.impressions.filter(pl.col("position").fill_null(0) == 0).height
    own = log.items.filter(~pl.col("item_id").str.starts_with("relevance-")).height
    return searches + own + height(log.users) + height(log.judgments)


def request_rows(log: RawLog) -> int:
    """Qilin: a row is a request with all its results."""
    requests = log.impressions["request_id"].n_unique() if height(log.impressions) else 0
    return requests + log.items.height + height(log.users) + height(log.judgments)


def person_rows(log: RawLog) -> int:
    """JDsearch: a row is a person with all they did."""
    visible = [log.impressions["user_id"]] if height(log.impressions) else []
    return pl.concat([log.events["user_id"], *visible]).n_unique() + log.items.height


@dataclass
class Case:
    """A valid log: its files, and how its rows are counted. ``headless``: files without a header line. ``lookup``:
    files without rows."""

    reader: str
    files: dict[str, str | bytes]
    options: dict = field(default_factory=dict)
    kept: Callable[[RawLog], int] = one_table_each
    quoted: tuple[str, ...] = ()
    headless: tuple[str, ...] = ()
    lookup: tuple[str, ...] = ()
    path: str = ""
    latin: tuple[str, ...] = ()
    pack: bool = True


def json_lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        pl.DataFrame({"user_id": ["a", "b"], "item_id": [1, 2], "timestamp": [5, 6]}).write_parquet(
            Path(folder) / "t.parquet"
        )
        return (Path(folder) / "t.parquet").read_bytes()


KUAIRAND_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
    "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
KUAIRAND = {
    "log_standard_4_22_to_5_08_pure.csv": KUAIRAND_HEADER
    + "1,10,20220425,0,1650812741436,1,0,0,0,0,0,1,6,49,0,0,0,0,1\n"
    "1,11,20220425,0,1650812741437,0,0,0,0,0,1,0,6,49,0,0,0,0,1\n"
    + "2,10,20220425,5,1650812934945,1,1,0,0,1,0,0,1184,11933,0,0,1,0,4\n",
    "log_random_4_22_to_5_08_pure.csv": KUAIRAND_HEADER
    + "1,12,20220425,0,1650812741999,1,0,0,0,0,0,1,6,49,0,0,0,1,1\n",
    "video_features_basic_pure.csv": 'video_id,author_id,video_type,video_duration,tag\n10,7,NORMAL,87433,"39,68"\n'
    "11,8,AD,,\n12,8,X,5,2\n",
    "user_features_pure.csv": "user_id,user_active_degree,fans_user_num,fans_user_num_range\n"
    '1,full_active,150,"[100,1k)"\n2,x,,0\n',
    "train_sequences_upto_20220424.tsv": "user_id\thistory_len\tlast_time_ms\t"
    "last50_watched_video_ids\tliked_video_ids\tlong_viewed_video_ids\n"
    "1\t3\t1650615878629\t10 11 10\t\t10\n2\t1\t1650615878630\t12\t12\t\n",
}
KUAISAR = {
    "rec_inter.csv": "user_id,item_id,time,timestamp,click,duration_ms,playing_time,like,follow,forward,search\n"
    "1,10,2023-05-22 15:53:20,1684742000123.0,1,45400.0,60792.0,0,0,0,0\n2,11,,1684742001000,0,4,,1,0,1,1\n",
    "src_inter.csv": "user_id,search_session_id,search_session_timestamp,keyword,search_source,item_id,click_cnt,"
    "item_type\n"
    '1,7,1684763932919,"[20, 34, 3]",USER_INPUT,10,2,VIDEO\n1,7,1684763932919,"[20, 34, 3]",USER_INPUT,12,0,USER\n'
    "2,8,1684763992919,[5],,11,1,V\n",
    "item_features.csv": 'item_id,caption,author_id,first_level_category_name_en\n10,"[1, 213]",4,Funny\n'
    "11,[],5,UNKNOWN\n",
    "user_features.csv": "user_id,onehot_feat1\n1,3\n2,0\n",
    "social_network.csv": "user_id,user_follow_id\n1,2\n",
}
SEARCH = {"user_id": 5, "session_id": 1, "time_index": 40, "query": "拖鞋", "split": "train"}
KUAISEARCH = {
    "items.jsonl": json_lines(
        {"item_id": 1, "item_title": "大衣", "brand_name": "b", "category_level1_name": "女装"}, {"item_id": 2}
    ),
    "users.jsonl": json_lines({"user_id": 5, "gender": "M"}, {"user_id": 6}),
    "recall.jsonl": json_lines(
        {**SEARCH, "impressed_item_ids": [1, 2, 3], "clicked_item_ids": [3], "purchased_item_ids": []},
        {**SEARCH, "session_id": 2, "impressed_item_ids": [2], "clicked_item_ids": [], "purchased_item_ids": [2]},
    ),
    "rank.jsonl": json_lines(
        {
            **SEARCH,
            "target_item_id": 2,
            "target_item_price": 5.5,
            "is_clicked": 1,
            "is_purchased": 0,
            "user_statistical_features": {"a": 0.0},
        },
        {**SEARCH, "target_item_id": 3, "is_clicked": 0, "is_purchased": 0},
    ),
    "relevance.jsonl": json_lines(
        {"query": "裙", "item_title": "半裙", "brand": "无", "attr_value": "长裙", "score": 2}
    ),
}
TRIVAGO = [
    line.split("/")
    for line in (
        "user_id/session_id/timestamp/step/action_type/reference/platform/city/device/current_filters/impressions/prices",
        "u/a/1541599500/1/interaction item image/7/FR/Rome/mobile///",
        "u/a/1541599501/2/search for destination/Oslo/FR/Rome/mobile///",
        "u/a/1541599502/3/filter selection/Hotel/FR/Rome/mobile/Hotel//",
        "u/a/1541599503/4/clickout item/8/FR/Rome/mobile//7|8|9/70|80|90",
        "v/b/1541599503/1/search for item/9/FR/Rome/mobile///",
    )
]
ATOMIC = {
    "m.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n2\t7\t3\t50\n1\t7\t5\t40.0\n",
    "m.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "7\tÉté, L'\t1995\tDrama War\n8\tNo\t\t\n",
    "m.user": "user_id:token\tage:token\tgender:token\n1\t24\tM\n",
}
REVIEW = {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1400000000, "overall": 5.0}
RESULT = "{'click': 1.0, 'note_idx': 7, 'page_time': nan, 'position': 1.0, 'search_timestamp': 1732475484.0}"
CASES = {
    "amazon-2014": Case(
        "amazon-2014",
        {
            "reviews_X_5.json": json_lines(REVIEW, {**REVIEW, "asin": "B2"}),
            "meta_X.json": "{'asin': 'B1', 'title': 'It\\'s a \"lamp\"', 'price': 3.5, 'categories': [['Home', "
            "'Lamp']]}\n"
            '{"asin": "B2", "title": "Cup", "description": "For tea."}\n',
        },
        headless=("reviews_X_5.json", "meta_X.json"),
    ),
    "movielens-atomic": Case("movielens", ATOMIC),
    "movielens-csv": Case(
        "movielens",
        {
            "ratings.csv": "userId,movieId,rating,timestamp\r\n2,7,3.0,50\r\n1,7,5.0,40\r\n",
            "movies.csv": 'movieId,title,genres\r\n7,"Été, L\' (1995)",Drama|War\r\n8,No Year,(no genres listed)\r\n',
        },
        {"min_rating": 4},
        quoted=("ratings.csv", "movies.csv"),
    ),
    "movielens-classic": Case(
        "movielens",
        {
            "u.data": "2\t7\t3\t50\n1\t7\t5\t40\n",
            "u.item": f"7|Ete (1995)|01-Jan-1995||http://x|{'|'.join('01' * 9)}|0\n".encode("latin-1"),
            "u.user": "1|24|M|writer|1\n",
        },
        headless=("u.data", "u.item", "u.user"),
        latin=("u.item",),
    ),
    "table-csv": Case(
        "table",
        {
            "log.csv": 'user_id,item_id,timestamp,query\nu1,i1,100,"red, ""big"" lamp"\nu1,i2,101,\nu2,i1,102,"two\n'
            'lines"\n',
            "items.csv": "item_id,title,category,price\ni1,Lamp,Home|Lamp,3.5\ni2,Cup,,free\n",
            "people.jsonl": json_lines({"user_id": "u1", "age": 3}, {"user_id": "u2"}),
        },
        {"items": "items.csv", "users": "people.jsonl", "events": "log.csv"},
        quoted=("log.csv", "items.csv"),
        headless=("people.jsonl",),
        pack=False,
    ),
    "table-tsv-iso": Case(
        "table",
        {"log.tsv": "user_id\titem_id\ttimestamp\nu\ti\t2024-05-01T12:30:00Z\nu\tj\t2024-05-01\n"},
        {"timestamp_unit": "iso"},
        quoted=("log.tsv",),
    ),
    "table-json": Case(
        "table",
        {"log.jsonl": json_lines({"user_id": 1, "item_id": "i", "timestamp": 5, "more": [1]}) * 3},
        headless=("log.jsonl",),
    ),
    "table-parquet": Case("table", {"log.parquet": parquet()}, pack=False),
    "kuairand": Case(
        "kuairand", KUAIRAND, kept=impression_rows, quoted=("video_features_basic_pure.csv", "user_features_pure.csv")
    ),
    "kuairand-all": Case(
        "kuairand",
        KUAIRAND,
        {"logs": "all", "history": True, "min_action": "like"},
        impression_rows,
        quoted=("video_features_basic_pure.csv", "user_features_pure.csv"),
    ),
    "kuaisar": Case(
        "kuaisar", KUAISAR, kept=impression_rows, quoted=tuple(name for name in KUAISAR if name != "social_network.csv")
    ),
    "kuaisearch-recall": Case("kuaisearch", KUAISEARCH, kept=kuaisearch_rows, headless=tuple(KUAISEARCH)),
    "kuaisearch-rank": Case(
        "kuaisearch",
        KUAISEARCH,
        {"requests": "rank", "relevance": False, "min_action": "impression"},
        kuaisearch_rows,
        headless=tuple(KUAISEARCH),
    ),
    "trivago-tsv": Case("trivago", {"trivago_val.tsv": "\n".join(map("\t".join, TRIVAGO)) + "\n"}),
    "trivago-csv": Case(
        "trivago",
        {
            "train.csv": "\n".join(map(",".join, TRIVAGO)) + "\n",
            "item_metadata.csv": "item_id,properties\n7,Bar|WiFi\n8,\n",
        },
        {"min_action": "clickout", "filters": False},
        quoted=("train.csv", "item_metadata.csv"),
    ),
    "amazon-2018": Case(
        "amazon-2018",
        {
            "X_5.json": json_lines({**REVIEW, "verified": True}) * 2,
            "meta_X.json": json_lines({"asin": "B1", "price": "$1", "category": ["a"]}),
        },
        headless=("X_5.json", "meta_X.json"),
    ),
    "amazon-2023": Case(
        "amazon-2023",
        {
            "X.jsonl": json_lines({"user_id": "A", "parent_asin": "B", "timestamp": 1588687728923, "rating": 5.0}) * 2,
            "meta_X.jsonl": json_lines(
                {"parent_asin": "B", "title": "T", "price": 1.2, "categories": ["a"], "details": {"Brand": "V"}}
            ),
        },
        headless=("X.jsonl", "meta_X.jsonl"),
    ),
    "product-search": Case(
        "product-search",
        {
            "train.qrels.txt": "A1_0 0 B1 1 \nA2_1 0 B2 1 \n",
            "test.qrels.txt": "A2_0 0 B1 1 \n",
            "query_text.txt": "red\nblue\n",
            "items.tsv": "asin\tbrand\tcategories\nB1\tV\tHome > Lamp\nB2\t\tHome\n",
        },
        headless=("train.qrels.txt", "test.qrels.txt"),
        lookup=("query_text.txt",),
    ),
    "esci": Case(
        "esci",
        {
            "judgments.tsv": "query\tasin\tgain\nlamp\tB1\t100.000\nlamp\tB2\t0.000\n",
            "products.ndjson": json_lines(
                {"asin": "B1", "title": "Lamp", "category": ["Home"], "price": 3.5}, {"asin": "B2"}
            ),
        },
        headless=("products.ndjson",),
    ),
    "jdsearch": Case(
        "jdsearch",
        {
            "release_data.txt": "1\x182\t11_12\t1.0_0.0\t-1_5\x186\t13_14\tCLICK_ORD\t0_5_9\n3\t11\t0.0\t\t\t\t0\n",
            "product_data.txt": "11\tn\t1\tb\t1\tc\t2\td\t3\te\t4\tf\t9\n12\tn\t1\t\t1\tc\t2\td\t3\te\t4\tf\t9\n",
        },
        kept=person_rows,
        headless=("release_data.txt", "product_data.txt"),
    ),
    "qilin": Case(
        "qilin",
        {
            "search_train.csv": f"query,search_idx,session_idx,user_idx,search_result_details_with_idx\n"
            f'q,1,2,3,"[{RESULT} {RESULT}]"\n',
            "notes.csv": 'note_idx,note_title,note_content,taxonomy1_id,taxonomy2_id,taxonomy3_id\n7,"a, b",c,d,,\n'
            "8,x,y,d,,\n",
            "user_feat.csv": "user_idx,gender,fans_num\n3,f,1.0\n",
        },
        kept=request_rows,
        quoted=("search_train.csv", "notes.csv", "user_feat.csv"),
    ),
}
CASES = {name: case for name, case in CASES.items() if case.reader in (*READERS, *BY_FILE)}

DEEP = "[" * 3000 + "]" * 3000
NASTY = [
    "", " ", "\t", "null", "NaN", "nan", "inf", "-inf", "-1", "0", "2", "1e309", "1e18", "1.5", "9" * 30, "0x10",
    "true", "[]", "[1,",
    "[1, null]", '{"a":1}', '{"a":{"b":[1,{}]}}', '"', '""', "'", "\\", "\\ud800", '"\\ud800"', "\x00", "\x1f", "\r",
    "\ufeff", "é",
    "\U0001f600", "|", ",", "a,b", "x|y", "1970-01-01", "99999-99-99", "__line__", "item_id", "user_id", "timestamp",
    "action",
    "__import__('os')", "{", "}", DEEP, "é" * 5000, "(" * 500,
]  # fmt: skip
NASTY_BYTES = [text.encode() for text in NASTY] + [b"\xff", b"\xed\xa0\x80", b"\xc3", b"\x80\x00"]
JSON_NASTY = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    1e18,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    [],
    [1],
    [None],
    [[1]],
    ["a", 2],
    {},
    {"a": [1]},
    "\ud800",
    "9" * 30,
]
JSON_NASTY += [reduce(lambda inner, _: [inner], range(600), 1)]
Edit = tuple[int, int, int, int]
EDITS = st.lists(
    st.tuples(st.integers(0, 13), st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000)),
    min_size=1,
    max_size=5,
)


def edited(content: bytes, edit: Edit) -> bytes:
    """The content with one edit; the numbers of the edit choose what and where."""
    kind, a, b, c = edit
    if kind < 5:
        return edited_bytes(content, kind, a, b, NASTY_BYTES[c % len(NASTY_BYTES)])
    lines = content.split(b"\n")
    here, there = a % len(lines), b % len(lines)
    if kind == 5:
        del lines[here]
    elif kind == 6:
        lines.insert(there, lines[here])
    elif kind == 7:
        lines[here], lines[there] = lines[there], lines[here]
    elif kind == 8:
        lines.insert(here, NASTY_BYTES[c % len(NASTY_BYTES)])
    elif kind == 9:
        lines[here] += lines[there]
    elif kind == 10:
        lines[here] = edited_json(lines[here], b, c)
    else:
        lines[here] = edited_fields(lines[here], kind, b, c)
    return b"\n".join(lines)


def edited_bytes(content: bytes, kind: int, a: int, b: int, nasty: bytes) -> bytes:
    start = a % (len(content) + 1)
    end = start + b % 12
    if kind == 0:
        return content[:start] + content[end:]
    if kind == 1:
        return content[:start] + nasty + content[start:]
    if kind == 2:
        return content[:start] + nasty + content[end:]
    if kind == 3:
        return content[:start] + bytes([b % 256]) + content[start + 1 :]
    return content[:start]


def edited_fields(line: bytes, kind: int, b: int, c: int) -> bytes:
    """One field removed or doubled, swapped with another, or replaced; whatever separates fields here."""
    separator = max((b"\t", b",", b"|", b" "), key=line.count)
    fields = line.split(separator)
    here, there = b % len(fields), c % len(fields)
    if kind == 11:
        fields[here : here + 1] = [fields[here]] * (c % 2 * 2)
    elif kind == 12:
        fields[here], fields[there] = fields[there], fields[here]
    else:
        fields[here] = NASTY_BYTES[c % len(NASTY_BYTES)]
    return separator.join(fields)


def edited_json(line: bytes, b: int, c: int) -> bytes:
    """One value of a JSON object replaced by a value of another type; a field of a line that is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not row:
        return edited_fields(line, 13, b, c)
    row[list(row)[b % len(row)]] = JSON_NASTY[c % len(JSON_NASTY)]
    return json.dumps(row).encode()


def lines_of(content: bytes, latin: bool) -> int:
    """Lines that hold something, an undecodable one included; a byte order mark at the start is nothing."""
    texts = []
    for piece in content.split(b"\n"):
        try:
            texts.append(piece.decode("latin-1" if latin else "utf-8"))
        except UnicodeDecodeError:
            texts.append("?")
    texts[0] = texts[0].removeprefix("\ufeff")
    return int((pl.Series(texts, dtype=pl.String).str.strip_suffix("\r").str.strip_chars() != "").sum())


def expected_rows(case: Case, contents: dict[str, bytes]) -> tuple[int, int]:
    """The fewest and most data rows that the files can hold."""
    least = most = 0
    for name, content in contents.items():
        lines = lines_of(content, name in case.latin)
        if name in case.lookup:
            most += lines  # its lines are no rows, but undecodable ones are put into quarantine
            continue
        rows = max(lines - (name not in case.headless), 0)
        most += rows
        # A quoted record may span lines, so a file with quotes may hold fewer rows than lines.
        least += rows if name not in case.quoted or b'"' not in content else 0
    return least, most


def read(case: Case, folder: Path) -> RawLog:
    actual = read_log(case.reader, folder / case.path if case.path else folder, dict(case.options))
    return actual if isinstance(actual, RawLog) else join_parts(actual)


def check(case: Case, contents: dict[str, bytes], packing: int, where: int) -> RawLog | None:
    """Write the files, read them and check the account; None when the reader refused them with a ``UserError``."""
    with tempfile.TemporaryDirectory() as folder:
        damaged_pack = False
        for index, (name, content) in enumerate(contents.items()):
            if case.pack and packing and index == where % len(contents):
                content = gzip.compress(content, mtime=0)
                if packing == 2:
                    damaged_pack = True
                    content = edited_bytes(content, where % 5, where, where // 7, b"\x00\xff")
                name += ".gz"
            (Path(folder) / name).write_bytes(content)
        try:
            log = read(case, Path(folder))
        except UserError as error:
            assert "\n" not in str(error).strip(), "a message is one line"
            return None
    accounted = case.kept(log) + log.quarantine.height + sum(log.filtered.values())
    assert log.rows_read == accounted, f"{log.rows_read} rows read, {accounted} accounted for"
    if not damaged_pack and not any(name.endswith(".parquet") for name in contents):
        least, most = expected_rows(case, contents)
        assert least <= log.rows_read <= most, f"{log.rows_read} rows read, {least} to {most} in the files"
    return log


def as_bytes(case: Case) -> dict[str, bytes]:
    return {name: content.encode() if isinstance(content, str) else content for name, content in case.files.items()}


def test_every_reader_has_a_case():
    assert {case.reader for case in CASES.values()} == {*READERS, *BY_FILE} - {*PATHLESS_READERS}


@pytest.mark.parametrize("name", CASES)
def test_the_undamaged_log_is_kept_whole(name):
    log = check(CASES[name], as_bytes(CASES[name]), 0, 0)
    assert log is not None and log.quarantine.is_empty() and CASES[name].kept(log) > 1


@pytest.mark.parametrize("name", CASES)
def test_damage_is_refused_or_accounted_for(name):
    case, reached = CASES[name], []

    @FUZZ
    @given(st.integers(0, 100), EDITS, st.sampled_from([0, 0, 0, 1, 2]), st.integers(0, 10_000), st.booleans())
    def run(which: int, edits: list[Edit], packing: int, where: int, small: bool) -> None:
        contents = as_bytes(case)
        target = list(contents)[which % len(contents)]
        contents[target] = reduce(edited, edits, contents[target])
        usual, text_lines.BATCH_BYTES = text_lines.BATCH_BYTES, 64 if small else text_lines.BATCH_BYTES
        try:
            reached.append(check(case, contents, packing, where))
        finally:
            text_lines.BATCH_BYTES = usual

    run()
    # Damage that is always refused, or never noticed, would test nothing.
    assert any(log is not None for log in reached) and any(log is None or log.quarantine.height for log in reached)


def test_the_edits_differ():
    """A guard against edits that change nothing, with which the test above would pass for the wrong reason."""
    content = b'a,b,c\n1,2,3\n{"d": 4}\n'
    texts = {edited(content, (kind, 4, 7, 20)) for kind in range(14)}
    assert len(texts - {content}) >= 12
