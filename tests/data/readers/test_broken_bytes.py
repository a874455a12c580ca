"""Readers of published data over files with random damage: a clear error or a full account, never a traceback or a lost
row."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from genrec.data.readers import read_log
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

AMAZON_2018 = {
    "X_5.json": '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1400000000, "overall": 5.0, "verified": true}\n'
    * 3,
    "meta_X.json": '{"asin": "B1", "title": "T", "price": "$1.20", "category": ["a", "b"], "description": ["x"]}\n'
    '{"asin": "B2"}\n',
}
AMAZON_2023 = {
    "X.jsonl": '{"user_id": "A1", "parent_asin": "B1", "timestamp": 1588687728923, "rating": 5.0, '
    '"verified_purchase": true}\n' * 3,
    "Y.csv": "user_id,parent_asin,rating,timestamp\nA1,B1,5.0,1588687728923\nA2,B1,4.0,1588687728924\n",
    "meta_X.jsonl": '{"parent_asin": "B1", "price": 1.2, "categories": ["a"], "details": {"Brand": "V"}}\n'
    '{"parent_asin": "B2"}\n',
}
PRODUCT_SEARCH = {
    "train.qrels.txt": "A1_0 0 B1 1 \nA1_1 0 B1 1 \nA2_1 0 B2 1 \n",
    "test.qrels.txt": "A2_0 0 B1 1 \n",
    "query_text.txt": "red lamp\nblue cup\n",
    "items.tsv": "asin\tbrand\tcategories\nB1\tV\tHome > Lamp\nB2\t\tHome\n",
    "train_review_id.txt": "line_1\nline_2\n",
}
ESCI = {
    "judgments.tsv": "query\tasin\tgain\nlamp\tB1\t100.000\nlamp\tB2\t0.000\n",
    "products.ndjson": '{"asin": "B1", "title": "Lamp", "category": ["Home"], "price": 3.5}\n'
    '{"asin": "B2", "title": "Cup"}\n',
    "examples.csv": 'query_id,query,product_id,product_locale,esci_label,split\n7,"big, red",B1,us,E,train\n'
    "7,x,B2,es,S,test\n",
}
JDSEARCH = {
    "release_data.txt": "1\x182\t11_12\t1.0_0.0\t-1_5\x186\t13_14\tCLICK_ORD\t0_5_9\n3\t11\t0.0\t\t\t\t0\n",
    "product_data.txt": "11\tn\t1\tb\t1\tc\t2\td\t3\te\t4\tf\t9\n12\tn\t1\t\t1\tc\t2\td\t3\te\t4\tf\t9\n",
}
RESULT = "{'click': 1.0, 'note_idx': 7, 'page_time': nan, 'position': 1.0, 'search_timestamp': 1732475484.0}"
QILIN = {
    "search_train.csv": f'query,search_idx,session_idx,user_idx,search_result_details_with_idx\nq,1,2,3,"[{RESULT}\n'
    f' {RESULT}]"\n',
    "search_test.csv": f'query,search_idx,session_idx,user_idx,search_result_details_with_idx\nq,2,2,3,"[{RESULT}]"\n',
    "notes.csv": 'note_idx,note_title,note_content,taxonomy1_id,taxonomy2_id,taxonomy3_id\n7,"a, b",c,d,,\n8,x,"two\n'
    'lines",d,,\n',
    "user_feat.csv": "user_idx,gender,fans_num\n3,f,1.0\n",
    "search.test.qrels.csv": "qid,pid\n0,7\n",
}
LOGS = {
    "amazon-2018": AMAZON_2018,
    "amazon-2023": AMAZON_2023,
    "product-search": PRODUCT_SEARCH,
    "esci": ESCI,
    "jdsearch": JDSEARCH,
    "qilin": QILIN,
}


def kept(reader: str, log: RawLog) -> int:
    """Rows of the files that are in the tables. A row of Qilin's requests and of JDsearch's behaviour makes several
    rows."""
    rows = log.items.height + sum(table.height for table in (log.users, log.judgments) if table is not None)
    if reader == "qilin":
        return rows + (log.impressions["request_id"].n_unique() if log.impressions is not None else 0)
    if reader == "jdsearch":
        return rows + len(
            {*log.events["user_id"], *(log.impressions["user_id"] if log.impressions is not None else ())}
        )
    return rows + log.events.height


def read(reader: str, folder: Path) -> RawLog:
    log = join_parts(read_log(reader, folder, {}))
    assert log.rows_read == kept(reader, log) + log.quarantine.height + sum(log.filtered.values())
    return log


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content after one to four random edits: bytes changed, removed, inserted, or a line twice."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0 and position < len(data):
            data[position] = rng.randrange(256)
        elif kind == 1:
            del data[position : position + rng.randint(1, 8)]
        elif kind == 2:
            data[position:position] = rng.choice(
                [b'"', b"\n", b",", b"\t", b"_", b"[", b"{}", b"null", b"\xff\xfe", b"NaN", b"-1", b"\x00", b"'"]
            )
        else:
            lines = data.split(b"\n")
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            data = bytearray(b"\n".join(lines))
    return bytes(data)


@pytest.mark.parametrize("reader", LOGS)
def test_intact_files_are_kept_whole(reader, tmp_path):
    for name, text in LOGS[reader].items():
        (tmp_path / name).write_bytes(text.encode())
    log = read(reader, tmp_path)
    assert log.quarantine.is_empty() and log.rows_read > 0


@pytest.mark.parametrize("reader", LOGS)
def test_damage_is_accounted_for(reader, tmp_path, monkeypatch):
    rng = random.Random(7)
    refused = 0
    for trial in range(60):
        folder = tmp_path / str(trial)
        folder.mkdir()
        target = rng.choice(list(LOGS[reader]))
        for name, text in LOGS[reader].items():
            content = text.encode()
            (folder / name).write_bytes(damaged(content, rng) if name == target else content)
        monkeypatch.setattr(text_lines, "BATCH_BYTES", rng.choice([300, 1 << 20]))
        try:
            refused += read(reader, folder).quarantine.height
        except UserError:
            continue
    assert refused > 0  # damage that nothing ever notices would make this test worthless
