"""Synthetic queries of the kinds that people type, one per event; always called synthetic.

``word``, ``brand`` and ``attribute`` are also drawn for training events. ``prefix``, ``typo`` and ``joined`` are made
for held-out events alone, so that results on them show what was never trained on. Every held-out event gets a query of
one kind, and popular items get as many as they have events.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from genrec.data.attributes import attribute_columns, attribute_texts
from genrec.data.queries import STOP_WORDS, category_queries, mix, title_queries, title_words

TRAINED = ("word", "brand", "attribute")
HELD_OUT = ("prefix", "typo", "joined")
EVERYDAY = (*TRAINED, *HELD_OUT)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST = 4  # letters of a word that is cut, misspelt or split


class EverydayQueries:
    """Makes the queries of events from the words of ``items``."""

    def __init__(self, items: pl.DataFrame):
        self.words = title_words(items)
        leaf = category_queries(items.with_columns(pl.col("category").list.tail(1)))
        leaf = pl.Series([text or None for text in leaf.fill_null("").to_list()], dtype=pl.String)
        table = items.select(pl.col("brand").str.to_lowercase().alias("brand")).with_columns(leaf.alias("leaf"))
        self.brand = table.select(pl.concat_str("brand", "leaf", separator=" "))["brand"]
        self.leaf = table["leaf"]
        self.attributes = [attribute_texts(items, name).str.to_lowercase() for name in attribute_columns(items)]

    def queries(self, kind: str, items: np.ndarray, draws: np.ndarray) -> pl.Series:
        """One query of a kind per event, null where its item allows none: (n_events,) String.

        ``items`` (n_events,) dense item ids; ``draws`` (n_events,) uint64 random numbers.
        """
        if kind == "word":
            return self._one_word(items, draws)
        if kind == "brand":
            return self.brand[items]
        if kind == "attribute":
            return self._attribute(items, draws)
        change = {"prefix": half_typed, "typo": misspelt, "joined": _joined}[kind]
        return _changed(title_queries(self.words, items, draws), draws, change)

    def _one_word(self, items: np.ndarray, draws: np.ndarray) -> pl.Series:
        texts = title_queries(self.words, items, draws)
        return _changed(texts, draws, lambda words, draw: [words[draw % len(words)]])

    def _attribute(self, items: np.ndarray, draws: np.ndarray) -> pl.Series:
        """The value of an attribute and the category: "1995 thriller", "red lipstick"."""
        if not self.attributes:
            return pl.repeat(None, len(items), dtype=pl.String, eager=True)
        column = (mix(draws) % np.uint64(len(self.attributes))).astype(np.int64)
        values = pl.DataFrame([texts[items].alias(str(number)) for number, texts in enumerate(self.attributes)])
        picked = pl.coalesce(
            pl.when(pl.lit(pl.Series(column)) == n).then(pl.col(str(n))) for n in range(len(values.columns))
        )
        table = values.select(picked.alias("value")).with_columns(self.leaf[items].alias("leaf"))
        both = pl.when((pl.col("value") != "") & pl.col("leaf").is_not_null()).then(
            pl.concat_str("value", "leaf", separator=" ")
        )
        return table.select(both.alias("query"))["query"]


def kind_of(draws: np.ndarray) -> np.ndarray:
    """Which of ``EVERYDAY`` each held-out event gets: (n_events,) int64."""
    return (mix(draws + np.uint64(3)) % np.uint64(len(EVERYDAY))).astype(np.int64)


def _changed(texts: pl.Series, draws: np.ndarray, change: Callable[[list[str], int], list[str] | None]) -> pl.Series:
    """Each text with ``change(words, draw)`` made to its words; null where that gives nothing."""
    numbers = mix(draws + np.uint64(7)).tolist()
    changed = [
        None if text is None else change(text.split(), draw)
        for text, draw in zip(texts.to_list(), numbers, strict=True)
    ]
    return pl.Series("query", [None if words is None else " ".join(words) for words in changed], dtype=pl.String)


def half_typed(words: list[str], draw: int) -> list[str] | None:
    """The last word is half typed."""
    last = words[-1]
    if len(last) < SHORTEST:
        return None
    return [*words[:-1], last[: 2 + draw % (len(last) - 2)]]


def misspelt(words: list[str], draw: int) -> list[str] | None:
    """One letter of the longest word is missing, wrong or doubled, or two are swapped."""
    longest = max(words, key=len)
    if len(longest) < SHORTEST or not longest.isascii() or not longest.isalpha():
        return None
    place, letter = 1 + draw % (len(longest) - 2), LETTERS[draw // 7 % 26]
    head, tail = longest[:place], longest[place:]
    wrong = (
        head + tail[1:],
        head + letter + tail[1:],
        head + head[-1] + tail,
        head + tail[1] + tail[0] + tail[2:],
    )[draw // 5 % 4]
    wrong = head + tail[1:] if wrong == longest else wrong  # a letter doubled in the word may change nothing
    return [wrong if word == longest else word for word in words]


def _joined(words: list[str], draw: int) -> list[str] | None:
    """Two neighbours are written as one word, or nothing where there is only one."""
    if len(words) < 2 or any(word in STOP_WORDS for word in words):
        return None
    index = draw % (len(words) - 1)
    return [*words[:index], words[index] + words[index + 1], *words[index + 2 :]]
