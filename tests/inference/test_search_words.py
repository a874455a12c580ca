"""Search end to end: what is misspelt, half typed or nonsense, through the same path for everybody."""

from __future__ import annotations

import pytest

from genrec.inference.recommender import Recommender
from genrec.inference.requests import RecommendationRequest


@pytest.fixture(scope="module")
def model(trained_run) -> Recommender:
    return Recommender.load(trained_run.folder)


@pytest.fixture(scope="module")
def word(model) -> str:
    """A long word of the catalogue that nobody has searched for alone, and no query of the log is."""
    vocabulary = model.ranker.generator.lexical.vocabularies[0]
    words = [word for word in vocabulary.words if len(word) >= 6 and word.isalpha()]
    return max(words, key=lambda one: (vocabulary.mass_of(one), one))


def misspelt(word: str) -> str:
    return word[:3] + word[4:]


@pytest.mark.parametrize("mode", ["fused", "retrieve", "generate"])
def test_a_misspelt_word_is_answered_like_the_word(model, word, mode):
    plain, wrong = (model.search(text, k=8, mode=mode) for text in (word, misspelt(word)))
    assert wrong.corrected == word and plain.corrected is None
    assert not wrong.no_match and 0.5 <= wrong.match <= 1
    assert [one.item_id for one in wrong] == [one.item_id for one in plain]


def test_nonsense_is_flagged_and_answered_as_no_query(model, trained_run):
    user = trained_run.dataset.user_ids[3]
    nonsense = model.search("xqzvkj wwqqp", user=user, k=8, exclude_seen=True)
    assert nonsense.no_match and nonsense.match < 0.5 and nonsense.corrected is None
    assert [one.item_id for one in nonsense] == [one.item_id for one in model.recommend(user=user, k=8)]
    response = model.ask([RecommendationRequest(query="xqzvkj wwqqp", k=3)])[0]
    assert response.no_match and response.source == "popular"


def test_an_answer_does_not_depend_on_the_other_queries(model, word):
    queries = [misspelt(word), "xqzvkj", word, word[: len(word) - 2]]
    together = model.ask([RecommendationRequest(query=query, k=5, exclude_seen=False) for query in queries])
    for query, response in zip(queries, together, strict=True):
        alone, answers = model.search(query, k=5), response.items
        assert [one.item_id for one in alone] == [one.item_id for one in answers]
        assert [one.score for one in alone] == pytest.approx([one.score for one in answers], abs=1e-4)


def test_logged_queries_are_never_changed(model, trained_run):
    data = trained_run.dataset
    texts = data.query_texts[:20]
    known = model.ranker.generator.features.query_items.knows(texts)
    assert known.any() and not model.ranker.generator.features.query_items.knows(["xqzvkj"])[0]
    for text in [text for text, is_known in zip(texts, known, strict=True) if is_known][:5]:
        assert model.ranker.matches([text]) == [None]


def test_search_prints_how_it_read_the_query(genrec, trained_run, word):
    code, out, _ = genrec("search", trained_run.folder, misspelt(word), "-k", "3")
    assert code == 0 and f"was read as '{word}'" in out
    code, out, _ = genrec("search", trained_run.folder, "xqzvkj", "-k", "3")
    assert code == 0 and "names nothing of the catalogue" in out
