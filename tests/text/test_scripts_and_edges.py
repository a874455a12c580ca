"""Queries of every script and of no sense at all, through BM25, text vectors, synthetic queries, keywords and the whole
search."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.data.queries import category_queries, title_queries, title_words
from genrec.inference.recommender import Recommender
from genrec.retrieval.bm25 import BM25
from genrec.text.tfidf import TfidfEncoder

TITLES = {
    "chinese": ["新款红茶壶 大容量", "红色连衣裙 夏季", "绿茶 茶叶 礼盒", "不锈钢保温杯"],
    "japanese": ["ステンレス水筒 軽量", "緑茶ティーバッグ", "赤いワンピース", "コーヒー豆 深煎り"],
    "thai": ["กาน้ำชาสีแดง", "ชุดเดรสสีแดง", "ชาเขียว", "แก้วเก็บความเย็น"],
    "hindi": ["लाल चाय का बर्तन", "लाल पोशाक", "हरी चाय", "स्टील बोतल"],
    "russian": ["красный чайник", "красное платье", "зелёный чай", "стальная бутылка"],
    "arabic": ["إبريق شاي أحمر", "فستان أحمر صيفي", "شاي أخضر", "زجاجة فولاذ"],
}
QUERIES = {
    "chinese": "红茶",
    "japanese": "緑茶",
    "thai": "ชาเขียว",
    "hindi": "हरी चाय",
    "russian": "зелёный чай",
    "arabic": "شاي أخضر",
}
WANTED = {"chinese": 0, "japanese": 1, "thai": 2, "hindi": 2, "russian": 2, "arabic": 2}


@pytest.mark.parametrize("script", list(TITLES))
def test_bm25_and_text_vectors_find_the_item(script):
    titles = TITLES[script]
    assert BM25().fit(titles).score([QUERIES[script]])[0].argmax() == WANTED[script]
    encoder = TfidfEncoder.fit(titles, 16, 1, 0, 0.5)
    query, items = encoder.encode([QUERIES[script]]), encoder.encode(titles, "item")
    assert (query @ items.T)[0].argmax() == WANTED[script]


def test_synthetic_title_queries_of_scripts_without_spaces_are_parts_of_the_title():
    titles = TITLES["chinese"] + TITLES["japanese"] + ["LED 台灯 台灯 Lamp", "茶", None, "!!"]
    items = pl.DataFrame({"title": titles}, schema={"title": pl.String})
    events = np.repeat(np.arange(len(titles)), 5)
    queries = title_queries(title_words(items), events, np.arange(len(events), dtype=np.uint64) * np.uint64(2654435761))
    for event, query in zip(events, queries, strict=True):
        if titles[event] in ("茶", None, "!!"):
            assert query is None
            continue
        words = query.split(" ")
        assert 1 <= len(words) <= 3 and all(word in titles[event].lower() for word in words), (titles[event], query)
        assert all(len(word) == 2 or word.isascii() for word in words), "a title without spaces is not one word"
    assert len(set(queries.drop_nulls())) > 12


def test_category_queries_keep_names_whole():
    items = pl.DataFrame(
        {"category": [["家居", "茶具"], ["家居", "杯子 保温"], ["家居", None], None]},
        schema={"category": pl.List(pl.String)},
    )
    assert category_queries(items).to_list() == ["茶具", "杯子 保温", None, None]


ODD = [
    "",
    "   ",
    "!?",
    "\x00",
    "\ud800",
    "a" * 100_000,
    "wörd " * 5_000,
    "🫖",
    "\u202egnp.exe",
    "'; DROP TABLE items; --",
    "<script>",
    "%s %n",
    "0",
    "́" * 300,
    "红" * 3_000,
]


@pytest.mark.parametrize("query", ODD, ids=range(len(ODD)))
def test_no_query_breaks_bm25(query):
    scores = BM25().fit(["red lamp", "", "blue cup"]).score([query, "lamp"])
    assert np.isfinite(scores).all() and scores[1].argmax() == 0


@pytest.fixture(scope="module")
def model(trained_run) -> Recommender:
    return Recommender.load(trained_run.folder, "train")


def test_every_odd_query_is_answered_or_refused_in_a_line(model):
    from genrec.errors import UserError

    user = model.dataset.user_ids[0]
    for query in ODD:
        try:
            answers = model.search(query, user, k=3)
        except UserError as error:
            assert len(str(error)) < 200 and "\n" not in str(error)
            continue
        assert len(answers) == 3 and all(np.isfinite(one.score) for one in answers)


def test_what_is_behind_the_read_part_changes_nothing(model):
    head = "lamp " * 60
    one, two = (model.search(head + tail, k=5) for tail in ("", "and something else entirely " * 900))
    assert [answer.item_id for answer in one] == [answer.item_id for answer in two]
