"""Hashed words and character n-grams of queries, against a slow reference and on hostile input."""

from __future__ import annotations

import re

import numpy as np
import pytest

from genrec.text.encoder import TOKEN_PATTERN
from genrec.text.query_tokens import HASHED, MAX_CHARACTERS, WORD_BUCKETS, hashed_tokens, readable


def bags(*texts: str) -> list[tuple[list[int], set[int]]]:
    """Words in order and the set of n-grams of each text."""
    rows, tokens = hashed_tokens(readable(texts))
    assert ((tokens >= 0) & (tokens < HASHED)).all()
    result = []
    for row in range(len(texts)):
        own = tokens[rows == row]
        result.append((own[own < WORD_BUCKETS].tolist(), set(own[own >= WORD_BUCKETS].tolist())))
    return result


def test_one_token_for_each_word_and_each_ngram():
    texts = ["WH-1000XM4 headphones, black", "шампунь для волос", "हिन्दी शब्द", "", "!?", "x"]
    rows, tokens = hashed_tokens(texts)
    for row, text in enumerate(texts):
        words = re.findall(TOKEN_PATTERN, text.lower())
        own = tokens[rows == row]
        assert (own < WORD_BUCKETS).sum() == len(words)
        assert (own >= WORD_BUCKETS).sum() == sum(max(len(word) + 3 - n, 0) for word in words for n in (3, 4, 5))


def test_a_typo_keeps_ngrams_and_loses_the_word():
    (right, right_grams), (wrong, wrong_grams), (_, other) = bags("headphones", "headphnes", "lipstick")
    assert right != wrong
    shared = len(right_grams & wrong_grams) / len(right_grams)
    assert shared > 0.4 and len(right_grams & other) / len(right_grams) < 0.1


def test_scripts_without_spaces_have_character_bigrams():
    (words, grams), (other_words, other_grams), (one, none) = bags("红茶壶", "红茶", "茶")
    assert len(words) == 3 and len(grams) == 2 and len(other_words) == 2
    assert other_grams < grams and len(one) == 1 and not none
    assert bags("买mug红茶")[0][0][1:2] == bags("mug")[0][0], "a word beside Chinese is still that word"


def test_case_and_width_do_not_matter_and_words_do():
    assert bags("ＬＥＤ Lamp") == bags("led LAMP")
    assert bags("led")[0] != bags("lde")[0]


def test_neighbours_do_not_change_a_query():
    together = bags("red lamp", "a much longer query about lamps", "红茶")
    assert together == [bags("red lamp")[0], bags("a much longer query about lamps")[0], bags("红茶")[0]]


@pytest.mark.parametrize(
    "text", ["\ud800", "a\x00b", "\u202egnp", "🫖🫖", "'; DROP TABLE items; --", " \t\n", "́" * 300, "a" * 100_000]
)
def test_hostile_queries_are_read_without_harm(text):
    readable_text = readable([text])[0]
    assert len(readable_text) <= MAX_CHARACTERS
    bags(text)


def test_what_is_behind_the_cut_is_not_read():
    head = "word " * (MAX_CHARACTERS // 5) + " "
    assert len(head) >= MAX_CHARACTERS
    assert bags(head + "lamp") == bags(head + "entirely different" * 1000)
    assert bags(head[:-20]) != bags(head[:-30])


def test_no_query_at_all():
    rows, tokens = hashed_tokens([])
    assert rows.dtype == tokens.dtype == np.int64 and len(rows) == len(tokens) == 0
