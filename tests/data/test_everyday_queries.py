"""Synthetic queries of everyday kinds: what each kind is, and which of them training never sees."""

from __future__ import annotations

import numpy as np
import polars as pl

from genrec.data.dataset import TRAIN
from genrec.data.everyday_queries import EVERYDAY, HELD_OUT, TRAINED, EverydayQueries
from genrec.data.queries import mix

ITEMS = [
    {"item_id": f"i{number}", "title": title, "brand": brand, "category": ["Shop", leaf], "colour": colour}
    for number, (title, brand, leaf, colour) in enumerate(
        [
            ("Golden Garden Lantern", "Lumina", "Lamps", "red"),
            ("Silver Kitchen Kettle", None, "Kettles", "blue"),
            ("Wooden Dining Table", "Oakly", "Tables", None),
            ("Cup", "Oakly", "Cups", "green"),
        ]
    )
]


def test_each_kind_is_made_of_the_items_words():
    maker = EverydayQueries(pl.DataFrame(ITEMS))
    items = np.tile(np.arange(4), 50)
    draws = mix(np.arange(200, dtype=np.uint64))
    made = {kind: maker.queries(kind, items, draws).to_list() for kind in EVERYDAY}
    assert made == {kind: maker.queries(kind, items, draws).to_list() for kind in EVERYDAY}
    titles = [item["title"].lower().split() for item in ITEMS]
    for event, item in enumerate(items.tolist()):
        words = titles[item]
        assert made["word"][event] in words
        assert made["brand"][event] in ("lumina lamps", None, "oakly tables", "oakly cups")
        assert made["attribute"][event] == (
            None if ITEMS[item]["colour"] is None else f"{ITEMS[item]['colour']} {ITEMS[item]['category'][-1].lower()}"
        )
        prefix, typo, joined = (made[kind][event] for kind in HELD_OUT)
        if item == 3:  # one short word can be neither cut, misspelt nor joined
            assert prefix is typo is joined is None
            continue
        *whole, last = prefix.split()
        assert set(whole) < set(words) and len(last) >= 2 and last not in words
        assert any(word.startswith(last) for word in words)
        assert sum(word not in words for word in typo.split()) == 1
        assert any(left + right in joined for left in words for right in words)
    assert len(set(made["prefix"])) > 10 and len(set(made["typo"])) > 10


def test_training_never_sees_the_held_out_kinds(prepare_table):
    rng = np.random.default_rng(0)
    events = [
        {"user_id": f"u{user}", "item_id": f"i{rng.integers(4)}", "timestamp": 100 * user + step}
        for user in range(60)
        for step in range(6)
    ]
    data = prepare_table(events, ITEMS, "queries.synthetic=[everyday]", "queries.share=1.0")
    table = data.heldout_queries
    assert set(table["kind"]) == set(EVERYDAY)
    assert not table["event"].is_duplicated().any()  # one query per held-out event
    maker = EverydayQueries(data.item_table)
    words = set(maker.words["word"]) | set(maker.brand.drop_nulls())
    words |= {f"{value} {leaf}" for value in maker.attributes[0] for leaf in maker.leaf.drop_nulls()}
    trained = np.unique(data.queries[(data.split == TRAIN) & (data.queries >= 0)])
    assert len(trained) and {data.query_texts[query] for query in trained.tolist()} <= words
    assert (data.queries[data.split == TRAIN] >= 0).mean() > 0.7
    assert TRAINED + HELD_OUT == EVERYDAY
