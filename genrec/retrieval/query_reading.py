"""What a typed query names: known words, misspelt ones, half-typed ones, words joined or split.

Every reading of an unknown word is weighed like a noisy channel does it (Kernighan, Church and Gale 1990): how much its
words are wanted in this catalogue, together with the other words of the query, against how far it is from what was
typed. A word that the catalogue has is never changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.retrieval.bm25 import BM25, HEAD
from genrec.retrieval.synonyms import Synonyms
from genrec.retrieval.vocabulary import Vocabulary
from genrec.text.analysis import analyzer, normal, spaceless, words_of

EDIT, SECOND_EDIT, FIRST_LETTER = 3.0, 5.0, 1.5  # costs, in natural logarithms of odds
SPLIT, COMPLETED, MISSING_LETTER, RELATED = 2.0, 1.0, 0.3, 5.0
FEW_LETTERS, CLEAR = 1.0, 5  # cost of an edit for every letter that a word is shorter than the second number
TOGETHER = 3.0  # for a word that an item has together with the query's other words
KEEP, MOST = 0.05, 8  # readings with less of the best one's odds, and behind the best few, are dropped
SURE = 0.6  # odds of the best reading above which the query's text is corrected
SHORT = 2  # letters of a last word that is completed even where the catalogue has it
JOINED = 0.7  # weight of two words written as one, where both are known apart
QUALITY = {"typed": 1.0, "completed": 0.8, "split": 0.8, "one edit": 0.7, "related": 0.5, "two edits": 0.4}


@dataclass(frozen=True)
class Word:
    """One content word of a query: the terms it may stand for, with weights, and how sure the best of them is.

    ``alternatives`` is empty for a word that names nothing. ``quality`` is 1 for a word as typed, 0 for an unknown one.
    """

    alternatives: tuple[tuple[int, float], ...]
    quality: float
    importance: float  # inverse document frequency


@dataclass(frozen=True)
class ReadQuery:
    """A query as the catalogue's words read it; ``corrected`` is its text in known words, None where it is as typed."""

    words: tuple[Word, ...]
    extra: tuple[tuple[tuple[int, float], ...], ...] = ()  # alternatives that add to the score alone
    corrected: str | None = None

    @property
    def groups(self) -> list[tuple[tuple[int, float], ...]]:
        """What ``BM25.match`` reads."""
        return [*(word.alternatives for word in self.words if word.alternatives), *self.extra]

    @property
    def weight(self) -> float:
        """The sum of the words' importance."""
        return sum(word.importance for word in self.words)

    def coverage(self, minimum: float = 0.0) -> float:
        """The fraction of the query, by importance, whose words are known with at least a quality, times it."""
        known = sum(word.importance * word.quality for word in self.words if word.quality >= minimum)
        return known / max(self.weight, 1e-9)


@dataclass(frozen=True)
class _Reading:
    """One way to read an unknown word: ``words`` (two for a split) with the log-odds ``score``."""

    words: tuple[str, ...]
    score: float
    kind: str


