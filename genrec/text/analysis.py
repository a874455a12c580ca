"""From text to terms of a lexical index: normal form, words, stems, and n-grams for scripts without spaces.

A *word* is what a person typed, in lower case and without accents; a *term* is what is matched, its Snowball stem. Runs
of a script without spaces become single characters and pairs of characters, which stand for words there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import Stemmer
from bm25s import stopwords

from genrec.config.schema import LANGUAGES
from genrec.data.words import SPACED_WORD, SPACELESS
from genrec.errors import UserError

NONE = "none"
# Function words by Snowball's name of the language. They also tell which language a catalogue is written in.
STOP_WORDS: dict[str, list[str]] = {
    language: getattr(stopwords, f"STOPWORDS_{'EN_PLUS' if language == 'english' else language.upper()}")
    for language in LANGUAGES
}
SAMPLE = 5000  # texts that tell the language
FUNCTION_WORDS = 0.02  # fraction of a text's words below which no language is detected

_WORD = re.compile(rf"[{SPACELESS}]+|{SPACED_WORD}")
_RUN = re.compile(rf"[{SPACELESS}]")
_ACCENT = re.compile("[\u0300-\u036f]")
_POSSESSIVE = re.compile(r"(?<=\w)['\u2019](s|t|d|m|re|ll|ve)\b")
_ACRONYM = re.compile(r"\b((?:[^\W\d_]\.){2,})")


def normal(text: str) -> str:
    """Lower case, one width, no accents; "L.A." is read as "la" and "schindler's" as "schindlers"."""
    text = _ACCENT.sub("", unicodedata.normalize("NFKD", text)).lower()
    text = _POSSESSIVE.sub(r"\1", unicodedata.normalize("NFC", text))
    return _ACRONYM.sub(lambda match: match[1].replace(".", ""), text)


def words_of(text: str) -> list[str]:
    """The words of a text in order; a run of a script without spaces gives its characters, then its pairs."""
    tokens: list[str] = []
    for word in _WORD.findall(normal(text)):
        if _RUN.match(word):
            tokens += word
            tokens += (word[index : index + 2] for index in range(len(word) - 1))
        else:
            tokens.append(word)
    return tokens


def spaceless(word: str) -> bool:
    """Whether a word of ``words_of`` comes from a script without spaces: such a word has no typos and no prefixes."""
    return _RUN.match(word) is not None


class Analyzer:
    """Stems and function words of one language; ``none`` keeps every word as it is."""

    def __init__(self, language: str = NONE):
        if language != NONE and language not in STOP_WORDS:
            raise UserError(f"text.language: '{language}' is not one of {', '.join((NONE, *STOP_WORDS))}")
        self.language = language
        self.stop_words = frozenset(normal(word) for word in STOP_WORDS.get(language, ()))
        self._stemmer: Any = None if language == NONE else Stemmer.Stemmer(language)

    def stems(self, words: Sequence[str]) -> list[str]:
        """The term of each word; stop words and words with digits stay as they are."""
        if self._stemmer is None:
            return list(words)
        # Threads may share the stemmer: a call holds Python's lock from start to end.
        return [
            word if word in self.stop_words or any(map(str.isdigit, word)) else stem
            for word, stem in zip(words, self._stemmer.stemWords(list(words)), strict=True)
        ]

    def content(self, words: Sequence[str]) -> list[str]:
        """The words that carry meaning; all of them where none does ("it", "the who")."""
        return [word for word in words if word not in self.stop_words] or list(words)


@lru_cache(maxsize=32)
def analyzer(language: str) -> Analyzer:
    """The analyzer of a language, made once."""
    return Analyzer(language)


def detect_language(texts: Iterable[str | None]) -> str:
    """The language whose function words are most frequent in the first texts; ``none`` where no language's are."""
    words: list[str] = []
    for number, text in enumerate(texts):
        if number == SAMPLE:
            break
        words += words_of(text or "")
    known = {language: {normal(word) for word in listed} for language, listed in STOP_WORDS.items()}
    counts = {language: sum(word in listed for word in words) for language, listed in known.items()}
    best = max(counts, key=lambda language: counts[language])
    return best if words and counts[best] >= FUNCTION_WORDS * len(words) else NONE
