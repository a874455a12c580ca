"""The words of a catalogue, and which of them a half-typed or misspelt word may stand for.

Completions are a range of the sorted words. Misspellings are found by symmetric deletion (Garbe's SymSpell): two words
within two edits of each other become equal when a few letters are deleted from both. Hashes of all such shortenings
of the words are kept in one sorted array, so a look-up is a few binary searches; ``rapidfuzz`` checks the distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations

import numpy as np
from rapidfuzz.distance import OSA
from rapidfuzz.process import cdist

from genrec.text.analysis import spaceless

MAX_WORDS = 1 << 18  # words that a misspelling is corrected to: those with the highest mass
PREFIX = 7  # letters of a word that shortenings are made of
SHORTEST, LONG = 3, 8  # letters from which one edit and two edits are corrected
BLOCK = 4096  # words that are hashed together
RELATED = 5  # letters at the beginning that two forms of a word share at least
COMPLETIONS = 64  # completions that are weighed: those with the highest mass


def edits_allowed(word: str) -> int:
    """How many edits of a typed word are corrected; none in words with digits, as model numbers differ in one."""
    if len(word) < SHORTEST or spaceless(word) or any(map(str.isdigit, word)):
        return 0
    return 1 if len(word) < LONG else 2


class Vocabulary:
    """Distinct ``words``, sorted, each with the row of its ``term`` and its ``mass``, how much it is wanted.

    The mass (n_words,) is the number of items that have the word, popular ones counting more. The object is immutable.
    """

    def __init__(self, words: Sequence[str], terms: np.ndarray, mass: np.ndarray):
        order = np.argsort(np.asarray(words, dtype=object), kind="stable") if len(words) else np.zeros(0, np.int64)
        self.words = [words[index] for index in order]
        self.terms, self.mass = terms[order].astype(np.int64), mass[order].astype(np.float32)
        self._index = {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._index

    def mass_of(self, word: str) -> float:
        """The mass of a word, 0 for an unknown one."""
        index = self._index.get(word)
        return 0.0 if index is None else float(self.mass[index])

    def joined(self, other: Vocabulary) -> Vocabulary:
        """The words of both; masses of a word are added."""
        new = [word for word in other.words if word not in self._index]
        rows = np.array([other._index[word] for word in new], np.int64)
        mass = self.mass.copy()
        for word in other.words:
            if word in self._index:
                mass[self._index[word]] += other.mass_of(word)
        words = [*self.words, *new]
        return Vocabulary(
            words, np.concatenate([self.terms, other.terms[rows]]), np.concatenate([mass, other.mass[rows]])
        )

    def completions(self, start: str) -> list[str]:
        """Words that begin with ``start`` and are longer, those with the highest mass first."""
        low, high = self._bisect(start), self._bisect(start + "\U0010ffff")
        span = self.mass[low:high]
        best = np.argsort(-span, kind="stable")[: COMPLETIONS + 1] + low
        return [self.words[index] for index in best.tolist() if self.words[index] != start][:COMPLETIONS]

    def related(self, word: str) -> list[str]:
        """Words that share all but the last letters with a long one ("romantic" and "romance"), by mass."""
        if len(word) < RELATED + 2 or not edits_allowed(word):
            return []
        return [other for other in self.completions(word[: max(RELATED, len(word) - 3)]) if len(other) <= len(word) + 2]

    def _bisect(self, word: str) -> int:
        low, high = 0, len(self.words)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.words[middle] < word else (low, middle)
        return low

    def misspelt(self, word: str) -> list[tuple[str, int]]:
        """Known words within ``edits_allowed`` of ``word``, and their distances.

        An edit inserts, deletes or substitutes a letter, or swaps two neighbours.
        """
        allowed = edits_allowed(word)
        if not allowed or not len(self):
            return []
        keys, owners = self._shortenings
        target = _hashes([word], allowed)[0]
        low, high = np.searchsorted(keys, target), np.searchsorted(keys, target, side="right")
        near = np.unique(np.concatenate([owners[start:stop] for start, stop in zip(low, high, strict=True)]))
        candidates = [other for other in map(self.words.__getitem__, near.tolist()) if other != word]
        if not candidates:
            return []
        distances = cdist([word], candidates, scorer=OSA.distance, score_cutoff=allowed, dtype=np.uint8)[0]
        return [(candidates[index], int(distances[index])) for index in np.flatnonzero(distances <= allowed).tolist()]

    @cached_property
    def _shortenings(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes (n,) uint32, rising, of the shortenings of all correctable words, and the word of each."""
        usable = np.array([index for index, word in enumerate(self.words) if edits_allowed(word)], np.int64)
        if len(usable) > MAX_WORDS:
            usable = np.sort(usable[np.argpartition(-self.mass[usable], MAX_WORDS)[:MAX_WORDS]])
        keys, owners = [np.zeros(0, np.uint32)], [np.zeros(0, np.int32)]
        for edits in (1, 2):
            some = [index for index in usable.tolist() if edits_allowed(self.words[index]) == edits]
            hashes = _hashes([self.words[index] for index in some], edits)
            keys.append(hashes.ravel())
            owners.append(np.repeat(np.array(some, np.int32), hashes.shape[1]))
        key, owner = np.concatenate(keys), np.concatenate(owners)
        pairs = np.unique(key.astype(np.uint64) << np.uint64(32) | owner.astype(np.uint64))
        return (pairs >> np.uint64(32)).astype(np.uint32), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int32)


def _variants(edits: int) -> np.ndarray:
    """Columns (variants, PREFIX) left when any ``edits`` or fewer letters are deleted; PREFIX is an empty column."""
    kept = []
    for deleted in range(edits + 1):
        for gone in combinations(range(PREFIX), deleted):
            columns = [column for column in range(PREFIX) if column not in gone]
            kept.append(columns + [PREFIX] * deleted)
    return np.array(kept)


_VARIANTS = {edits: _variants(edits) for edits in (1, 2)}
_BASES = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(PREFIX)], np.uint64)


def _hashes(words: Sequence[str], edits: int) -> np.ndarray:
    """Hashes (n_words, variants) uint32 of each word's first letters without any ``edits`` or fewer of them.

    A polynomial hash: zeros behind the letters do not change it, so that a deleted letter moves the rest up.
    """
    letters = np.zeros((len(words), PREFIX + 1), np.uint64)
    for row, word in enumerate(words):
        letters[row, : min(len(word), PREFIX)] = [ord(letter) for letter in word[:PREFIX]]
    variants = _VARIANTS[edits]
    result = np.zeros((len(words), len(variants)), np.uint32)
    for start in range(0, len(words), BLOCK):
        value = (letters[start : start + BLOCK][:, variants] * _BASES).sum(-1, dtype=np.uint64)
        value ^= value >> np.uint64(32)
        value *= np.uint64(0xBF58476D1CE4E5B9)
        result[start : start + BLOCK] = (value >> np.uint64(32)).astype(np.uint32)
    return result
