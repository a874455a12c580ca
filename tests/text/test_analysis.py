"""Words and stems of texts in every script."""

from __future__ import annotations

import pytest

from genrec.config.schema import LANGUAGES
from genrec.errors import UserError
from genrec.text.analysis import STOP_WORDS, Analyzer, analyzer, detect_language, words_of


def test_words_are_lower_case_without_accents_acronyms_and_possessives_as_one_word():
    assert words_of("Amélie's L.A. CAFÉ") == ["amelies", "la", "cafe"]
    assert words_of("l'amour d'un été") == ["l", "amour", "d", "un", "ete"]
    assert words_of("ﬁne ＡＢＣ １２") == ["fine", "abc", "12"]
    assert words_of("") == words_of("!?") == []


def test_scripts_without_spaces_give_characters_and_pairs():
    assert words_of("红色灯 lamp") == ["红", "色", "灯", "红色", "色灯", "lamp"]
    assert words_of("ガラス")[:3] == ["ガ", "ラ", "ス"]  # a voiced mark stays with its letter


def test_stems_spare_stop_words_and_words_with_digits():
    english = analyzer("english")
    assert english.stems(["running", "shoes", "this", "1990s", "led4s"]) == ["run", "shoe", "this", "1990s", "led4s"]
    assert english.content(["the", "shoes"]) == ["shoes"] and english.content(["the", "who"]) == ["the", "who"]


def test_every_language_of_the_setting_has_a_stemmer_and_function_words():
    for language in LANGUAGES:
        assert len(STOP_WORDS[language]) > 50 and Analyzer(language).stems(["x"]) == ["x"]
    with pytest.raises(UserError, match="klingon"):
        Analyzer("klingon")


@pytest.mark.parametrize(
    ("language", "texts"),
    [
        ("english", ["The lamp for the desk", "Cup with a handle", "Lord of the Rings"]),
        ("german", ["Lampe für den Tisch", "Die Tasse mit dem Henkel", "Der Herr der Ringe"]),
        ("french", ["Lampe pour le bureau", "La tasse avec une anse", "Le seigneur des anneaux"]),
        ("none", ["a1b2", "x9", "SKU 443"]),
        ("none", ["红色灯", "蓝色杯子"]),
        ("none", []),
    ],
)
def test_the_language_is_told_by_function_words(language, texts):
    assert detect_language(texts) == language
