"""Text vectors: unit length, reloadable, and silent where nothing is known."""

from __future__ import annotations

import json
import re

import numpy as np
import polars as pl
import pytest

from genrec.config.schema import TextConfig
from genrec.data.schema import ITEM_SCHEMA
from genrec.text import tfidf
from genrec.text.encoder import TOKEN_PATTERN, item_texts
from genrec.text.factory import fit_encoder, load_encoder
from genrec.text.tfidf import TfidfEncoder

TEXTS = [
    "red running shoes",
    "blue running shoes",
    "red leather bag",
    "blue leather bag",
    "green tea",
    "black tea",
    "red tea pot",
]


@pytest.fixture(scope="module")
def encoder():
    return TfidfEncoder.fit(TEXTS, dim=5, min_df=1, seed=0)


def test_vectors_are_unit_and_near_for_like_texts(encoder):
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (7, 5) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alike = vectors @ vectors.T
    assert alike[0, 1] > alike[0, 4] + 0.3 and alike[4, 5] > alike[4, 3] + 0.1


def test_round_trip(encoder, tmp_path):
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    texts = [*TEXTS, "red tea shoes", "nothing known", ""]
    assert np.array_equal(again.encode(texts), encoder.encode(texts)) and again.dim == encoder.dim
    assert json.loads((tmp_path / "vocabulary.json").read_text())["words"] == encoder.vocabulary


def test_the_same_seed_gives_the_same_encoder(encoder):
    again = TfidfEncoder.fit(TEXTS, dim=5, min_df=1, seed=0)
    assert np.array_equal(again.components, encoder.components) and again.vocabulary == encoder.vocabulary


@pytest.mark.parametrize("text", ["", "zebra quantum", "茶", "!!! ...", "\0"])
def test_unknown_words_give_the_zero_vector(encoder, text):
    vectors = encoder.encode([text, "red bag"])
    assert (vectors[0] == 0).all() and np.linalg.norm(vectors[1]) == pytest.approx(1, abs=1e-5)


def test_a_text_does_not_depend_on_its_neighbours(encoder):
    np.testing.assert_allclose(encoder.encode(["tea pot"])[0], encoder.encode([*TEXTS, "tea pot"])[-1], atol=1e-6)


def test_case_and_order_of_texts(encoder):
    np.testing.assert_allclose(encoder.encode(["RED Bag"]), encoder.encode(["red bag"]), atol=1e-7)
    assert encoder.encode([]).shape == (0, 5)


def test_chinese(tmp_path):
    texts = ["红色跑步鞋", "蓝色跑步鞋", "红色皮包", "绿茶", "红茶", "运动手表 Pro"]
    encoder = TfidfEncoder.fit(texts, dim=4, min_df=1, seed=0)
    assert "跑 步" in encoder.vocabulary and "pro" in encoder.vocabulary and "跑步" not in " ".join(encoder.vocabulary)
    actual = encoder.encode(["跑步鞋"]) @ encoder.encode(texts).T
    assert set(np.argsort(-actual[0])[:2]) == {0, 1} and np.linalg.norm(actual) > 0.5
    encoder.save(tmp_path)
    assert np.array_equal(load_encoder(tmp_path).encode(texts), encoder.encode(texts))


@pytest.mark.parametrize("texts", [["", "", ""], ["", "!!", "  "], [""]])
def test_a_catalogue_without_words(texts, tmp_path):
    encoder = TfidfEncoder.fit(texts, dim=8, min_df=2, seed=0, max_terms=10)
    assert (encoder.encode(texts) == 0).all() and (encoder.encode(["red shoes"]) == 0).all() and encoder.dim == 1
    encoder.save(tmp_path)
    assert (load_encoder(tmp_path).encode(["red shoes"]) == 0).all()


@pytest.mark.parametrize("texts", [["tea"], ["tea", "tea"], ["tea", ""], ["green tea", "black tea"]])
def test_tiny_catalogues(texts):
    encoder = TfidfEncoder.fit(texts, dim=8, min_df=2, seed=0, max_terms=10)
    vectors = encoder.encode(texts)
    assert np.isfinite(vectors).all() and np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)


def test_dim_shrinks_to_what_the_texts_carry():
    assert TfidfEncoder.fit(TEXTS, dim=300, min_df=1, seed=0).dim == len(TEXTS) - 1


