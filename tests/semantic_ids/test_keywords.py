"""Core keywords: columns first, longest match, nothing matched inside a word, and vectors joined as the paper says."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.data.schema import ITEM_SCHEMA, conform
from genrec.errors import UserError
from genrec.semantic_ids.keyword_mining import display_form, mine, normal_form
from genrec.semantic_ids.keyword_types import ATTRIBUTES, COLUMN_TYPES, type_of
from genrec.semantic_ids.keywords import PER_TEXT, KeywordDictionary, fuse, structured_keywords


def table(rows: list[dict]) -> pl.DataFrame:
    return conform(
        pl.DataFrame(
            [{"item_id": str(position), **row} for position, row in enumerate(rows)], infer_schema_length=None
        ),
        ITEM_SCHEMA,
        "test",
    )


def catalogue() -> pl.DataFrame:
    """Polka dot dresses, running shoes by Acme, tea: each in several items, with noise words around."""
    rows = []
    for number in range(12):
        filler = ["lovely", "fine", "great", "good"][number % 4]
        rows.append(
            {
                "title": f"{filler} polka dot dress for women",
                "brand": "Dotty",
                "category": ["Shop", "Clothing", "Dresses"],
                "price": 30.0,
            }
        )
        rows.append(
            {
                "title": f"Acme running shoes, {filler} red",
                "brand": "Acme",
                "category": ["Shop", "Shoes"],
                "price": 70.0,
            }
        )
        rows.append(
            {
                "title": f"running water bottle {filler}",
                "brand": None,
                "category": ["Shop", "Bottles & Flasks"],
                "price": None,
            }
        )
        rows.append(
            {"title": f"{filler} shoelaces black", "brand": "Acme", "category": ["Shop", "Shoes"], "price": 3.0}
        )
    return table([*rows, *[{"title": f"object{number} thing{number}", "category": ["Shop"]} for number in range(30)]])


@pytest.fixture(scope="module")
def items():
    return catalogue()


@pytest.fixture(scope="module")
def dictionary(items):
    return KeywordDictionary.build(items)


def words_of(dictionary: KeywordDictionary, matches) -> list[dict[str, str]]:
    table = dictionary.as_table(matches, pl.Series("row", np.arange(matches.shape[0])))
    return [
        dict(table.filter(pl.col("row") == row).select("keyword", "type").iter_rows())
        for row in range(matches.shape[0])
    ]


def test_normal_form():
    texts = pl.Series(["Red Shoes, new", "Women's 8.5 oz", "跑步鞋 Pro", "", None])
    assert normal_form(texts).to_list() == [" red shoes | new ", " womens 8.5 oz ", " 跑 步 鞋 pro ", "  ", "  "]
    assert display_form(pl.Series(["跑 步 鞋", "red shoes"])).to_list() == ["跑步鞋", "red shoes"]


def test_columns_give_their_types():
    rows = [{"brand": "L'Oréal Paris", "category": ["Beauty", "Hair & Scalp", "Women"], "price": 12.5,
    "color": "Navy/White",
             "Material": ["cotton"],
             "season": None, "image": "http://x/y.jpg"}]  # fmt: skip
    actual = structured_keywords(table(rows)).select("keyword", "type").rows()
    assert actual == [("l oréal paris", "brand"), ("women", "audience"), ("hair", "entity"), ("scalp", "entity"),
    ("beauty", "entity"),
                     ("navy", "colour"), ("white", "colour"), ("cotton", "material"),
                     ("price 10 to 25", "price")]  # fmt: skip


@pytest.mark.parametrize(
    ("price", "band"), [(0.0, "price 0 to 5"), (5.0, "price 5 to 10"), (99_999.0, "price 10000 and more")]
)
def test_price_bands(price, band):
    assert structured_keywords(table([{"price": price}]))["keyword"].to_list() == [band]


@pytest.mark.parametrize("price", [None, float("nan"), -1.0, float("inf")])
def test_no_price_no_band(price):
    assert not len(structured_keywords(table([{"price": price}, {"price": price}]).cast({"price": pl.Float64})))


def test_mining_keeps_groups_that_hold_together(items):
    actual = mine(
        items["title"], normal_form(items["brand"]).str.strip_chars(" "), pl.Series(["dresses", "shoes"]), 3, 0
    )
    kinds = dict(actual.select("keyword", "type").iter_rows())
    assert "polka dot dress" in kinds and "polka" not in kinds and "polka dot" not in kinds  # parts of one longer group
    assert (
        kinds["running shoes"] == "entity"
        if "running shoes" in kinds
        else kinds["acme running shoes"] in ("entity", "series")
    )
    assert "for" not in kinds and not any(keyword.startswith("for ") or keyword.endswith(" for") for keyword in kinds)
    assert not any("|" in keyword for keyword in kinds) and "shoes red" not in kinds  # a comma ends a phrase
    assert actual.equals(
        mine(items["title"], normal_form(items["brand"]).str.strip_chars(" "), pl.Series(["dresses", "shoes"]), 3, 0)
    )


def test_item_counts_of_groups_equal_a_slow_count():
    titles = pl.Series(
        ["a1 b2 c3", "b2 c3 a1 b2", "b2 c3", "x9, b2", "b2 x9", "c3 b2"] * 3 + [f"n{number}" for number in range(90)]
    )
    actual = dict(
        mine(titles, pl.Series([""] * len(titles)), pl.Series([], dtype=pl.String), 1, 0)
        .select("keyword", "items")
        .iter_rows()
    )
    assert len(actual) > 92 and any(" " in keyword for keyword in actual)
    for keyword, count in actual.items():
        assert count == sum(f" {keyword} " in f" {title.replace(',', ' |')} " for title in titles)


def test_longest_match_and_whole_words(dictionary, items):
    texts = ["polka dot dress", "dress", "repolka dot dresses", "RUNNING shoes", "running, shoes", "nothing", ""]
    actual = words_of(dictionary, dictionary.of_texts(texts))
    assert set(actual[0]) == {"polka dot dress"} and actual[5] == actual[6] == {}
    assert not any("polka" in keyword for keyword in actual[2])
    assert "running shoes" not in actual[4] and all(len(row) <= PER_TEXT for row in actual)
    slow = set(dictionary.table.filter("mined")["keyword"])
    for text, row in zip(texts[:3], actual, strict=False):
        inside = {keyword for keyword in slow if f" {keyword} " in normal_form(pl.Series([text]))[0]}
        assert set(row) == {
            keyword
            for keyword in inside
            if not any(keyword != other and f" {keyword} " in f" {other} " for other in inside)
        }


def test_items_take_columns_first_and_text_after(dictionary, items):
    actual = words_of(dictionary, dictionary.of_items(items))
    assert actual[0]["dotty"] == "brand" and actual[0]["dresses"] == "entity" and actual[0]["polka dot dress"]
    assert actual[0]["price 25 to 50"] == "price" and "shop" not in actual[0]  # said of every item: tells nobody apart
    assert actual[2]["bottles"] == "entity" and actual[2]["flasks"] == "entity"
    assert all(kind in ATTRIBUTES for row in actual for kind in row.values()) and max(map(len, actual)) <= PER_TEXT
    alone = words_of(dictionary, dictionary.of_items(items[:1]))  # a new item does not depend on its batch
    assert alone == actual[:1]


def test_clicked_pairs_rank_the_keywords_they_share(items):
    plain = KeywordDictionary.build(items)
    clicked = pl.DataFrame({"query": ["shoelaces black"] * 5 + ["red"], "item": [3] * 5 + [1]})
    ranked = KeywordDictionary.build(items, clicked)
    assert set(ranked.table["keyword"]) == set(plain.table["keyword"])
    best = ranked.table["keyword"].to_list()
    assert "black" in best[0] or "shoelaces" in best[0]
    assert best != plain.table["keyword"].to_list()


def test_a_brand_that_is_a_common_word_is_not_matched_in_text():
    rows = [
        {"title": f"simple {thing} number {number}", "brand": "Simple" if number == 0 else "Acme"}
        for number in range(10)
        for thing in ("lamp", "desk")
    ]
    dictionary = KeywordDictionary.build(table([*rows, *[{"title": f"other thing {n}"} for n in range(90)]]))
    row = dictionary.table.filter(pl.col("keyword") == "simple")
    assert row["structured"].to_list() == [True] and row["mined"].to_list() == [False]
    assert words_of(dictionary, dictionary.of_texts(["simple lamp"]))[0].get("simple") is None


def test_chinese():
    rows = [{"title": word + thing} for word in ("红色", "轻便", "透气") for thing in ("跑步鞋", "皮包", "雨伞")] * 2
    rows += [{"title": chr(0x5000 + number) + chr(0x6000 + number)} for number in range(40)]
    dictionary = KeywordDictionary.build(table(rows))
    actual = words_of(dictionary, dictionary.of_texts(["我要红色跑步鞋"]))[0]
    assert "跑步鞋" in actual and actual["红色"] == "colour"


def test_new_items_and_round_trip(dictionary, tmp_path):
    dictionary.save(tmp_path)
    again = KeywordDictionary.load(tmp_path)
    new = table(
        [{"title": "polka dot dress, blue", "brand": "Nobody Knows", "category": ["Shop", "Dresses"]}, {"title": None}]
    )
    assert words_of(again, again.of_items(new)) == words_of(dictionary, dictionary.of_items(new))
    actual = words_of(again, again.of_items(new))
    assert "polka dot dress" in actual[0] and "nobody knows" not in actual[0] and actual[1] == {}
    (tmp_path / "keyword_dictionary.parquet").unlink()
    with pytest.raises(UserError, match="keyword_dictionary.parquet is missing"):
        KeywordDictionary.load(tmp_path)


@pytest.mark.parametrize("rows", [[{"title": None}], [{"title": ""}, {"title": "!!!"}], [{"title": "tea"}]])
def test_catalogues_that_say_nothing(rows):
    dictionary = KeywordDictionary.build(table(rows))
    assert (
        dictionary.of_items(table(rows)).shape == (len(rows), len(dictionary)) and dictionary.of_texts(["tea"]).nnz == 0
    )


def test_fusion_equals_the_formula(dictionary):
    rng = np.random.default_rng(0)
    vectors, words = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (rng.normal(size=(3, 6)), rng.normal(size=(len(dictionary), 6)))
    )
    words[0] = 0  # a keyword the encoder does not know is not counted
    matches = np.zeros((3, len(dictionary)), bool)
    matches[0, [0, 1, 2]] = matches[1, 0] = True
    actual = fuse(vectors, type(dictionary.of_texts([""]))(matches), words)
    mean = 0.5 * vectors[0] + 0.5 * (words[1] + words[2]) / 2
    np.testing.assert_allclose(actual[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(actual[1:], vectors[1:], atol=1e-6)


@pytest.mark.parametrize(
    ("phrase", "kind"),
    [("16 oz", "specification"), ("1875 watt", "specification"), ("spf 30", "specification"), ("1000xm4", "model"),
     ("waterproof", "function"),
     ("anti aging", "function"), ("red", "colour"), ("stainless steel", "material"), ("polka dot", "pattern"),
     ("unheard", None)],
)  # fmt: skip
def test_words_give_types(phrase, kind):
    assert type_of(phrase.split()) == kind


def test_there_are_eighteen_types():
    assert len(set(ATTRIBUTES)) == 18 and set(COLUMN_TYPES.values()) < set(ATTRIBUTES)


def test_items_cut_in_blocks_give_the_same_keywords(monkeypatch):
    items, clicked = catalogue(), pl.DataFrame({"query": ["red shoes", "tea"], "item": [1, 2]})
    whole = KeywordDictionary.build(items, clicked)
    monkeypatch.setattr("genrec.semantic_ids.keywords._ITEM_BLOCK", 7)
    blocks = KeywordDictionary.build(items, clicked)
    assert blocks.table.equals(whole.table)
    for limit in (None, 2):
        cut = blocks._in_columns(items, limit)
        monkeypatch.setattr("genrec.semantic_ids.keywords._ITEM_BLOCK", 1 << 16)
        assert (cut != whole._in_columns(items, limit)).nnz == 0 and cut.nnz
        monkeypatch.setattr("genrec.semantic_ids.keywords._ITEM_BLOCK", 7)