class QueryReader:
    """Reads queries against an index and its vocabularies (the fit's, and those of items added later)."""

    def __init__(
        self,
        index: BM25,
        vocabularies: Sequence[Vocabulary],
        popularity: np.ndarray,
        synonyms: Synonyms,
        logged: frozenset[str] = frozenset(),
    ):
        """``popularity`` (n,): events of each item; items added later have none.

        ``logged``: terms of training searches that no item has; they are known as well.
        """
        self.index, self.vocabularies, self.popularity = index, list(vocabularies), popularity
        self.synonyms, self.searched = synonyms, logged | set(synonyms)
        self.analyzer = analyzer(index.language)

    def read(self, text: str) -> ReadQuery:
        """Read a query text."""
        typed = list(dict.fromkeys(self.analyzer.content(words_of(text))))
        typed, joined = self._join(typed)
        rows = {word: self.index.term(word) for word in typed}
        stems = dict(zip(typed, self.analyzer.stems(typed), strict=True))
        half = typed[-1] if typed and _unfinished(text, typed[-1]) else None
        short = half is not None and len(half) <= SHORT and len(typed) > 1
        open_words = [
            word for word in typed if (rows[word] < 0 and stems[word] not in self.searched) or (short and word == half)
        ]
        context = self._context([rows[word] for word in typed if word not in open_words and rows[word] >= 0])
        words: list[Word] = []
        corrected = normal(text)
        for word in typed:
            if word not in open_words:
                words.append(self._known(stems[word], rows[word]))
                continue
            readings = self._readings(word, context, word == half)
            if not readings and rows[word] >= 0:
                words.append(self._known(stems[word], rows[word]))
            elif not readings:
                words.append(Word((), 0.0, self._importance(-1)))
            else:
                words += self._words(readings, rows[word])
                if readings[0].kind != "related" and _sure(readings):
                    corrected = _replaced(corrected, word, " ".join(readings[0].words))
        for (left, right), whole in joined.items():
            if whole in rows:
                corrected = re.sub(rf"(?<!\w){re.escape(left)}\W+{re.escape(right)}(?!\w)", whole, corrected)
        changed = corrected != normal(text)
        extra = tuple(((self.index.term(whole), JOINED),) for whole in joined.values() if whole not in rows)
        return ReadQuery(tuple(words), extra, corrected if changed else None)

    def _join(self, typed: list[str]) -> tuple[list[str], dict[tuple[str, str], str]]:
        """Neighbours that the catalogue writes as one word, in a dictionary, and the words of the query.

        Where one of a pair is unknown or no item has both, the one word replaces them.
        """
        joined: dict[tuple[str, str], str] = {}
        words, index = [], 0
        while index < len(typed):
            pair = tuple(typed[index : index + 2])
            whole = "".join(pair)
            if len(pair) == 2 and not any(map(spaceless, pair)) and self.index.term(whole) >= 0:
                joined[pair[0], pair[1]] = whole
                if not self._have_both(pair[0], pair[1]):
                    words.append(whole)
                    index += 2
                    continue
            words.append(typed[index])
            index += 1
        return words, joined

    def _have_both(self, left: str, right: str) -> bool:
        rows = self.index.term(left), self.index.term(right)
        return min(rows) >= 0 and bool(len(self._both(*(self.index.items_of(row) for row in rows))))

    @staticmethod
    def _both(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        few, many = (left, right) if len(left) <= len(right) else (right, left)
        if not len(few):
            return few
        return few[many[np.minimum(np.searchsorted(many, few), len(many) - 1)] == few]

    def _known(self, stem: str, row: int) -> Word:
        same = [(self.index.terms.get(other, -1), weight) for other, weight in self.synonyms.get(stem, ())]
        alternatives = [(term, weight) for term, weight in [(row, 1.0), *same] if term >= 0]
        return Word(tuple(alternatives), QUALITY["typed"], self._importance(row))

    def _importance(self, row: int) -> float:
        return float(self.index.idf_of(np.array([row if row >= 0 else len(self.index.idf)]))[0])

    def _context(self, rows: Sequence[int]) -> np.ndarray | None:
        """Items of the rarest word that is known; None without one."""
        if not rows:
            return None
        return self.index.items_of(max(rows, key=self._importance), HEAD)

    def _readings(self, word: str, context: np.ndarray | None, unfinished: bool) -> list[_Reading]:
        """The best readings of an unknown word, best first."""
        readings: dict[tuple[str, ...], _Reading] = {}

        def add(words: tuple[str, ...], cost: float, kind: str, mass: float, items: Callable[[], np.ndarray]) -> None:
            if self.index.removed is not None and min(map(self.index.term, words)) < 0:
                return  # only removed items have it
            score = math.log1p(mass) - cost
            if context is not None:
                together = self._wanted(self._both(items(), context))
                score += TOGETHER + math.log1p(together) if together else 0.0
            if words not in readings or readings[words].score < score:
                readings[words] = _Reading(words, score, kind)

        for vocabulary in self.vocabularies:
            for candidate, distance in vocabulary.misspelt(word):
                cost = EDIT + (distance - 1) * SECOND_EDIT + FIRST_LETTER * (candidate[0] != word[0])
                cost += FEW_LETTERS * max(CLEAR - len(word), 0)
                kind = "one edit" if distance == 1 else "two edits"
                add((candidate,), cost, kind, vocabulary.mass_of(candidate), self._items(candidate))
            for candidate in vocabulary.related(word):
                cost = RELATED + MISSING_LETTER * abs(len(candidate) - len(word))
                add((candidate,), cost, "related", vocabulary.mass_of(candidate), self._items(candidate))
            if unfinished and not spaceless(word):
                for candidate in vocabulary.completions(word):
                    cost = COMPLETED + MISSING_LETTER * (len(candidate) - len(word))
                    add((candidate,), cost, "completed", vocabulary.mass_of(candidate), self._items(candidate))
        for left, right, items in self._splits(word):
            add((left, right), SPLIT, "split", self._wanted(items), lambda items=items: items)  # type: ignore[misc]
        best = sorted(readings.values(), key=lambda one: (-one.score, one.words))[:MOST]
        return [one for one in best if one.score >= best[0].score + math.log(KEEP)]

    def _wanted(self, items: np.ndarray) -> float:
        """How much some items are wanted together: their number and their events."""
        known = items[items < len(self.popularity)]
        return len(items) + float(self.popularity[known].sum())

    def _items(self, word: str) -> Callable[[], np.ndarray]:
        return lambda: self.index.items_of(self.index.term(word))

    def _splits(self, word: str) -> list[tuple[str, str, np.ndarray]]:
        """Two known words that an item has both and that together are ``word``, and the items."""
        pairs = []
        for index in range(1, len(word)) if not spaceless(word) else ():
            left, right = word[:index], word[index:]
            if min(len(left), len(right)) < 2 and not (left.isdigit() or right.isdigit()):
                continue
            rows = self.index.term(left), self.index.term(right)
            if min(rows) < 0 or rows[0] == rows[1]:
                continue
            both = self._both(*(self.index.items_of(row) for row in rows))
            if len(both):
                pairs.append((left, right, both))
        return pairs

    def _words(self, readings: Sequence[_Reading], typed: int) -> list[Word]:
        """The content words that readings of one typed word stand for; ``typed`` its own term, if it has one."""
        best = readings[0]
        quality = QUALITY[best.kind]
        if len(best.words) == 2:
            rows = [self.index.term(part) for part in best.words]
            return [Word(((row, 1.0),), quality, self._importance(row)) for row in rows]
        weights: dict[int, float] = {} if typed < 0 else {typed: 1.0}
        for one in readings:
            if len(one.words) == 1:
                row = self.index.term(one.words[0])
                weights[row] = max(weights.get(row, 0.0), math.exp(one.score - best.score))
        return [Word(tuple(weights.items()), quality, self._importance(self.index.term(best.words[0])))]


def _unfinished(text: str, last: str) -> bool:
    """Whether the query may end within its last word."""
    return normal(text).endswith(last)


def _sure(readings: Sequence[_Reading]) -> bool:
    odds = [math.exp(one.score - readings[0].score) for one in readings]
    return odds[0] / sum(odds) >= SURE


def _replaced(text: str, word: str, by: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", by, text, count=1)