def test_item_texts_join_what_there_is():
    schema = {name: dtype for name, dtype in ITEM_SCHEMA.items() if name != "price"}
    rows = [
        {"item_id": "a", "title": "Bag", "text": "soft", "brand": "Acme", "category": ["Home", "Bags"]},
        {"item_id": "b", "title": None, "text": None, "brand": None, "category": None},
        {"item_id": "c", "title": "Pot", "text": None, "brand": None, "category": ["Home", None]},
    ]
    texts = item_texts(pl.DataFrame(rows, schema=schema))
    assert [text.split() for text in texts] == [["Bag", "Acme", "Home", "Bags", "soft"], [], ["Pot", "Home"]]


def catalogue(rows):
    schema = {name: ITEM_SCHEMA[name] for name in ("item_id", "title", "text", "brand", "category")}
    empty = dict.fromkeys(schema)
    return pl.DataFrame([empty | row for row in rows], schema=schema)


def test_a_word_of_a_long_text_counts_less_than_one_of_the_title(tmp_path):
    rows = [{"title": text, "text": "tea"} for text in TEXTS[:4]] + [{"title": text} for text in TEXTS[4:]]
    items = catalogue(rows)
    config = TextConfig(dim=7)
    encoder = fit_encoder(config, items, 0)
    title, text = encoder.words.weigh(["red tea", "red"], ["", "tea"])[:, encoder.vocabulary.index("tea")].toarray()
    assert 0 < text < 0.5 * title
    whole = encoder.encode(["red running shoes tea"])[0]
    assert encoder.encode_items(items)[0] @ encoder.encode(TEXTS[:1])[0] > whole @ encoder.encode(TEXTS[:1])[0] + 0.01
    encoder.save(tmp_path)
    assert np.array_equal(load_encoder(tmp_path).encode_items(items), encoder.encode_items(items))
    description = json.loads((tmp_path / "encoder.json").read_text())
    del description["body_weight"]  # as earlier versions wrote it
    (tmp_path / "encoder.json").write_text(json.dumps(description))
    earlier = load_encoder(tmp_path)
    np.testing.assert_allclose(earlier.encode_items(items), earlier.encode(item_texts(items)), atol=1e-6)


def test_without_long_texts_items_are_encoded_as_their_text_and_a_text_alone_is_a_head():
    items = catalogue([{"title": text, "brand": "Acme", "category": ["Goods"]} for text in TEXTS])
    encoder = fit_encoder(TextConfig(dim=4), items, 0)
    assert np.array_equal(encoder.encode_items(items), encoder.encode(item_texts(items), "item"))
    bare = catalogue([{"text": text} for text in TEXTS])
    encoder = fit_encoder(TextConfig(dim=4), bare, 0)
    assert np.array_equal(encoder.encode_items(bare), encoder.encode(TEXTS, "item"))


def test_characters_bring_typos_near_and_survive_a_save(tmp_path):
    encoder = TfidfEncoder.fit(TEXTS, dim=6, min_df=1, seed=0, character_share=0.5)
    actual = encoder.encode(["lether bags", "runing shos"]) @ encoder.encode(TEXTS).T
    assert set(np.argsort(-actual[0])[:2]) == {2, 3} and set(np.argsort(-actual[1])[:2]) == {0, 1}
    assert (TfidfEncoder.fit(TEXTS, 6, 1, 0).encode(["lether bags"]) == 0).all()
    encoder.save(tmp_path)
    assert np.array_equal(load_encoder(tmp_path).encode([*TEXTS, "lether"]), encoder.encode([*TEXTS, "lether"]))


def test_a_large_catalogue_is_sampled_and_encoded_in_blocks(monkeypatch):
    monkeypatch.setattr(tfidf, "FIT_TEXTS", 5)
    monkeypatch.setattr(tfidf, "BLOCK", 2)
    encoder = TfidfEncoder.fit(TEXTS, 3, 1, 0)
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (7, 3) and encoder.dim == 3
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-6)


def test_tokens_of_many_scripts():
    words = {"Red shoes 3x": ["Red", "shoes", "3x"], "跑步鞋Pro": ["跑", "步", "鞋", "Pro"],
    "हिन्दी शब्द": ["हिन्दी", "शब्द"],
             "ชา": ["ช", "า"], "한국어 신발": ["한국어", "신발"], "чай_зелёный": ["чай", "зелёный"],
             "ﾃｨ": ["ﾃ", "ｨ"]}  # fmt: skip
    for text, expected in words.items():
        assert re.findall(TOKEN_PATTERN, text) == expected
