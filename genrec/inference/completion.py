"""Which known queries a half-typed one may become: those that begin so, that have its words, misspelt or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl
from rapidfuzz.distance import OSA
from rapidfuzz.process import cdist

from genrec.retrieval.vocabulary import Vocabulary
from genrec.text.analysis import normal, words_of

BEGINS, HAS_WORDS, CORRECTED, NONE = range(4)  # how well a query fits what was typed, best first
ALTERNATIVES = 3  # words that one misspelt word may stand for
SHORTEST_START = 4  # letters from which the beginning of a word may hold a typo


class Completer:
    """Fits known queries to what a person has typed so far."""

    def __init__(self, texts: Sequence[str], counts: np.ndarray):
        """``texts`` and how often each was searched, (n,)."""
        self._normal = pl.Series([normal(text).strip() for text in texts], dtype=pl.String)
        self._words = pl.Series([" " + " ".join(words_of(text)) + " " for text in texts], dtype=pl.String)
        self._counts = counts

    def __len__(self) -> int:
        return len(self._normal)

    def fit(self, typed: str) -> np.ndarray:
        """How each query fits: (n,) ``BEGINS``, ``HAS_WORDS``, ``CORRECTED`` or ``NONE``.

        The last typed word may be unfinished. A query has the words of what was typed in any order. Words that no known
        query has are read as the nearest ones that some have: within one edit, from eight letters within two.
        """
        words = words_of(typed)
        begins = self._normal.str.starts_with(normal(typed).strip()).to_numpy()
        if not words:
            return np.where(begins, BEGINS, NONE)
        has = self._has([[f" {word} "] for word in words[:-1]] + [[f" {words[-1]}"]])
        read = [self._known(word) for word in words[:-1]] + [self._begun(words[-1])]
        corrected = self._has(read)
        return np.where(begins, BEGINS, np.where(has, HAS_WORDS, np.where(corrected, CORRECTED, NONE)))

    def _has(self, alternatives: Sequence[list[str]]) -> np.ndarray:
        """Which queries have one of the ``alternatives`` of every word: (n,) bool."""
        mask = np.ones(len(self), bool)
        for patterns in alternatives:
            mask &= self._words.str.contains_any(patterns).to_numpy() if patterns else False
        return mask

    def _known(self, word: str) -> list[str]:
        """The finished word, or known words that it may be a misspelling of."""
        if word in self._vocabulary:
            return [f" {word} "]
        return [f" {other} " for other in self._nearest(word)]

    def _begun(self, start: str) -> list[str]:
        """The unfinished word, or beginnings of known words that it may be a misspelling of."""
        if start in self._vocabulary or self._vocabulary.completions(start):
            return [f" {start}"]
        starts = [f" {other}" for other in self._nearest(start)]
        if len(start) < SHORTEST_START:
            return starts
        begun = [one for one in dict.fromkeys(word[: len(start)] for word in self._vocabulary.words) if len(one) > 1]
        if begun:
            near = cdist([start], begun, scorer=OSA.distance, score_cutoff=1, dtype=np.uint8)[0] <= 1
            starts += [f" {begun[index]}" for index in np.flatnonzero(near).tolist()]
        return starts

    def _nearest(self, word: str) -> list[str]:
        found = sorted(self._vocabulary.misspelt(word), key=lambda one: (one[1], -self._vocabulary.mass_of(one[0])))
        return [other for other, _ in found[:ALTERNATIVES]]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        words = pl.DataFrame({"word": self._words.str.split(" "), "count": self._counts}).explode("word")
        words = words.filter(pl.col("word") != "").group_by("word").agg(pl.col("count").sum()).sort("word")
        return Vocabulary(words["word"].to_list(), np.zeros(len(words), np.int64), words["count"].to_numpy())
